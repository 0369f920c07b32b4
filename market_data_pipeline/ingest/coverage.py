"""When a series' next bar falls due, given what is known of its days.

Add here: what coverage says about `domain.due`'s questions. Keep out: the rules themselves (domain.due).

What an answer of the vendor says of each session day that it covers.

Most of it is counting. The exception is a day of which bars are held and of which the answer has none: the vendor took
them back, or the answer lost them. It is DOUBTED, and stays as it is, when the answer has bars on both sides of it, so
that it was neither cut short nor clamped; a second look that finds nothing again, a quarter of an hour or more later
and like the first one after the day settled, confirms that it is empty, and the bars go to `bar_revisions`. An answer
that has nothing where bars are held, and nothing beside it, is refused: a ticker that the vendor lost must not empty
our history.

Add here: how an answer is understood. Keep out: which days are asked for (demand), and storing (commit).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain import freshness as rules
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval, normalise, subtract
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.fetch_plan import status_after
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import Timing


# Quiet stretches are judged by the last four weeks: long enough for a thin name's habits, short enough to follow them.
QUIET_MEMORY: Final = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class Due:
    """One series' answers to `domain.due`.

    Attributes:
        timeframe: of the series.
        timing: calendar, plan and the instant it is now.
        sessions: the days that the series should hold, ascending.
        days: coverage of the fetched series behind it, as it is once the execution is committed.
    """

    timeframe: Timeframe
    timing: Timing
    sessions: tuple[Session, ...]
    days: Mapping[date, Coverage]

    @property
    def now(self) -> datetime:
        """The instant at which the execution asked what there is, aware UTC."""
        return self.timing.now

    def quiet_slots(self, bars: pd.DataFrame) -> int:
        """Return the longest usual run of empty slots, judged by the newest of `bars`."""
        ts = ts_us(bars)
        newest = int(ts[-1]) - QUIET_MEMORY // timedelta(microseconds=1)
        return rules.quiet_slots(self.timing.calendar, self.timeframe, ts[ts.searchsorted(newest) :])

    def next_due(self, last_ts: datetime | None, quiet_slots: int) -> datetime | None:
        """Return when the first bar that is missing falls, or fell, due; None when no day is wanted at all."""
        if not self.sessions:
            return None
        return rules.next_due(
            self.timing.calendar,
            self.timeframe,
            last_ts=last_ts,
            history_start=self.sessions[0].day_start,
            quiet_slots=quiet_slots,
            confirmed={day for day, known in self.days.items() if known.status.final},
            availability=self.timing.available_at,
            first_gap_ts=self._first_hole(last_ts),
        )

    def expected_last_ts(self) -> datetime:
        """Return the start of the last slot that is due now, whether or not anybody traded in it."""
        return rules.expected_last_ts(
            self.timing.calendar, self.timeframe, now=self.now, availability=self.timing.available_at
        )

    def settled_until(self) -> datetime | None:
        """Return the midnight that begins the first day not held for good, aware UTC; None when no day is wanted."""
        for session in self.sessions:
            known = self.days.get(session.date)
            if known is None or not known.status.final:
                return session.day_start
        return self.sessions[-1].day_end if self.sessions else None

    def _first_hole(self, last_ts: datetime | None) -> datetime | None:
        """Return the start of the earliest day before `last_ts` of which nothing is held or confirmed."""
        if last_ts is None:
            return None
        for session in self.sessions:
            if session.end > last_ts:
                return None
            known = self.days.get(session.date)
            if known is None or (not known.rows and not known.status.final) or known.status is CoverageStatus.FAILED:
                return session.day_start if self.timeframe is Timeframe.D1 else session.start
        return None


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
