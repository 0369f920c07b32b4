"""When a bar falls due, and how stale a series is that does not hold it.

Add here: what follows from sessions and from what is held. Keep out: the thresholds (objectives), the plans' delays
(polygon.plans, which come in as an `Availability`), the clock and the database.

A bar is DUE at the instant the vendor serves it + `DUE_GRACE`. A series' NEXT DUE instant is when the first bar that it
should hold and does not falls due, in the past or in the future; its STALENESS is how long ago that was, 0 when it is
yet to come. Which bars should exist is uncertain where nobody trades, hence:

- a session that the vendor confirmed (complete, empty or before the plan's history) lacks nothing;
- a hole before the last bar held, which the caller knows of, is missing;
- after the last bar, slots may stay empty for as long as this series' quiet stretches usually last, no longer.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from market_data_pipeline.domain.calendar import (
    Session,
    SessionCalendar,
    exchange_instant,
    slot_count,
    slot_start,
)
from market_data_pipeline.domain.objectives import DUE_GRACE, FRESHNESS, SETTLED_AT, Freshness
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    import numpy as np

# Maps a bar's end to the instant at which the plan serves it, both aware UTC; never decreasing.
Availability = Callable[[dt.datetime], dt.datetime]

_DAY = dt.timedelta(days=1)


def bar_end(session: Session, timeframe: Timeframe, ts: dt.datetime) -> dt.datetime:
    """Return the end of the bar of `session` that starts at `ts`: the next local midnight for 1d, else ts + span."""
    return session.day_end if timeframe is Timeframe.D1 else ts + timeframe.span


def due_at(session: Session, timeframe: Timeframe, ts: dt.datetime, availability: Availability) -> dt.datetime:
    """Return when the bar of `session` that starts at `ts` falls due."""
    return availability(bar_end(session, timeframe, ts)) + DUE_GRACE


def settled_at(session: Session) -> dt.datetime:
    """Return when the vendor no longer changes the bars of `session`: 11:00 New York of the next day, in UTC."""
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
    first_hole_ts: dt.datetime | None = None,
) -> dt.datetime:
    """Return the instant at which the first bar that is missing falls, or fell, due.

    The trailing edge is the stretch of slots after `last_ts`. It may be empty for `quiet_slots` slots; the one after
    them is the first missing one if its session has that many. If not, the session may have ended in an ordinary quiet
    stretch and the next session that is not confirmed is looked at in the same way. No quiet stretch excuses a session
    of full length without a bar: when bars stop, the last slot of such a session is due at the latest.

    Args:
        calendar: of the series' asset class.
        timeframe: of the series.
        last_ts: start of the last bar held, None when none is.
        history_start: bars that start before it are not wanted.
        quiet_slots: the series' longest usual run of empty slots, see `quiet_slots`; taken as 0 for 1d.
        confirmed: session dates whose coverage is complete, empty_confirmed or clamped.
        availability: when the plan serves a bar.
        first_hole_ts: start of the earliest missing slot (or session) before `last_ts` that is not confirmed.

    Raises:
        UsageError: an instant lies outside the calendar.
    """
    session, first = _trailing_edge(calendar, timeframe, last_ts, history_start)
    tolerated = min(quiet_slots, calendar.full_slot_count(timeframe) - 1)
    while session.date in confirmed or slot_count(timeframe, session) - first <= tolerated:
        session, first = calendar.next_session(session.date), 0
    due = due_at(session, timeframe, slot_start(timeframe, session, first + tolerated), availability)
    if first_hole_ts is None:
        return due
    return min(due, _hole_due(calendar, timeframe, first_hole_ts, availability))


def expected_last_ts(
    calendar: SessionCalendar, timeframe: Timeframe, *, now: dt.datetime, availability: Availability
) -> dt.datetime:
    """Return the start of the last slot that is due at `now`, whether or not anybody traded in it."""
    session = calendar.previous_session(calendar.session_date(now) + _DAY)
    while not (count := _due_slots(timeframe, session, now, availability)):
        session = calendar.previous_session(session.date)
    return slot_start(timeframe, session, count - 1)


def quiet_slots(calendar: SessionCalendar, timeframe: Timeframe, ts_us: np.ndarray) -> int:
    """Return the longest run of empty slots within a session, among the sessions that the given bars lie in.

    Leading, inner and trailing runs count, except two that are not known to be over or whole: the one after the last
    bar, which is what the number is to judge, and, when several sessions are given, the one before the first bar, where
    the caller may have cut.

    Args:
        calendar: of the series' asset class.
        timeframe: of the series; a 1d series has no quiet stretch: 0.
        ts_us: starts of its recent bars, int64 microseconds since 1970 UTC, ascending; a bar outside every session is
            ignored.
    """
    import numpy as np

    if timeframe is Timeframe.D1:
        return 0
    session, slot, count = calendar.slot_index(timeframe, ts_us)
    inside = (slot >= 0) & (slot < count)
    session, slot, count = session[inside], slot[inside], count[inside]
    if not len(session):
        return 0
    opens = session[1:] != session[:-1]  # the bar after is its session's first
    inner = (slot[1:] - slot[:-1] - 1)[~opens]
    leading, trailing = slot[1:][opens], (count - 1 - slot)[:-1][opens]
    only_session = slot[:1] if not opens.any() else slot[:0]
    return int(np.concatenate((inner, leading, trailing, only_session)).max(initial=0))


def staleness_seconds(now: dt.datetime, next_due_at: dt.datetime) -> float:
    """Return for how many seconds the first missing bar has been due at `now`; 0 when none is."""
    return max((now - next_due_at).total_seconds(), 0.0)


def freshness(staleness: float | None) -> Freshness:
    """Return what a staleness in seconds amounts to; None, a series never computed, is MISSING."""
    if staleness is None:
        return Freshness.MISSING
    return next(s for s, rule in FRESHNESS.items() if rule.up_to is None or staleness <= rule.up_to.total_seconds())


def _trailing_edge(
    calendar: SessionCalendar, timeframe: Timeframe, last_ts: dt.datetime | None, history_start: dt.datetime
) -> tuple[Session, int]:
    """Return the first slot that is wanted after everything held: its session and index, which may be past the end."""
    wanted = history_start if last_ts is None else max(last_ts + dt.timedelta(microseconds=1), history_start)
    day = calendar.session_date(wanted)
    session = calendar.session_on(day)
    if session is None:
        return calendar.next_session(day), 0
    offset = wanted - slot_start(timeframe, session, 0)
    return session, max(-(-offset // timeframe.span), 0)


def _due_slots(timeframe: Timeframe, session: Session, now: dt.datetime, availability: Availability) -> int:
    """Return how many slots of `session` are due at `now`."""
    slots = range(slot_count(timeframe, session))
    return bisect_right(
        slots, now, key=lambda i: due_at(session, timeframe, slot_start(timeframe, session, i), availability)
    )


def _hole_due(
    calendar: SessionCalendar, timeframe: Timeframe, ts: dt.datetime, availability: Availability
) -> dt.datetime:
    """Return when the missing bar at `ts` fell due, in a session or, should the vendor have had one there, outside."""
    session = calendar.session_on(calendar.session_date(ts))
    return (
        availability(ts + timeframe.span) + DUE_GRACE
        if session is None
        else due_at(session, timeframe, ts, availability)
    )
