"""Which base bars a coarser series is made of now, in hand where they can be, read where they must be.

The last coarse bar waits while the end of its span may be missing: a vendor that falls silent at half past leaves an
hour that looks whole. It is made as soon as a later base bar shows that nothing more comes before, or the silence is no
longer than this symbol's usual ones, or the day has settled. One that is held already is kept equal to its base.

Add here: how a resampled series keeps step with its base. Keep out: the making of a bar (domain.resample).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.ingest.features import BEGINNING, instant
from market_data_pipeline.store.bars import read_bars

if TYPE_CHECKING:
    import pandas as pd

    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch import Harvest
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState

_END: Final = datetime(2100, 1, 1, tzinfo=UTC)


def coarser(
    connection: StoreConnection,
    series: Series,
    state: SeriesState,
    held: SeriesState,
    answer: Harvest,
    timing: Timing,
    *,
    in_step: bool,
    tally: Tally,
) -> tuple[pd.DataFrame, tuple[Interval, ...]]:
    """Return the coarser bars that are to be held now, and the spans for which that is all of them.

    Args:
        connection: a transaction that sees the base as it is stored now.
        series: a resampled series.
        state: what is held of it.
        held: what is held of its base now, `answer` included.
        answer: what was fetched for the base just now.
        timing: calendar, plan and the instant it is now.
        in_step: whether the series was made of all that the base held before `answer`.
        tally: counts the time.
    """
    base = answer.base
    if in_step and answer.spans:
        source, spans = answer.bars, answer.spans
    elif not in_step or state.next_due_at is None or state.next_due_at <= timing.now:
        # An earlier execution ended between the base's commit and this one's, or a bucket ended after its last base
        # bar came: what is stored tells.
        since = timing.calendar.midnight(timing.calendar.session_date(state.last_ts)) if state.last_ts else BEGINNING
        start = since if in_step else BEGINNING
        with tally.storing():
            source = read_bars(connection, base, start, _END)
        spans = (Interval(start, timing.now),) if start < timing.now else ()
    else:
        return bar_frames.empty(), ()
    with tally.computing():
        made = _over(series, source, timing)
        waiting = len(made) and _waits(series, instant(bar_frames.ts_us(made)[-1]), state, held, answer, timing)
        return made.iloc[:-1] if waiting else made, spans


def _over(series: Series, source: pd.DataFrame, timing: Timing) -> pd.DataFrame:
    """Return the resampled bars whose whole span is over and served."""
    from market_data_pipeline.domain.resample import resample

    made = resample(source, series.timeframe, timing.calendar)
    starts = bar_frames.ts_us(made)
    count = len(starts)
    while count and timing.available_at(instant(starts[count - 1]) + series.timeframe.span) > timing.now:
        count -= 1
    return made.iloc[:count]


def _waits(
    series: Series, start: datetime, state: SeriesState, held: SeriesState, answer: Harvest, timing: Timing
) -> bool:
    """Return whether base bars may still come for the coarse bar that starts at `start`, the last one made."""
    if held.last_ts is None or (state.last_ts is not None and start <= state.last_ts):
        return False
    day = timing.calendar.session_date(start)
    session, known = timing.calendar.session_on(day), answer.days().get(day)
    end = start + series.timeframe.span
    if session is None or (known is not None and known.status.final):
        return False
    silence = min(end, session.end) - (held.last_ts + answer.base.timeframe.span)
    return silence > held.quiet_slots * answer.base.timeframe.span
