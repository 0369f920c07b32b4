"""Fetch one request window of a plan, and find the session days about which the vendor's answer cannot be believed.

A fault in what arrived is requested once more before it counts: the spoilt days alone, or, where the answer as a whole
cannot be believed, the window. A window with such a fault, or of which no answer can be had or read, is halved until
each fault has a day of its own, so that one that names no day still costs no other day. That the vendor does not answer
at all is told apart by requests for other days: if none of them is answered either, it is an outage, and the window has
failed. Days that were refused before are not requested twice.

Keep out: what a bad row is (polygon.bad_rows) and what becomes of a refused day (coverage).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.counters import NOTHING
from market_data_pipeline.domain.errors import DataError, PipelineError, UnansweredError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.ingest.fetch_plan import FetchPlan
    from market_data_pipeline.polygon.client import BarSource
    from market_data_pipeline.polygon.request_windows import Window

_DAY: Final = timedelta(days=1)
_FAULTS: Final = (DataError, UnansweredError)  # what is asked for may be to blame

# Two faulty days of a page's 52 are found with 20 requests. After six in vain, the halves and the quarters of a window
# or six days alone, the fault is in everything that the vendor sends.
_MOST_PARTS: Final = 40
_IN_VAIN: Final = 6

# A part of a window that was not answered five times, and the days that tell that from an outage: one more attempt
# only, in case the first one met another fault.
_ATTEMPTS_AGAIN: Final = 2
_OTHER_DAYS: Final = 2


@dataclass(frozen=True, slots=True)
class Believed:
    """What the answer to one window says, as far as it can be believed.

    Attributes:
        sessions: those in the window, ascending.
        bars: a bar frame, without the refused days.
        refused: why the others cannot be believed, by session date.
        warnings: sentences about what was taken in although it was odd.
        outside: a bar frame of what lies in no session; None for nothing.
        undecided: those refused days that would have to be requested alone before it counts, which the next refresh
            does.
        files: for the days that came from a flat file, the id of its version.
    """

    sessions: tuple[Session, ...]
    bars: pd.DataFrame
    refused: Mapping[date, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    outside: pd.DataFrame | None = None
    undecided: frozenset[date] = frozenset()
    files: Mapping[date, int] = field(default_factory=dict)


def fetch_window(client: BarSource, plan: FetchPlan, window: Window, priority: int, tally: Tally) -> Believed:
    """Return what the vendor says about the sessions of a window.

    Args:
        client: the vendor.
        plan: what the window is part of.
        window: the request.
        priority: its place in the rate limit queue.
        tally: counts what it costs, also when it fails.

    Raises:
        PipelineError: no answer, or the request was refused. A fault in an answer, or one that the vendor meets at
            certain days, is not raised: it refuses days.
    """
    return _WindowFetch(client, plan, window, priority, tally).believed()


class _WindowFetch:
    """The requests for one window."""

    def __init__(self, client: BarSource, plan: FetchPlan, window: Window, priority: int, tally: Tally) -> None:
        self.client, self.plan, self.window, self.priority, self.tally = client, plan, window, priority, tally
        self.base, self.calendar = window.timeframe, plan.timing.calendar
        first, last = (self.calendar.session_date(instant) for instant in window.interval)
        self.sessions = [
            session
            for session in self.calendar.sessions(first, last + _DAY)
            if window.interval.start <= self._interval(session).start < window.interval.end
        ]

    def believed(self) -> Believed:
        """Return what `fetch_window` does."""
        try:
            answer = self._ask(self.sessions)
        except PipelineError as error:
            if error.stops_run:
                raise
            return self._without_answer(error)
        return self._spoilt_days_alone(answer)

    def _interval(self, session: Session) -> Interval:
        daily = self.base is Timeframe.D1
        return Interval(session.day_start, session.day_end) if daily else Interval(session.start, session.end)

    def _ask(self, part: Sequence[Session], most_attempts: int | None = None) -> Believed:
        end = self._interval(part[-1]).end
        if part[-1] in self.sessions:
            end = min(end, self.window.interval.end)  # which may be the newest bar that is served
        interval = Interval(self._interval(part[0]).start, end)
        ticker = self.plan.ticker_on(part[0])
        try:
            fetched = self.client.bars(ticker, self.base, interval, priority=self.priority, most_attempts=most_attempts)
        except PipelineError as error:
            self.tally.counters += getattr(error, "usage", NOTHING)
            raise
        self.tally.counters += fetched.usage
        return Believed(
            tuple(part), fetched.bars, fetched.refused, fetched.warnings, fetched.outside, files=fetched.files
        )

    def _unheard_of(self, days: Sequence[Session]) -> list[Session]:
        """Return those of `days` that were not refused before."""
        return [day for day in days if not self._was_refused(day.date)]

    def _was_refused(self, day: date) -> bool:
        known = self.plan.coverage.get(day)
        return known is not None and known.refused

    def _without_answer(self, failure: PipelineError) -> Believed:
        """Return what can be said of a window to which there is no answer that can be believed as a whole."""
        unheard_of = self._unheard_of(self.sessions)
        if isinstance(failure, DataError) and unheard_of:  # the client has tried again what it cannot read
            try:
                answer = self._ask(self.sessions)
            except _FAULTS as again:
                failure = again
            else:
                return self._spoilt_days_alone(answer)
        if not self._concerns_days(failure):
            if unheard_of:
                raise failure
            return _refusing(self.sessions, failure)  # no answer again: no reason to fail the other windows
        answer = _refusing(self.sessions, failure)
        for each in self._halved(failure):
            answer = _replaced(answer, each)
        return answer

    def _concerns_days(self, failure: PipelineError) -> bool:
        """Return whether certain days of the window may be to blame: the vendor answers about another day."""
        if isinstance(failure, DataError):
            return True
        return isinstance(failure, UnansweredError) and any(map(self._is_answered, self._other_days()))

    def _other_days(self) -> Sequence[Session]:
        """Return days that tell an outage from a fault of certain days: the window's last one, and some before it."""
        found = [self.sessions[-1]] if len(self.sessions) > 1 else []
        before = self.sessions[0]
        while len(found) < _OTHER_DAYS:
            before = self.calendar.previous_session(before.date)
            if self.plan.oldest is not None and before.date < self.plan.oldest:
                return [*found, self.sessions[0]] if found else []
            if not self._was_refused(before.date):
                found.append(before)
        return found

    def _is_answered(self, day: Session) -> bool:
        try:
            self._ask([day], _ATTEMPTS_AGAIN)
        except UnansweredError:
            return False
        except PipelineError as error:
            if error.stops_run:
                raise
            return isinstance(error, DataError)
        return True

    def _halved(self, failure: PipelineError) -> Iterator[Believed]:
        """Yield what the parts of the window say; a part with a fault is halved down to a day.

        When that takes too many requests, what is left is refused, and the search goes on when it is requested again.
        """
        attempts = _ATTEMPTS_AGAIN if isinstance(failure, UnansweredError) else None
        faulty, asked, most = deque([(self.sessions, failure)]), 0, _IN_VAIN
        while faulty:
            part, reason = faulty.popleft()
            if len(part) == 1 or asked >= most:
                yield _refusing(part, reason)
                continue
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                asked += 1
                try:
                    answer = self._ask(half, attempts)
                except _FAULTS as error:
                    faulty.append((half, error))
                except PipelineError as error:
                    if error.stops_run:
                        raise
                    yield _refusing(half, reason)  # no answer at all says nothing new
                else:
                    most = _MOST_PARTS
                    yield answer

    def _spoilt_days_alone(self, answer: Believed) -> Believed:
        """Return the answer with its spoilt days as they are when each of them is requested alone.

        A row without a usable stamp spoils its day and those beside it, which are whole when they are requested alone.
        """
        spoilt = self._unheard_of([session for session in self.sessions if session.date in answer.refused])
        helped = False
        for asked, day in enumerate(spoilt):
            if asked >= (_MOST_PARTS if helped else _IN_VAIN):
                # Where each day has a fault of its own, those that are left have one, too.
                rest = frozenset(each.date for each in spoilt[asked:] if helped)
                return replace(answer, undecided=rest)
            alone = self._or_refused(day, answer.refused[day.date])
            helped = helped or not alone.refused
            answer = _replaced(answer, alone)
        return answer

    def _or_refused(self, day: Session, reason: str) -> Believed:
        """Return what the vendor says about a refused day; without an answer it stays refused for the same reason."""
        try:
            return self._ask([day])
        except DataError as error:
            return _refusing([day], error)
        except PipelineError as error:
            if error.stops_run:
                raise
            return Believed((day,), bar_frames.empty(), {day.date: reason})


def _refusing(sessions: Sequence[Session], failure: PipelineError) -> Believed:
    return Believed(tuple(sessions), bar_frames.empty(), {session.date: str(failure) for session in sessions})


def _replaced(answer: Believed, part: Believed) -> Believed:
    """Return the answer with what it says about the days of `part`, all of them refused, replaced by `part`."""
    import pandas as pd

    dates = {session.date for session in part.sessions}
    bars = answer.bars
    if len(part.bars):
        at = int(ts_us(bars).searchsorted(ts_us(part.bars)[0]))
        bars = pd.concat([bars[:at], part.bars, bars[at:]], ignore_index=True) if len(bars) else part.bars
    refused = {day: reason for day, reason in answer.refused.items() if day not in dates}
    refused |= {day: reason for day, reason in part.refused.items() if day in dates}
    apart = [each for each in (answer.outside, part.outside) if each is not None]
    outside = pd.concat(apart, ignore_index=True).drop_duplicates("ts", ignore_index=True) if apart else None
    files = {**answer.files, **part.files}
    return Believed(
        answer.sessions, bars, dict(sorted(refused.items())), answer.warnings + part.warnings, outside, files=files
    )
