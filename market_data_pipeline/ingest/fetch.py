"""Send the requests of a fetch plan, and return what the vendor answered, validated.

Keep out: what to request (fetch_plan) and storing the answer (commit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import slot_start
from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.ingest.coverage import covered_days

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.intervals import Interval, Intervals
    from market_data_pipeline.ingest.fetch_plan import FetchPlan
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.store.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Answer:
    """The vendor's answer to one part of a fetch plan.

    Attributes:
        plan: what was requested.
        part: which of its parts this answers, from 0.
        bars: a bar frame, complete for every session of `spans`.
        spans: what the answer covers, in whole sessions up to the newest served bar; doubted days (ingest.coverage) are
            left out.
        coverage: of the covered days now, and of days before the plan's history.
        known: the series' coverage by session date, as it will be once this answer is stored.
        counters: what it took.
        warnings: a sentence for each day of which bars are held and the answer has none.
    """

    plan: FetchPlan
    part: int
    bars: pd.DataFrame
    spans: Intervals
    coverage: tuple[Coverage, ...]
    known: Mapping[date, Coverage]
    counters: Counters = NOTHING
    warnings: tuple[str, ...] = ()

    @property
    def is_last(self) -> bool:
        """True when no part of the plan is left to request."""
        return self.part + 1 == len(self.plan.parts)


class FetchError(Exception):
    """A fetch that failed: its cause, what it took by then, and the days that were requested."""

    def __init__(self, cause: PipelineError, counters: Counters = NOTHING, days: tuple[date, ...] = ()) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.counters = counters
        self.days = days


def fetch(
    client: PolygonClient,
    plan: FetchPlan,
    *,
    priority: int,
    part: int = 0,
    known: Mapping[date, Coverage] | None = None,
) -> Answer:
    """Request one part of a plan; nothing is sent when the part is empty.

    Args:
        client: the vendor.
        plan: what to request.
        priority: whose requests go first when runs compete.
        part: which of its parts.
        known: the coverage once the part before is stored, None for that of the plan.

    Raises:
        FetchError: a request failed; nothing of the whole part is to be stored then.
    """
    series, timing = plan.series, plan.timing
    known = plan.coverage if known is None else known
    requested = plan.parts[part]
    counters, frames = NOTHING, []
    coverage: list[Coverage] = list(plan.clamped) if part == 0 else []
    spans: list[Interval] = []
    warnings: list[str] = []
    for window in requested:
        span = window.interval
        sessions = [one for one in plan.sessions if span.start <= slot_start(series.timeframe, one, 0) < span.end]
        try:
            fetched = client.bars(series.symbol, series.timeframe, span, priority=priority)
            counters += fetched.usage
            covered = covered_days(sessions, span, fetched.bars, series, known, timing)
        except PipelineError as error:
            begin = requested[0].interval.start
            days = tuple(one.date for one in plan.days if part == 0 or slot_start(series.timeframe, one, 0) >= begin)
            raise FetchError(error, counters + getattr(error, "usage", NOTHING), days) from error
        frames.append(fetched.bars)
        spans += covered.spans
        coverage += covered.coverage
        warnings += covered.warnings
    return Answer(
        plan,
        part,
        _joined(frames),
        tuple(spans),
        tuple(coverage),
        {**known, **{day.session_date: day for day in coverage}},
        counters,
        tuple(warnings),
    )


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return bar_frames.empty()
    if len(frames) == 1:
        return frames[0]
    import pandas as pd

    return pd.concat(frames, ignore_index=True)
