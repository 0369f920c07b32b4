"""What an answer of the vendor says about each session day, and which bars a series should therefore hold.

Most of it is counting. A day with a bar that cannot be used is REFUSED: what is stored of it stays, its reason is kept,
and it is requested again, apart from the others. The other exception is a day that has stored bars but none in the
answer: either the vendor withdrew them, or the answer lost them. Such a day is DOUBTED, and stays as it is, if the
answer has bars on both sides of it, so that it was neither cut short nor clamped. A second answer without the day, at
least a quarter of an hour later and, like the first, after the day settled, confirms that it is empty, and its bars
move to `bar_revisions`. An answer with nothing where bars are stored, and nothing around them, is refused: a ticker
that the vendor lost must not empty our history.

A day's status only moves forward: an answer that says no more than an earlier one takes nothing back. Days before the
first bar that a series ever had need no second look once there is one: the symbol was not listed yet, or the vendor's
history begins there.

Keep out: which days are requested (fetch_plan) and storing (commit).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain import freshness as rules
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import slot_start, to_us
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval, normalise, subtract
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.window import Believed


# Quiet periods are judged by the last four weeks: long enough to know a thinly traded symbol, short enough to adapt.
QUIET_MEMORY: Final = timedelta(days=28)


class CoveredDays(NamedTuple):
    """What one answer says about its session days.

    Attributes:
        coverage: of every session in it.
        spans: where the stored bars must equal the answer: everywhere but on its doubted days.
        warnings: a sentence for each doubted day.
    """

    coverage: tuple[Coverage, ...]
    spans: Intervals
    warnings: tuple[str, ...]


def covered_days(
    answer: Believed, span: Interval, series: Series, known: Mapping[date, Coverage], timing: Timing
) -> CoveredDays:
    """Return what an answer says about the sessions that it covers.

    Args:
        answer: what could be believed of it.
        span: what was requested.
        series: the fetched series.
        known: its coverage before, by session date.
        timing: when it was requested.

    Raises:
        DataError: the answer has no bars for a day that has stored ones, and too few around it to be believed.
    """
    import numpy as np

    base, sessions = series.timeframe, answer.sessions
    daily = base is Timeframe.D1
    ts = ts_us(answer.bars)
    starts = np.array([to_us(slot_start(base, session, 0)) for session in sessions])
    counts = np.diff(np.append(np.searchsorted(ts, starts), len(ts))).tolist()
    filled = [at for at, rows in enumerate(counts) if rows or sessions[at].date in answer.refused]
    first, last = (filled[0], filled[-1]) if filled else (len(counts), -1)
    coverage, doubted, warnings = [], [], []
    for at, (session, rows) in enumerate(zip(sessions, counts, strict=True)):
        before = known.get(session.date)
        if (reason := answer.refused.get(session.date)) is not None:
            coverage.append(refused_day(session, reason, before, timing.now))
            doubted.append(Interval(slot_start(base, session, 0), session.day_end))
            continue
        # A day bar cannot be cut short.
        cut = not daily and at == last < len(counts) - 1
        status, kept, doubted_at = status_after(session, rows, before, timing, cut=cut), rows, None
        if not rows and before is not None and before.rows:
            lost = f"The vendor sent no {base} bar of {series.symbol} for {session.date}, for which it had sent "
            lost += f"{before.rows} before; the stored ones are kept"
            if _seen_empty(before, session, timing.now):
                status = CoverageStatus.EMPTY_CONFIRMED
            elif first < at and (at < last or daily):
                status, kept, doubted_at = CoverageStatus.PROVISIONAL, before.rows, timing.now
                doubted.append(Interval(slot_start(base, session, 0), session.day_end))
                warnings.append(f"{lost} until a second answer has none either.")
            else:
                raise DataError(f"{lost} and the next run requests the day again.")
        coverage.append(Coverage(session.date, status, kept, timing.now, doubted_at=doubted_at))
    return CoveredDays(tuple(coverage), subtract((span,), normalise(doubted)), tuple(warnings))


def refused_day(session: Session, reason: str, known: Coverage | None, now: datetime) -> Coverage:
    """Return the coverage of a day of which the vendor sent a row that cannot be used; what is stored stays."""
    rows = known.rows if known is not None else 0
    since = known.doubted_at if known is not None and known.refused else None
    status = CoverageStatus.PROVISIONAL if rows else CoverageStatus.FAILED
    return Coverage(session.date, status, rows, now, doubted_at=since or now, reason=reason)


def status_after(
    session: Session, rows: int, known: Coverage | None, timing: Timing, *, cut: bool = False
) -> CoverageStatus:
    """Return the coverage status of a session after an answer that was requested at `timing.now`.

    Args:
        session: the day.
        rows: bars that the answer has for it.
        known: its coverage before.
        timing: when the answer was requested.
        cut: the answer ends with this day although more was requested, as happens when the next page is lost.
    """
    decided = known is not None and known.status in (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED)
    if known is not None and decided and rows >= known.rows and bool(rows) == bool(known.rows):
        return known.status  # no news: an answer that is cut, or covers the day by chance, takes nothing back
    settled = settled_at(session)
    if timing.now < settled:
        return CoverageStatus.PROVISIONAL
    second_look = known is not None and known.status is CoverageStatus.PROVISIONAL and known.fetched_at >= settled
    if rows:
        return CoverageStatus.PROVISIONAL if cut and not second_look else CoverageStatus.COMPLETE
    return CoverageStatus.EMPTY_CONFIRMED if second_look else CoverageStatus.PROVISIONAL


def before_first_bar(sessions: Sequence[Session], known: Mapping[date, Coverage]) -> tuple[Coverage, ...]:
    """Return, as confirmed empty, the settled days before the first bar of a series that were found empty once.

    Args:
        sessions: the days that the series should hold, ascending.
        known: the coverage of all days, those before `sessions` included, once the latest answer is stored.
    """
    first = first_day(known)
    if first is None:
        return ()
    return tuple(
        replace(day, status=CoverageStatus.EMPTY_CONFIRMED)
        for session in sessions
        if session.date < first
        and (day := known.get(session.date)) is not None
        and day.status is CoverageStatus.PROVISIONAL
        and day.fetched_at >= settled_at(session)
    )


def first_day(known: Mapping[date, Coverage]) -> date | None:
    """Return the first day that has bars, None when no day has any."""
    return min((day for day, coverage in known.items() if coverage.rows), default=None)


def _seen_empty(known: Coverage, session: Session, now: datetime) -> bool:
    """Return whether an earlier answer found the day empty, after it had settled and long enough ago."""
    doubted = known.doubted_at
    return doubted is not None and doubted >= settled_at(session) and now >= doubted + SETTLE_AFTER


@dataclass(frozen=True, slots=True)
class ExpectedBars:
    """Which bars a series should hold, given the coverage of its days (domain.freshness has the rules).

    Attributes:
        timeframe: of the series.
        timing: when bars are available, and now.
        sessions: the days that the series should hold, ascending.
        coverage: of the fetched series behind it, as it will be once the execution is committed.
    """

    timeframe: Timeframe
    timing: Timing
    sessions: tuple[Session, ...]
    coverage: Mapping[date, Coverage]

    @property
    def now(self) -> datetime:
        """The instant of the execution, aware UTC."""
        return self.timing.now

    def quiet_slots(self, bars: pd.DataFrame) -> int:
        """Return the longest usual run of empty slots, judged by the newest of `bars`."""
        ts = ts_us(bars)
        newest = int(ts[-1]) - QUIET_MEMORY // timedelta(microseconds=1)
        return rules.quiet_slots(self.timing.calendar, self.timeframe, ts[ts.searchsorted(newest) :])

    def next_due(self, last_ts: datetime | None, quiet_slots: int) -> datetime | None:
        """Return when the first missing bar is or was due, aware UTC; None when the series should hold no day."""
        if not self.sessions:
            return None
        return rules.next_due(
            self.timing.calendar,
            self.timeframe,
            last_ts=last_ts,
            history_start=self.sessions[0].day_start,
            quiet_slots=quiet_slots,
            confirmed={day for day, known in self.coverage.items() if known.status.final},
            availability=self.timing.available_at,
            first_gap_ts=self._first_gap(last_ts),
        )

    def last_due_ts(self) -> datetime:
        """Return the start of the last slot that is due now, whether or not there was a trade in it."""
        return rules.expected_last_ts(
            self.timing.calendar, self.timeframe, now=self.now, availability=self.timing.available_at
        )

    def settled_until(self) -> datetime | None:
        """Return the midnight that begins the first day whose coverage is not final, aware UTC; None without days."""
        for session in self.sessions:
            known = self.coverage.get(session.date)
            if known is None or not known.status.final:
                return session.day_start
        return self.sessions[-1].day_end if self.sessions else None

    def _first_gap(self, last_ts: datetime | None) -> datetime | None:
        """Return the start of the earliest day before `last_ts` for which nothing is stored or confirmed.

        A day before the first bar that was found empty is no gap, even before it has settled: no bar was due then.
        """
        if last_ts is None:
            return None
        first = first_day(self.coverage)
        for session in self.sessions:
            if session.end > last_ts:
                return None
            known = self.coverage.get(session.date)
            if known is not None and known.refused:
                continue  # it is reported with its reason, and the days after it are no older for it
            empty = known is not None and not known.rows and not known.status.final
            if known is None or known.status is CoverageStatus.FAILED or (empty and first and session.date > first):
                return session.day_start if self.timeframe is Timeframe.D1 else session.start
        return None
