"""Fetch one request window of a plan, and find the session days about which the vendor's answer cannot be believed.

A fault in what arrived is requested once more before it counts: the spoilt days alone, or, where the answer as a whole
cannot be believed, the window. A window that cannot be believed twice is halved as long as one half can, so that a
fault that names no day still costs no other day. Days that were refused before are not requested twice.

Keep out: what a bad row is (polygon.bad_rows) and what becomes of a refused day (coverage).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.counters import NOTHING
from market_data_pipeline.domain.errors import DataError, PipelineError
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
    except DataError as error:
        failure = error
        if unheard_of(sessions):
            try:
                return ask(sessions)
            except DataError as again:
                failure = again
        return _halved(ask, sessions, failure)
    except PipelineError as error:
        if error.stops_run or unheard_of(sessions):
            raise
        return _refusing(sessions, error)  # refused before, and no answer now: no reason to fail the other windows
    spoilt = unheard_of([session for session in sessions if session.date in answer.refused])
    for part in _neighbours(spoilt, sessions):
        answer = _replaced(answer, _or_refused(ask, part, answer.refused))
    return answer


def _interval(session: Session, base: Timeframe) -> Interval:
    daily = base is Timeframe.D1
    return Interval(session.day_start, session.day_end) if daily else Interval(session.start, session.end)


def _neighbours(days: Sequence[Session], sessions: Sequence[Session]) -> list[list[Session]]:
    """Return `days`, some of `sessions`, in runs without another session between them."""
    runs: list[list[Session]] = []
    order = {session.date: number for number, session in enumerate(sessions)}
    for day in days:
        if runs and order[day.date] == order[runs[-1][-1].date] + 1:
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
    except DataError as error:
        return _refusing(part, error)
    except PipelineError as error:
        if error.stops_run:
            raise
        return Believed(tuple(part), bar_frames.empty(), {day.date: reasons[day.date] for day in part})


def _halved(ask: Callable[[Sequence[Session]], Believed], sessions: Sequence[Session], failure: DataError) -> Believed:
    """Return what the halves of an answer say that cannot be believed as a whole, and the halves of these."""
    if len(sessions) == 1:
        return _refusing(sessions, failure)
    middle = len(sessions) // 2
    halves: list[Believed] = []
    failures: list[tuple[Sequence[Session], DataError]] = []
    for half in (sessions[:middle], sessions[middle:]):
        try:
            halves.append(ask(half))
        except DataError as error:
            failures.append((half, error))
    if len(failures) == 1:
        halves.append(_halved(ask, *failures[0]))
    else:
        halves += [_refusing(half, error) for half, error in failures]
    answer = Believed(tuple(sessions), bar_frames.empty(), dict.fromkeys((each.date for each in sessions), ""))
    for each in halves:
        answer = _replaced(answer, each)
    return answer


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
