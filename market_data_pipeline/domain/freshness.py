"""When a bar is due, and how stale a series without it is.

A bar is DUE `DUE_GRACE` after the vendor starts to serve it. A series' NEXT DUE instant, past or future, is when the
first bar that it should have but does not is due; its STALENESS is how long ago that was, 0 while it is in the future.
Not every slot has a bar, because a symbol may not trade in it. Hence:

- a session that the vendor confirmed (complete, empty or before the plan's history) has no missing bar;
- a gap before the last bar, which the caller passes in, is missing;
- after the last bar, slots may stay empty for as long as this series' quiet periods usually last, but no longer; whole
  sessions only where it usually goes without a bar for whole sessions (domain.life).

Keep out: the thresholds (objectives) and the plans' delays (polygon.plans), which come in as an `Availability`.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.calendar import Session, SessionCalendar, exchange_instant, expected_slots, slot_start
from market_data_pipeline.domain.objectives import DUE_GRACE, FRESHNESS, SETTLED_AT, Freshness
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    import numpy as np

# Maps a bar's end to the instant from which the plan serves it, both aware UTC; never decreasing.
Availability = Callable[[dt.datetime], dt.datetime]

_DAY = dt.timedelta(days=1)

FEWEST_SESSIONS: Final = 3  # of one session or two, the longest run may well be usual


def bar_end(session: Session, timeframe: Timeframe, ts: dt.datetime) -> dt.datetime:
    """Return the end of the bar of `session` that starts at `ts`: the next local midnight for 1d, else ts + span."""
    return session.day_end if timeframe is Timeframe.D1 else ts + timeframe.span


def due_at(session: Session, timeframe: Timeframe, ts: dt.datetime, availability: Availability) -> dt.datetime:
    """Return when the bar of `session` that starts at `ts` is due."""
    return availability(bar_end(session, timeframe, ts)) + DUE_GRACE


def settled_at(session: Session) -> dt.datetime:
    """Return when the bars of `session` no longer change at the vendor: 11:00 New York of the next day, in UTC."""
    return exchange_instant(session.date + _DAY, SETTLED_AT)


def next_due(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    *,
    last_ts: dt.datetime | None,
    history_start: dt.datetime,
    quiet_slots: int,
    confirmed: Container[dt.date],
    availability: Availability,
    first_gap_ts: dt.datetime | None = None,
    quiet_sessions: int = 0,
) -> dt.datetime:
    """Return the instant, past or future, at which the first missing bar is due.

    After `last_ts`, up to `quiet_slots` slots may be empty; the slot after these is the first missing one, if it is
    still in the session. If not, the session may have ended in an ordinary quiet period, and the next session that is
    not confirmed is examined in the same way. No quiet period excuses more than `quiet_sessions` sessions of full
    length without a bar: when bars stop, the last slot of the next one is due at the latest.

    Args:
        calendar: of the series' asset class.
        timeframe: of the series.
        last_ts: start of the last bar of the series, None without one.
        history_start: bars that start before it are ignored.
        quiet_slots: the series' longest usual run of empty slots, see `quiet_slots`; taken as 0 for 1d.
        confirmed: session dates whose coverage is complete, empty_confirmed or clamped.
        availability: from when the plan serves a bar.
        first_gap_ts: start of the earliest gap before `last_ts` that is not confirmed.
        quiet_sessions: how many sessions after `last_ts` that are not confirmed may stay without a bar.

    Raises:
        UsageError: an instant lies outside the calendar.
    """
    session, first = _trailing_edge(calendar, timeframe, last_ts, history_start)
    tolerated = min(quiet_slots, calendar.full_slot_count(timeframe) - 1)
    while True:
        expected = expected_slots(timeframe, session)
        first = max(first, expected.start)
        if session.date not in confirmed and expected.stop - first > tolerated:
            if first > expected.start or not quiet_sessions:
                break
            quiet_sessions -= 1
        session, first = calendar.next_session(session.date), 0
    due = due_at(session, timeframe, slot_start(timeframe, session, first + tolerated), availability)
    if first_gap_ts is None:
        return due
    return min(due, _gap_due(calendar, timeframe, first_gap_ts, availability))


def expected_last_ts(
    calendar: SessionCalendar, timeframe: Timeframe, *, now: dt.datetime, availability: Availability
) -> dt.datetime:
    """Return the start of the last slot that is due at `now`, whether or not the symbol traded in it."""
    session = calendar.previous_session(calendar.session_date(now) + _DAY)
    while not (due := _due_slots(timeframe, session, now, availability)):
        session = calendar.previous_session(session.date)
    return slot_start(timeframe, session, due[-1])


def quiet_slots(calendar: SessionCalendar, timeframe: Timeframe, ts_us: np.ndarray) -> int:
    """Return the longest usual run of empty slots within a session; 0 for 1d.

    It is the longest of all sessions of the given bars; that of one session does not count if it is more than twice as
    long as in every other and there are at least `FEWEST_SESSIONS`: after a halt of three hours, three silent hours
    would otherwise be usual for weeks. Runs before the first, between and after the last bar of a session count, except
    two that may be incomplete: the one after the very last bar, which the number will judge, and, when the bars span
    several sessions, the one before the very first bar, where the caller may have cut.

    Args:
        calendar: of the series' asset class.
        timeframe: of the series.
        ts_us: starts of its recent bars, int64 microseconds since 1970 UTC, ascending; bars outside sessions are
            ignored.
    """
    import numpy as np

    if timeframe is Timeframe.D1:
        return 0
    session, slot, count = calendar.expected_slot_index(timeframe, ts_us)
    inside = (slot >= 0) & (slot < count)
    session, slot, count = session[inside], slot[inside], count[inside]
    if not len(session):
        return 0
    first = np.flatnonzero(np.diff(session, prepend=session[0] - 1))  # the first bar of each session
    last = np.append(first[1:], len(session)) - 1
    before = np.diff(slot, prepend=-1) - 1
    before[first] = slot[first]
    after = count[last] - 1 - slot[last]
    after[-1] = 0
    if len(first) > 1:
        before[0] = 0
    longest = np.maximum(np.maximum.reduceat(before, first), after)
    if len(longest) < FEWEST_SESSIONS:
        return int(longest.max())
    second, most = np.partition(longest, -2)[-2:].tolist()
    return int(most if most <= 2 * second else second)


def staleness_seconds(now: dt.datetime, next_due_at: dt.datetime) -> float:
    """Return for how many seconds the first missing bar has been due at `now`; 0 while it is not due yet."""
    return max((now - next_due_at).total_seconds(), 0.0)


def freshness(staleness: float | None) -> Freshness:
    """Return the state for a staleness in seconds; None, a series that was never computed, is MISSING."""
    if staleness is None:
        return Freshness.MISSING
    return next(s for s, rule in FRESHNESS.items() if rule.up_to is None or staleness <= rule.up_to.total_seconds())


def _trailing_edge(
    calendar: SessionCalendar, timeframe: Timeframe, last_ts: dt.datetime | None, history_start: dt.datetime
) -> tuple[Session, int]:
    """Return the first slot after all bars: its session and its index, which may be past the session's end."""
    edge = history_start if last_ts is None else max(last_ts + dt.timedelta(microseconds=1), history_start)
    day = calendar.session_date(edge)
    session = calendar.session_on(day)
    if session is None:
        return calendar.next_session(day), 0
    offset = edge - slot_start(timeframe, session, 0)
    return session, max(-(-offset // timeframe.span), 0)


def _due_slots(timeframe: Timeframe, session: Session, now: dt.datetime, availability: Availability) -> range:
    """Return the slots of `session` in which a bar is to be expected and that are due at `now`."""
    slots = expected_slots(timeframe, session)
    due = bisect_right(
        slots, now, key=lambda i: due_at(session, timeframe, slot_start(timeframe, session, i), availability)
    )
    return slots[:due]


def _gap_due(
    calendar: SessionCalendar, timeframe: Timeframe, ts: dt.datetime, availability: Availability
) -> dt.datetime:
    """Return when the missing bar at `ts` was due; the vendor may also have bars outside the sessions."""
    session = calendar.session_on(calendar.session_date(ts))
    return (
        availability(ts + timeframe.span) + DUE_GRACE
        if session is None
        else due_at(session, timeframe, ts, availability)
    )
