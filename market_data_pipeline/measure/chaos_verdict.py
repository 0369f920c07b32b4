"""Whether a course of chaos was survived: each outage told exactly once with its end, and no bar lost or changed.

Pure but for `differing_bars`. Keep out: hitting processes, and waiting for the end of it (chaos).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline.domain.series import Series, Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.settings import Settings

# What begins an outage and what ends it: the parts of a title between which the name of what is down stands.
BEGINS: Final = (" is down: ", " cannot be reached", " are not evaluated: ")
ENDS: Final = (
    " runs again after ",
    " answers again after ",
    " are evaluated again after ",
    " was started again after ",
)

_TOLD_WITHIN: Final = 60.0  # seconds after the end of an outage in which its alert may still be on its way
# No outage of one process may last longer; that of a whole course is several of them.
_LONGEST: Final = max(
    RECOVERY_OBJECTIVES[one].rto.total_seconds() for one in (Outage.SCHEDULER_CRASH, Outage.DATABASE_CONNECTION_LOSS)
)
_SHORTEST: Final = min(
    RECOVERY_OBJECTIVES[one].rto.total_seconds() for one in (Outage.SCHEDULER_CRASH, Outage.DATABASE_CONNECTION_LOSS)
)


class Moment(NamedTuple):
    """Something that happened to a process, or was told about it.

    Attributes:
        at: in seconds of the course.
        kind: `hit` when it was killed or ended, which must be told; `perhaps` when it was, but may be back before
            anyone is told; an alert is a `begin`, an `end`, or `both`, of a short outage.
        subject: the name that alerts have for it.
    """

    at: float
    kind: Literal["hit", "perhaps", "begin", "end", "both"]
    subject: str


def alert_moment(at: float, title: str) -> Moment | None:
    """Return what an alert says about an outage; None for one about something else."""
    for parts, kind in ((ENDS, "end"), (BEGINS, "begin")):
        for part in parts:
            if part in title:
                short = part == " was started again after "
                return Moment(at, "both" if short else kind, title.partition(part)[0])  # type: ignore[arg-type]
    return None


class AlertVerdict(NamedTuple):
    """How the outages of a course were told.

    Attributes:
        wrong: what is wrong with the alerts for good; empty when each outage was told once, and its end once.
        open: what is still to be told.
    """

    wrong: list[str]
    open: list[str]


def judge_alerts(moments: Iterable[Moment]) -> AlertVerdict:
    """Return how each outage was told.

    An outage begins when a process is hit, or with an alert (one that hangs is noticed, not hit), and ends with the
    alert that says so. A process that is hit again before that is still the same outage.
    """
    wrong = []
    hit: dict[str, float] = {}
    perhaps: set[str] = set()
    begun: dict[str, float] = {}
    for at, kind, subject in sorted(moments):
        if kind == "hit":
            hit.setdefault(subject, at)
        elif kind == "perhaps":
            perhaps.add(subject)
        elif kind == "begin":
            if subject in begun:
                wrong.append(f"{subject}: the outage of {begun[subject]:.0f} s was told again at {at:.0f} s")
            begun.setdefault(subject, at)
        else:
            if kind == "both" and subject in begun:
                wrong.append(
                    f"{subject}: the outage of {begun[subject]:.0f} s was told twice, the second time at {at:.0f} s"
                )
            if kind == "end" and subject not in begun and subject not in perhaps:
                wrong.append(f"{subject}: the end of an outage was told at {at:.0f} s, but never its beginning")
            hit.pop(subject, None)
            begun.pop(subject, None)
            perhaps.discard(subject)
    still = [f"{subject}: the end of the outage of {at:.0f} s was never told" for subject, at in begun.items()]
    still += [
        f"{subject}: hit at {at:.0f} s, which was never told" for subject, at in hit.items() if subject not in begun
    ]
    return AlertVerdict(wrong, still)


def wrongly_ended(unhealthy: Sequence[tuple[float, float]], moments: Sequence[Moment]) -> list[str]:
    """Return what is wrong with the spans in which health said that something is down; empty when nothing is.

    Each longer than the shortest recovery time objective must have been told, and none may exceed the longest.
    """
    wrong = []
    alerts = [moment.at for moment in moments if moment.kind not in ("hit", "perhaps")]
    for began, ended in unhealthy:
        length = ended - began
        if length > _SHORTEST and not any(began <= at <= ended + _TOLD_WITHIN for at in alerts):
            wrong.append(f"the outage from {began:.0f} to {ended:.0f} s was never told")
        if length > _LONGEST:
            wrong.append(f"the outage from {began:.0f} to {ended:.0f} s was longer than any recovery time objective")
    return wrong


def first_bars(settings: Settings, symbols: Iterable[str]) -> dict[Series, datetime]:
    """Return the start of the first bar of each series that is fetched, of those that have one."""
    from market_data_pipeline.store.bars import extent
    from market_data_pipeline.store.copy import StoreConnection

    with StoreConnection(settings.database_url) as held:
        fetched = [Series(symbol, timeframe) for symbol in symbols for timeframe in (Timeframe.M5, Timeframe.D1)]
        return {series: first for series in fetched if (first := extent(held, series)["first_ts"]) is not None}


def differing_bars(settings: Settings, since: Mapping[Series, datetime]) -> list[str]:
    """Return what is wrong with series whose stored bars are not those that the vendor answers, bar by bar.

    The vendor is a sandbox, which answers the same again.

    Args:
        settings: of the project.
        since: the series, and from which bar on; the last one that is stored is left out, because it may still change.
    """
    import pandas as pd

    from market_data_pipeline.ingest.pipeline import build_client
    from market_data_pipeline.ingest.source import named_vendor
    from market_data_pipeline.store.bars import extent, read_bars
    from market_data_pipeline.store.copy import StoreConnection

    wrong = []
    with (
        closing(build_client(settings, named_vendor(settings))) as client,
        StoreConnection(settings.database_url) as held,
    ):
        for series, first in since.items():
            last = extent(held, series)["last_ts"] or first
            stored = read_bars(held, series, first, last)
            answered = (
                client.bars(series.symbol, series.timeframe, Interval(first, last)).bars if last > first else stored
            )
            if stored.empty or not stored.equals(answered):
                rows = pd.concat([stored, answered]).drop_duplicates(keep=False)
                name = f"{series.symbol}|{series.timeframe}"
                wrong.append(f"{name}: {len(rows)} rows of {len(stored)} differ from the vendor's")
    return wrong
