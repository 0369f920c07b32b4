"""Send the requests of a fetch plan, and return the vendor's answers once they are validated.

A session day with a bar that cannot be used is refused, with the reason, and the other days of the answer come in. Only
an execution that can take in nothing, although days after the last stored bar were requested, has failed.

Keep out: what to request (fetch_plan) and storing the answers (commit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import slot_start
from market_data_pipeline.domain.counters import NOTHING, Counters, Tally
from market_data_pipeline.domain.errors import DataError, PipelineError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.ingest.coverage import before_first_bar, covered_days
from market_data_pipeline.ingest.doubt import at_plans_edge
from market_data_pipeline.ingest.market import served_days
from market_data_pipeline.ingest.window import fetch_window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import FetchPlan
    from market_data_pipeline.ingest.market import MarketDay
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.store.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Answer:
    """The vendor's answer to a fetch plan, or to one part of it.

    Attributes:
        plan: what was requested.
        started_at: when it was requested, aware UTC.
        bars: a bar frame, complete for every session of `spans`.
        spans: what the answer covers, in whole sessions up to the newest served bar; refused days and doubted ones
            (ingest.doubt) are left out.
        coverage: of the covered days now, and of days before the plan's history.
        known: the series' coverage by session date, as it will be once this answer is stored.
        counters: what the answer cost.
        warnings: sentences about the refused and the doubted days, and about what else was odd.
        alone: session dates of windows without any bar, about which a bar of another day says nothing.
        outside: a bar frame of what lies in no session, which is not part of the series; None for nothing.
        is_last: no part of the plan is left to request.
    """

    plan: FetchPlan
    started_at: datetime
    bars: pd.DataFrame
    spans: Intervals
    coverage: tuple[Coverage, ...]
    known: Mapping[date, Coverage]
    counters: Counters = NOTHING
    warnings: tuple[str, ...] = ()
    alone: frozenset[date] = frozenset()
    outside: pd.DataFrame | None = None
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class FailedFetch:
    """A fetch that failed: nothing of this part is stored.

    Attributes:
        cause: why it failed.
        started_at: when it was requested, aware UTC.
        counters: what it had cost by then.
        days: the session days that were requested.
        coverage: of the days that were refused.
    """

    cause: PipelineError
    started_at: datetime
    counters: Counters = NOTHING
    days: tuple[date, ...] = ()
    coverage: tuple[Coverage, ...] = ()


def fetch(
    client: PolygonClient,
    plan: FetchPlan,
    market_days: Mapping[date, MarketDay],
    *,
    priority: int,
    clock: Callable[[], datetime],
) -> Iterator[Answer | FailedFetch]:
    """Yield the answers to a plan's parts, requesting each when the caller takes it; a failure is the last item.

    Args:
        client: the vendor.
        plan: what to request; when that is nothing, one answer without bars is yielded.
        market_days: day bars of the whole market. When they serve the plan, nothing is requested.
        priority: the place of the requests in the rate limit queue; the lowest goes first.
        clock: returns the current instant, aware UTC.
    """
    served = served_days(plan, market_days)
    if served is not None:
        coverage = (*plan.clamped, *served.coverage)
        days = tuple(Interval(session.day_start, session.day_end) for session in plan.days)
        yield Answer(plan, clock(), served.bars, days, coverage, _with(plan.coverage, coverage))
        return
    base, known = plan.series.timeframe, plan.coverage
    taken = not plan.windows
    for number, part in enumerate(plan.parts):
        started_at, tally = clock(), Tally()
        frames: list[pd.DataFrame] = []
        outside: list[pd.DataFrame] = []
        spans: Intervals = ()
        warnings: tuple[str, ...] = ()
        coverage = plan.clamped if number == 0 else ()
        refused: dict[date, str] = {}
        alone: frozenset[date] = frozenset()
        try:
            for window in part:
                believed = fetch_window(client, plan, window, priority, tally)
                covered = covered_days(believed, window.interval, plan.series, known, plan.timing)
                taken = taken or len(believed.refused) < len(believed.sessions)
                frames.append(believed.bars)
                outside += [believed.outside] if believed.outside is not None else []
                spans += covered.spans
                coverage += covered.coverage
                warnings += believed.warnings
                alone |= covered.alone
                refused |= believed.refused
        except PipelineError as error:
            begin = part[0].interval.start
            failed = tuple(day.date for day in plan.days if number == 0 or slot_start(base, day, 0) >= begin)
            yield FailedFetch(error, started_at, tally.counters, failed)
            return
        # Each day once: a day before the first bar may be one of this answer's, or of an earlier part's.
        explained = before_first_bar(plan.sessions, _with(known, coverage))
        coverage = tuple(_with({}, coverage + explained).values())
        tally.counters += Counters(days_refused=len(refused))
        if (lost := _lost_days(alone, plan)) and not any(map(len, frames)):
            yield FailedFetch(DataError(_loss(plan, lost)), started_at, tally.counters, tuple(sorted(alone)))
            return
        known, is_last = _with(known, coverage), number + 1 == len(plan.parts)
        if is_last and not taken and _are_missing(refused, plan):
            yield FailedFetch(DataError(refusal(plan.series, refused)), started_at, tally.counters, (), coverage)
            return
        warnings = ((refusal(plan.series, refused),) if refused else ()) + warnings
        yield Answer(
            plan,
            started_at,
            _joined(frames),
            spans,
            coverage,
            known,
            tally.counters,
            warnings,
            alone,
            _joined(outside),
            is_last,
        )


def refusal(series: Series, refused: Mapping[date, str]) -> str:
    """Return a sentence about the days whose answer was refused."""
    days = sorted(refused)
    what = f"{days[0]}" if len(days) == 1 else f"{len(days)} days from {days[0]} to {days[-1]}"
    reason = refused[days[0]].rstrip(".")
    return (
        f"{series.symbol} {series.timeframe}: what the vendor sent for {what} is refused ({reason}). "
        "It is requested again automatically."
    )


def _lost_days(days: Collection[date], plan: FetchPlan) -> list[date]:
    """Return those of `days` that have settled with bars that are stored, and that the plan of the vendor reaches."""
    calendar = plan.timing.calendar
    return [
        day
        for day in sorted(days)
        if (known := plan.coverage.get(day)) is not None
        and known.rows
        and (session := calendar.session_on(day)) is not None
        and known.fetched_at >= settled_at(session)
        and not at_plans_edge(session, plan)
    ]


def _loss(plan: FetchPlan, lost: Sequence[date]) -> str:
    """Return a sentence about stored days of which an answer without any bar says nothing."""
    more = f" and {len(lost) - 1} more days" if len(lost) > 1 else ""
    return (
        f"The vendor sent no {plan.series.timeframe} bar of {plan.series.symbol} for {lost[0]}{more}, "
        f"for which it had sent {plan.coverage[lost[0]].rows} before; the stored ones are kept "
        "and the next run requests them again."
    )


def _are_missing(refused: Mapping[date, str], plan: FetchPlan) -> bool:
    """Return whether a refused day comes after the last stored bar, so that the series is not up to date without it."""
    held = None if plan.last_ts is None else plan.timing.calendar.session_date(plan.last_ts)
    return any(held is None or day > held for day in refused)


def _with(known: Mapping[date, Coverage], coverage: tuple[Coverage, ...]) -> Mapping[date, Coverage]:
    return {**known, **{day.session_date: day for day in coverage}}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return bar_frames.empty()
    if len(frames) == 1:
        return frames[0]
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
