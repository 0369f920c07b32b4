"""What an answer of the vendor says about each session day, and which bars a series should therefore hold.

A day with a bar that cannot be used is REFUSED: what is stored of it stays, its reason is kept, and it is requested
again, apart from the others. Whether stored bars change is not decided here (doubt).

A day's status only moves forward: an answer that says no more than an earlier one takes nothing back. Days before the
first bar that a series ever had need no second look once there is one: the symbol was not listed yet, or the vendor's
history begins there.

Keep out: which days are requested (fetch_plan) and storing (commit).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain import freshness as rules
from market_data_pipeline.domain.announcements import DayStatus
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import slot_start, to_us
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval, normalise, subtract
from market_data_pipeline.domain.life import HABIT, life_of, usual_silence
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.announcements import Announcement
    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.life import LifeSince, Listing
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.window import Believed


# Quiet periods are judged by the last four weeks: long enough to know a thinly traded symbol, short enough to adapt.
QUIET_MEMORY: Final = timedelta(days=28)


class CoveredDays(NamedTuple):
    """What one answer says about its session days.

    Attributes:
        coverage: of every session in it but the undecided ones.
        spans: where the stored bars must equal the answer: everywhere but on its refused days.
        alone: the session dates, if the answer says nothing of any of them.
    """

    coverage: tuple[Coverage, ...]
    spans: Intervals
    alone: frozenset[date]


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
    """
    import numpy as np

    base, sessions = series.timeframe, answer.sessions
    daily = base is Timeframe.D1
    ts = ts_us(answer.bars)
    starts = np.array([to_us(slot_start(base, session, 0)) for session in sessions])
    counts = np.diff(np.append(np.searchsorted(ts, starts), len(ts))).tolist()
    last = max((at for at, rows in enumerate(counts) if rows or sessions[at].date in answer.refused), default=-1)
    coverage, refused = [], []
    for at, (session, rows) in enumerate(zip(sessions, counts, strict=True)):
        before = known.get(session.date)
        if (reason := answer.refused.get(session.date)) is not None:
            if session.date not in answer.undecided:
                coverage.append(refused_day(session, reason, before, timing.now))
            refused.append(Interval(slot_start(base, session, 0), session.day_end))
            continue
        cut = not daily and at == last < len(counts) - 1  # a day bar cannot be cut short
        coverage.append(Coverage(session.date, status_after(session, rows, before, timing, cut=cut), rows, timing.now))
    alone = frozenset(session.date for session in sessions) if last < 0 else frozenset()
    return CoveredDays(tuple(coverage), subtract((span,), normalise(refused)), alone)


def refused_day(session: Session, reason: str, known: Coverage | None, now: datetime) -> Coverage:
    """Return the coverage of a day of which the vendor sent a row that cannot be used; what is stored stays."""
    rows = known.rows if known is not None else 0
    status = CoverageStatus.PROVISIONAL if rows else CoverageStatus.FAILED
    since = doubted_since(session, known if known is not None and known.refused else None, now)
    return Coverage(session.date, status, rows, now, doubted_at=since, reason=reason)


def doubted_since(session: Session, known: Coverage | None, now: datetime) -> datetime:
    """Return since when the answers about a day have not been believed; once it has settled, that begins again."""
    if known is None or known.doubted_at is None or known.fetched_at < settled_at(session) <= now:
        return now
    return known.doubted_at


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


class Silence(NamedTuple):
    """What the coverage of a fetched series says about days without bars.

    Attributes:
        usual: for how many sessions in a row it usually has none.
        alone: the days since the last one with bars that are confirmed empty while others traded, ascending.
        unexplained: those days, and the ones on which no symbol traded, until they were found empty once more after
            one did: then the market was closed.
        first_day: the first day with bars; None when no day has any.
    """

    usual: int
    alone: tuple[date, ...]
    unexplained: tuple[date, ...]
    first_day: date | None

    @property
    def is_unusual(self) -> bool:
        """True when the series, and not its whole market, has been without a bar for longer than usual."""
        return len(self.alone) > self.usual


def silence_of(
    sessions: Sequence[Session], known: Mapping[date, Coverage], untraded: Mapping[date, bool] = MappingProxyType({})
) -> Silence:
    """Return what the coverage of a fetched series says about days without bars.

    Args:
        sessions: the days that it should hold, ascending.
        known: their coverage.
        untraded: days on which no symbol traded, and whether they were requested again after one did: the market was
            closed, then. Until then, it may as well be the vendor that has nothing.
    """
    looked_at = (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.PROVISIONAL)
    days = [day for session in sessions if (day := known.get(session.date)) is not None and day.status in looked_at]
    since = days[-1].session_date - HABIT if days else None
    usual = usual_silence(day.rows > 0 for day in days if since is None or day.session_date >= since)
    last = max((day for day, coverage in known.items() if coverage.rows), default=None)
    empty = [
        day.session_date
        for day in days
        if day.status is CoverageStatus.EMPTY_CONFIRMED and (last is None or day.session_date > last)
    ]
    return Silence(
        usual,
        alone=tuple(day for day in empty if day not in untraded),
        unexplained=tuple(day for day in empty if not untraded.get(day, False)),
        first_day=first_day(known),
    )


@dataclass(frozen=True, slots=True)
class ExpectedBars:
    """Which bars a series should hold, given the coverage of its days (domain.freshness has the rules).

    Attributes:
        timeframe: of the series.
        timing: when bars are available, and now.
        sessions: the days that the series should hold, ascending.
        coverage: of the fetched series behind it, as it will be once the execution is committed.
        silence: what that coverage says about days without bars.
        listing: what the vendor's reference data say of the symbol; None when they were not needed.
        overdue: whether a bar is due for longer than the vendor's reference data wait, while others trade.
        base_last_ts: start of the newest 5m bar, for a series that is made of them.
        announced: what the vendor says of the market's days, by session date.
    """

    timeframe: Timeframe
    timing: Timing
    sessions: tuple[Session, ...]
    coverage: Mapping[date, Coverage]
    silence: Silence
    listing: Listing | None = None
    overdue: bool = False
    base_last_ts: datetime | None = None
    announced: Mapping[date, Announcement] = field(default_factory=dict)

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
        usual, empty = self.silence.usual, self.silence.unexplained if last_ts is not None else ()
        # What exceeds the usual silence stays missing, although each of its days is confirmed to be empty.
        unusual = set(empty[usual:])
        explained, announced = self._last_explained(last_ts), self._announced_days(last_ts)
        return rules.next_due(
            self.timing.calendar,
            self.timeframe,
            last_ts=explained,
            history_start=self.sessions[0].day_start,
            quiet_slots=quiet_slots,
            confirmed=announced
            | {day for day, known in self.coverage.items() if known.status.final and day not in unusual},
            availability=self.timing.available_at,
            first_gap_ts=self._first_gap(explained, announced),
            quiet_sessions=max(usual - len(empty), 0) if last_ts is not None else 0,
        )

    def _last_explained(self, last_ts: datetime | None) -> datetime | None:
        """Return the instant up to which a series lacks nothing.

        A coarse slot before the one of the newest 5m bar is held, or there was no trade in it: it will not come.
        """
        if self.base_last_ts is None or last_ts is None:
            return last_ts
        session = self.timing.calendar.session_on(self.timing.calendar.session_date(self.base_last_ts))
        if session is None:
            return last_ts
        slot = (self.base_last_ts - slot_start(self.timeframe, session, 0)) // self.timeframe.span
        return max(last_ts, slot_start(self.timeframe, session, slot) - timedelta(microseconds=1))

    def life_of(self, last_ts: datetime | None) -> LifeSince:
        """Return the life of the series, whose last bar starts at `last_ts`, and since when."""
        silent = last_ts is None or self.silence.is_unusual
        return life_of(last_ts, self.listing, overdue=self.overdue, silent=silent)

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

    def _announced_days(self, last_ts: datetime | None) -> frozenset[date]:
        """Return the days of which no more bars are expected, as the vendor announced; not those that have bars."""
        last_ts = self.base_last_ts or last_ts
        return frozenset(
            day
            for day, said in self.announced.items()
            if said.explains(self.now, last_ts)
            and (said.status is DayStatus.CLOSED) != bool((known := self.coverage.get(day)) and known.rows)
            and not (said.status is DayStatus.EARLY_CLOSE and self.timeframe is Timeframe.D1)
        )

    def _first_gap(self, last_ts: datetime | None, announced: frozenset[date]) -> datetime | None:
        """Return the start of the earliest day before `last_ts` for which nothing is stored, confirmed or announced.

        A day before the first bar that was found empty is no gap, even before it has settled: no bar was due then. Nor
        are as many empty days in a row as the series usually has.
        """
        if last_ts is None:
            return None
        first, run = self.silence.first_day, 0
        for session in self.sessions:
            if session.end > last_ts:
                return None
            known = self.coverage.get(session.date)
            if session.date in announced or (known is not None and known.refused):
                continue  # a refused day is reported with its reason, and the days after it are no older for it
            run = run + 1 if known is not None and not known.rows else 0
            unusual = run > self.silence.usual and first is not None and session.date > first
            if known is None or known.status is CoverageStatus.FAILED or (unusual and not known.status.final):
                return session.day_start if self.timeframe is Timeframe.D1 else session.start
        return None
