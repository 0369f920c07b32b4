"""The status page: how fresh every series is, and how the pipeline as a whole is doing.

Everyone sees how fresh each series is; failures and executions, whose messages are for operators, are shown only to
those who may see the admin endpoints.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.attainment import WINDOWS, rpo_attainment
from market_data_pipeline.reports.executions import execution_history
from market_data_pipeline.reports.freshness import series_freshness
from market_data_pipeline.reports.health import bar_source, scheduler_health
from market_data_pipeline.serving.pages.templates import (
    MARKS,
    UPDATE_EMPTY_EVERY,
    UPDATE_EVERY,
    clock_time,
    life_note,
    render,
    series_url,
    short_span,
    shown_status,
)
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.reports.models import (
        Attainment,
        BarSource,
        ExecutionHistory,
        SchedulerHealth,
        SeriesFreshness,
    )

EXECUTIONS: Final = 10
REASONS: Final = 10  # of failures, so that the objectives below stay in reach
OUTSIDE: Final = 12  # series outside their RPO that are named; the matrix marks all
# A table of symbols is broken into pieces that stand side by side: three fit a wide screen, and beyond 20 rows the
# column headers would scroll out of sight.
_PIECES: Final = 3
_MOST_ROWS: Final = 20
_FEWEST_ROWS: Final = 3
_ON_TIME: Final = 60  # seconds of staleness that do not count as late: a refresh is under way


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows."""

    series: list[SeriesFreshness]
    attainment: list[Attainment]
    source: BarSource | None
    health: SchedulerHealth | None  # None for readers who may not see it
    history: ExecutionHistory | None  # None also when Dagster's storage cannot be read


class Cell(NamedTuple):
    """One series in the matrix: its state, the visible text, what its name adds for screen readers, and the tooltip."""

    status: str
    url: str
    shown: str
    said: str
    title: str
    failures: int
    outside_rpo: bool


class Failing(NamedTuple):
    """Series whose last execution failed for the same reason."""

    error_class: str
    error: str
    series: list[SeriesFreshness]


def read_status(source: sa.Engine, dagster: DagsterState, *, for_operator: bool) -> Status:
    """Return what the page shows now.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    with snapshot(source) as connection:
        series = series_freshness(connection)
        if not for_operator:
            return Status(series, rpo_attainment(connection), bar_source(connection), None, None)
    health = scheduler_health(source, dagster)
    try:
        history = execution_history(source, dagster, EXECUTIONS)
    except DatabaseUnavailableError:
        history = None
    return Status(series, health.rpo_attainment, health.source, health, history)


def render_status(
    status: Status | None, now: datetime, *, wall: datetime, dagster_url: str | None = None, offer: str = ""
) -> str:
    """Return the page at `now`; `status` None means that the database cannot be reached.

    Args:
        status: what it shows.
        now: the pipeline's now, aware UTC.
        wall: the real time, which Dagster's instants follow in a replay too.
        dagster_url: the address of Dagster's UI, without a trailing slash, for links to runs; None for no links.
        offer: whether the reader may sign `in` or `out`; else empty.
    """
    series = status.series if status else []
    return render(
        "status.html",
        root="",
        now=now,
        every=UPDATE_EVERY if series else UPDATE_EMPTY_EVERY,
        wall=wall,
        status=status,
        dagster_url=dagster_url,
        offer=offer,
        counts={name: sum(shown_status(one) == name for one in series) for name in MARKS},
        within=sum(one.within_rpo for one in series),
        loaded=any(one.features_computed_at for one in series),
        failing=failing(series),
        most_reasons=REASONS,
        outside=furthest_behind(series)[:OUTSIDE],
        failing_count=sum(one.consecutive_failures > 0 for one in series),
        outside_count=sum(not one.within_rpo for one in series),
        tiers=_tiers(status) if status else [],
        timeframes=list(Timeframe),
        windows=list(WINDOWS),
    )


def failing(series: Iterable[SeriesFreshness]) -> list[Failing]:
    """Return the failing series by reason, the most frequent first: an outage is one row, not hundreds."""
    reasons: defaultdict[tuple[str, str], list[SeriesFreshness]] = defaultdict(list)
    for one in series:
        if one.consecutive_failures:
            reasons[one.last_error_class or "", one.last_error or ""].append(one)
    found = [Failing(*reason, members) for reason, members in reasons.items()]
    return sorted(found, key=lambda one: (-len(one.series), one.error_class, one.error))


def furthest_behind(series: Iterable[SeriesFreshness]) -> list[SeriesFreshness]:
    """Return the series outside their RPO, the furthest behind first; what was never computed comes before all."""
    outside = (one for one in series if not one.within_rpo)
    return sorted(
        outside, key=lambda one: (one.staleness_seconds is not None, -(one.staleness_seconds or 0), one.symbol)
    )


def _tiers(status: Status) -> list[dict[str, Any]]:
    by_tier: defaultdict[str, dict[str, dict[str, Cell]]] = defaultdict(dict)
    within: defaultdict[str, list[bool]] = defaultdict(list)
    for one in sorted(status.series, key=lambda one: one.symbol):
        by_tier[one.tier].setdefault(one.symbol, {})[one.timeframe] = _cell(one)
        within[one.tier].append(one.within_rpo)
    attainment = {(one.tier, one.window): one for one in status.attainment}
    return [
        {
            "key": str(tier),
            "name": tier.replace("_", " "),
            "objective": objective.description,
            "rpo": objective.rpo,
            "symbols": len(by_tier[tier]),
            "within": sum(within[tier]),
            "total": len(within[tier]),
            "counts": _counts(by_tier[tier]),
            "attainment": {name: attainment.get((str(tier), name)) for name in WINDOWS},
            "pieces": _pieces(list(by_tier[tier].items())),
        }
        for tier, objective in TIER_OBJECTIVES.items()
        if tier in by_tier
    ]


def _counts(rows: dict[str, dict[str, Cell]]) -> dict[str, int]:
    cells = [cell for row in rows.values() for cell in row.values()]
    return {name: sum(cell.status == name for cell in cells) for name in MARKS}


def _pieces(rows: list[Any]) -> list[list[Any]]:
    size = min(max(-(-len(rows) // _PIECES), _FEWEST_ROWS), _MOST_ROWS)
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _cell(one: SeriesFreshness) -> Cell:
    status, staleness, failures = shown_status(one), one.staleness_seconds, one.consecutive_failures
    shown: str
    if status == "NOT_EXPECTED":
        shown, said = one.life, ", no bars are expected"
    elif staleness is None:
        shown, said = "", "never computed"
    elif staleness < _ON_TIME:
        shown, said = "", "on time"
    else:
        shown, said = short_span(staleness), f" late, {status.lower()}"
    if failures:
        said += f", {failures} {'failure' if failures == 1 else 'failures'} in a row"
    if outside := not one.within_rpo:
        said += ", outside its RPO"
    details = [
        *([life_note(one)] if life_note(one) else []),
        *([f"verified {clock_time(one.verified_at)}"] if one.verified_at else []),
        *([f"next bar due {clock_time(one.next_due_at)}"] if one.next_due_at else []),
    ]
    url = series_url(one.symbol, one.timeframe)
    return Cell(status, url, shown, said, "; ".join(details), failures, outside)
