"""Make a coarser series from its base: from the answer just fetched where that suffices, otherwise from stored bars.

The last coarse bar waits while the end of its span may still be missing: a vendor that falls silent at half past leaves
an hour that looks whole. It is made as soon as a later base bar shows that none can come before it, or the silence is
no longer than usual for this symbol, or the day has settled. One that is already stored is kept equal to its base.

Add here: how a resampled series keeps step with its base. Keep out: how one bar is made (domain.resample).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import from_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.ingest.features import BEGINNING
from market_data_pipeline.store.bars import read_bars

if TYPE_CHECKING:
    import pandas as pd

    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch import Answer
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState

_END: Final = datetime(2100, 1, 1, tzinfo=UTC)


def coarser(
    connection: StoreConnection,
    series: Series,
    state: SeriesState,
    base: SeriesState,
    answer: Answer,
    *,
    in_step: bool,
    tally: Tally,
) -> tuple[pd.DataFrame, Intervals]:
    """Return the coarser bars to store now, and the spans within which they are complete.

    Args:
        connection: a transaction that sees the base as it is stored now.
        series: a resampled series.
        state: its state.
        base: the state of its base now, `answer` included.
        answer: what was just fetched for the base.
        in_step: whether the series reflects everything that the base held before `answer`.
        tally: counts the time.
    """
    from market_data_pipeline.domain.resample import resample

    timing = answer.plan.timing
    if in_step and answer.spans:
        source, spans = answer.bars, answer.spans
    elif not in_step or state.next_due_at is None or state.next_due_at <= timing.now:
        # An earlier execution ended between the base's commit and this one's, or a bar's span ended after its last base
        # bar had arrived: the stored bars decide.
        since = timing.calendar.midnight(timing.calendar.session_date(state.last_ts)) if state.last_ts else BEGINNING
        start = since if in_step else BEGINNING
        with tally.storing():
            source = read_bars(connection, answer.plan.series, start, _END)
        spans = (Interval(start, timing.now),) if start < timing.now else ()
    else:
        return bar_frames.empty(), ()
    with tally.computing():
        made = resample(source, series.timeframe, timing.calendar)
        starts = bar_frames.ts_us(made)
        count = len(starts)
        while count and timing.available_at(from_us(starts[count - 1]) + series.timeframe.span) > timing.now:
            count -= 1  # its span is not over, or not served yet
        if count and _waits(series, from_us(starts[count - 1]), state, base, answer):
            count -= 1
        return made.iloc[:count], spans


def _waits(series: Series, start: datetime, state: SeriesState, base: SeriesState, answer: Answer) -> bool:
    """Return whether base bars may still come for the coarse bar that starts at `start`, the last one made."""
    if base.last_ts is None or (state.last_ts is not None and start <= state.last_ts):
        return False
    calendar, span = answer.plan.timing.calendar, answer.plan.series.timeframe.span
    day = calendar.session_date(start)
    session, known = calendar.session_on(day), answer.known.get(day)
    if session is None or (known is not None and known.status.final):
        return False
    silence = min(start + series.timeframe.span, session.end) - (base.last_ts + span)
    return silence > base.quiet_slots * span
