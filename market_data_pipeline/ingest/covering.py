"""What an answer of the vendor says of each session day that it covers.

Most of it is counting. The exception is a day of which bars are held and of which the answer has none: the vendor took
them back, or the answer lost them. It is DOUBTED, and stays as it is, when the answer has bars on both sides of it, so
that it was neither cut short nor clamped; a second look that finds nothing again, a quarter of an hour or more later
and like the first one after the day settled, confirms that it is empty, and the bars go to `bar_revisions`. An answer
that has nothing where bars are held, and nothing beside it, is refused: a ticker that the vendor lost must not empty
our history.

Add here: how an answer is understood. Keep out: which days are asked for (demand), and storing (commit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.due import settled_at
from market_data_pipeline.domain.failures import DataError
from market_data_pipeline.domain.instants import to_us
from market_data_pipeline.domain.intervals import Interval, normalise, subtract
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.demand import status_after
from market_data_pipeline.store.ledger import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.domain.sessions import Session
    from market_data_pipeline.ingest.demand import Timing


class Covering(NamedTuple):
    """What one answer says.

    Attributes:
        coverage: of every session that it covers.
        spans: the stretches that stored bars have to equal it in: all that it covers but its doubted days.
        doubts: a sentence for each doubted day.
    """

    coverage: tuple[Coverage, ...]
    spans: Intervals
    doubts: tuple[str, ...]


def covering(
    covered: Sequence[Session],
    span: Interval,
    bars: pd.DataFrame,
    base: Series,
    held: Mapping[date, Coverage],
    timing: Timing,
) -> Covering:
    """Return what an answer says of the sessions that it covers.

    Args:
        covered: those that start in `span`, ascending.
        span: what was asked for.
        bars: the answer, a bar frame.
        base: the fetched series.
        held: coverage as it was known before.
        timing: when it was asked.

    Raises:
        DataError: the answer lacks a day of which bars are held, and has none beside it.
    """
    import numpy as np

    daily = base.timeframe is Timeframe.D1
    ts = ts_us(bars)
    starts = np.array([to_us(start_of(session, base)) for session in covered])
    counts = np.diff(np.append(np.searchsorted(ts, starts), len(ts))).tolist()
    filled = [at for at, rows in enumerate(counts) if rows]
    first, last = (filled[0], filled[-1]) if filled else (len(counts), -1)
    coverage, doubtful, doubts = [], [], []
    for at, (session, rows) in enumerate(zip(covered, counts, strict=True)):
        known = held.get(session.date)
        # Of a day bar nothing can be cut off.
        cut = not daily and at == last < len(counts) - 1
        status, kept, doubted_at = status_after(session, rows, known, timing, cut=cut), rows, None
        if not rows and known is not None and known.rows:
            lost = f"The vendor gave no {base.timeframe} bar of {base.symbol} for {session.date}, where it gave "
            lost += f"{known.rows} before; the stored ones are kept"
            if _seen_empty(known, session, timing.now):
                status = CoverageStatus.EMPTY_CONFIRMED
            elif first < at and (at < last or daily):
                status, kept, doubted_at = CoverageStatus.PROVISIONAL, known.rows, timing.now
                doubtful.append(_stretch(session, base))
                doubts.append(f"{lost} until a second look finds none again.")
            else:
                raise DataError(f"{lost} and the day is asked for again by the next run.")
        coverage.append(Coverage(session.date, status, kept, timing.now, doubted_at=doubted_at))
    return Covering(tuple(coverage), subtract((span,), normalise(doubtful)), tuple(doubts))


def start_of(session: Session, base: Series) -> datetime:
    """Return the first instant of a session for a fetched series."""
    return session.day_start if base.timeframe is Timeframe.D1 else session.start


def _stretch(session: Session, base: Series) -> Interval:
    return Interval(start_of(session, base), session.day_end)


def _seen_empty(known: Coverage, session: Session, now: datetime) -> bool:
    """Return whether an earlier answer found the day empty, after it had settled and long enough ago."""
    doubted = known.doubted_at
    return doubted is not None and doubted >= settled_at(session) and now >= doubted + SETTLE_AFTER
