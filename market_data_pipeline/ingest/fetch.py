"""Send the requests of a fetch plan, and return the vendor's answers once they are validated.

Keep out: what to request (fetch_plan) and storing the answers (commit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import slot_start
from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.ingest.coverage import before_first_bar, covered_days
from market_data_pipeline.ingest.market import served_days

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.intervals import Intervals
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
        spans: what the answer covers, in whole sessions up to the newest served bar; doubted days (ingest.coverage) are
            left out.
        coverage: of the covered days now, and of days before the plan's history.
        known: the series' coverage by session date, as it will be once this answer is stored.
        counters: what the answer cost.
        warnings: a sentence for each day that has stored bars but none in the answer.
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
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class FailedFetch:
    """A fetch that failed: nothing of this part is stored.

    Attributes:
        cause: why it failed.
        started_at: when it was requested, aware UTC.
        counters: what it had cost by then.
        days: the session days that were requested.
    """

    cause: PipelineError
    started_at: datetime
    counters: Counters = NOTHING
    days: tuple[date, ...] = ()


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
    for number, part in enumerate(plan.parts):
        started_at, counters = clock(), NOTHING
        frames: list[pd.DataFrame] = []
        spans: Intervals = ()
        warnings: tuple[str, ...] = ()
        coverage = plan.clamped if number == 0 else ()
        try:
            for window in part:
                span = window.interval
                fetched = client.bars(plan.series.symbol, base, span, priority=priority)
                counters += fetched.usage
                sessions = [day for day in plan.sessions if span.start <= slot_start(base, day, 0) < span.end]
                covered = covered_days(sessions, span, fetched.bars, plan.series, known, plan.timing)
                frames.append(fetched.bars)
                spans += covered.spans
                coverage += covered.coverage
                warnings += covered.warnings
        except PipelineError as error:
            begin = part[0].interval.start
            failed = tuple(day.date for day in plan.days if number == 0 or slot_start(base, day, 0) >= begin)
            yield FailedFetch(error, started_at, counters + getattr(error, "usage", NOTHING), failed)
            return
        # Each day once: a day before the first bar may be one of this answer's, or of an earlier part's.
        explained = before_first_bar(plan.sessions, _with(known, coverage))
        coverage = tuple(_with({}, coverage + explained).values())
        known, is_last = _with(known, coverage), number + 1 == len(plan.parts)
        yield Answer(plan, started_at, _joined(frames), spans, coverage, known, counters, warnings, is_last)


def _with(known: Mapping[date, Coverage], coverage: tuple[Coverage, ...]) -> Mapping[date, Coverage]:
    return {**known, **{day.session_date: day for day in coverage}}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return bar_frames.empty()
    if len(frames) == 1:
        return frames[0]
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
