"""Fetch one request window of a plan, and find the session days about which the vendor's answer cannot be believed.

A fault in what arrived is requested once more before it counts: the spoilt days alone, or, where the answer as a whole
cannot be believed or read, the window. A window with such a fault is halved until each fault has a day of its own, so
that one that names no day still costs no other day. Days that were refused before are not requested twice.

Keep out: what a bad row is (polygon.bad_rows) and what becomes of a refused day (coverage).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.counters import NOTHING
from market_data_pipeline.domain.errors import DataError, PipelineError, UnreadableAnswerError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.ingest.fetch_plan import FetchPlan
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.polygon.request_windows import Window

_DAY: Final = timedelta(days=1)
_FAULTS: Final = (DataError, UnreadableAnswerError)  # what is asked for may be to blame

# Two faulty days of a page's 52 are found with 20 requests. After the halves and the quarters, the fault is in
# everything that the vendor sends.
_MOST_PARTS: Final = 40
_IN_VAIN: Final = 6

_MOST_ALONE: Final = 6  # two bad rows spoil no more


@dataclass(frozen=True, slots=True)
class Believed:
    """What the answer to one window says, as far as it can be believed.

    Attributes:
        sessions: those in the window, ascending.
        bars: a bar frame, without the refused days.
        refused: why the others cannot be believed, by session date.
        warnings: sentences about what was taken in although it was odd.
        outside: a bar frame of what lies in no session; None for nothing.
    """

    sessions: tuple[Session, ...]
    bars: pd.DataFrame
    refused: Mapping[date, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    outside: pd.DataFrame | None = None


def fetch_window(client: PolygonClient, plan: FetchPlan, window: Window, priority: int, tally: Tally) -> Believed:
    """Return what the vendor says about the sessions of a window.

    Args:
        client: the vendor.
        plan: what the window is part of.
        window: the request.
        priority: its place in the rate limit queue.
        tally: counts what it costs, also when it fails.

    Raises:
        PipelineError: no answer, or the request was refused. A fault in an answer is not raised: it refuses days.
    """
    base, calendar = window.timeframe, plan.timing.calendar
    first, last = (calendar.session_date(instant) for instant in window.interval)
    sessions = [
        session
        for session in calendar.sessions(first, last + _DAY)
        if window.interval.start <= _interval(session, base).start < window.interval.end
    ]

    def ask(part: Sequence[Session]) -> Believed:
        interval = Interval(_interval(part[0], base).start, min(_interval(part[-1], base).end, window.interval.end))
        try:
            fetched = client.bars(plan.series.symbol, base, interval, priority=priority)
        except PipelineError as error:
            tally.counters += getattr(error, "usage", NOTHING)
            raise
        tally.counters += fetched.usage
        return Believed(tuple(part), fetched.bars, fetched.refused, fetched.warnings, fetched.outside)

    def unheard_of(days: Sequence[Session]) -> list[Session]:
        return [day for day in days if not ((known := plan.coverage.get(day.date)) and known.refused)]

    try:
        answer = ask(sessions)
    except _FAULTS as error:
        failure: PipelineError = error
        if isinstance(error, DataError) and unheard_of(sessions):  # the client has tried again what it cannot read
            try:
                return ask(sessions)
            except _FAULTS as again:
                failure = again
        believed, refused = _halved(ask, sessions, failure)
        if not believed and isinstance(failure, UnreadableAnswerError) and unheard_of(sessions):
            raise failure from None
        answer = _refusing(sessions, failure)
        for each in (*refused, *believed):
            answer = _replaced(answer, each)
        return answer
    except PipelineError as error:
        if error.stops_run or unheard_of(sessions):
            raise
        return _refusing(sessions, error)  # refused before, and no answer now: no reason to fail the other windows
    spoilt = unheard_of([session for session in sessions if session.date in answer.refused])
    for part in _apart(spoilt, sessions):
        answer = _replaced(answer, _or_refused(ask, part, answer.refused))
    return answer


def _interval(session: Session, base: Timeframe) -> Interval:
    daily = base is Timeframe.D1
    return Interval(session.day_start, session.day_end) if daily else Interval(session.start, session.end)


def _apart(days: Sequence[Session], sessions: Sequence[Session]) -> list[list[Session]]:
    """Return `days`, some of `sessions`, one by one; where they are many, in runs without another session between them.

    A row without a usable stamp spoils its day and those beside it, which are whole when they are requested alone.
    """
    runs: list[list[Session]] = []
    order = {session.date: number for number, session in enumerate(sessions)}
    for day in days:
        if len(days) > _MOST_ALONE and runs and order[day.date] == order[runs[-1][-1].date] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return runs


def _refusing(sessions: Sequence[Session], failure: PipelineError) -> Believed:
    return Believed(tuple(sessions), bar_frames.empty(), {session.date: str(failure) for session in sessions})


def _or_refused(
    ask: Callable[[Sequence[Session]], Believed], part: Sequence[Session], reasons: Mapping[date, str]
) -> Believed:
    """Return what the vendor says about refused days; without an answer they stay refused for the same reasons."""
    try:
        return ask(part)
    except _FAULTS as error:
        return _refusing(part, error)
    except PipelineError as error:
        if error.stops_run:
            raise
        return Believed(tuple(part), bar_frames.empty(), {day.date: reasons[day.date] for day in part})


def _halved(
    ask: Callable[[Sequence[Session]], Believed], sessions: Sequence[Session], failure: PipelineError
) -> tuple[list[Believed], list[Believed]]:
    """Return what the parts of an answer say that has a fault as a whole, and the refused parts.

    A part with a fault is halved down to a day. When that takes too many requests, what is left is refused, and the
    search goes on when it is requested again.
    """
    believed: list[Believed] = []
    refused: list[Believed] = []
    faulty, asked = deque([(sessions, failure)]), 0
    while faulty:
        part, reason = faulty.popleft()
        if len(part) == 1 or asked >= (_MOST_PARTS if believed else _IN_VAIN):
            refused.append(_refusing(part, reason))
            continue
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            asked += 1
            try:
                believed.append(ask(half))
            except _FAULTS as error:
                faulty.append((half, error))
            except PipelineError as error:
                if error.stops_run:
                    raise
                refused.append(_refusing(half, reason))  # no answer at all says nothing new
    return believed, refused


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
    outside = part.outside if answer.outside is None else answer.outside
    return Believed(answer.sessions, bars, dict(sorted(refused.items())), answer.warnings + part.warnings, outside)
