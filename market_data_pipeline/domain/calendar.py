"""Trading sessions, and the only module that knows what time it is in New York.

A SESSION is labelled by its exchange-local date and is the half-open UTC interval in which the vendor publishes minute
bars: for US stocks and indices 04:00 to 20:00 New York on NYSE trading days, to 17:00 on early-close days; for crypto
every UTC day from 00:00 to 24:00; for forex the UTC days of a week that opens at 17:00 New York on Sunday and closes at
17:00 on Friday, so Sunday's and Friday's are parts of a day. Its REGULAR HOURS are 09:30 to 16:00 New York, to 13:00 on
early-close days; round the clock they are the session. A SLOT is the start of a bar that may exist in a session: slots
step by the timeframe's span from 04:00 New York (00:00 UTC) of the day, so 4h bars start at 04, 08, 12 and 16 New York
in summer and winter; the first may begin before the session. The one 1d slot of a session is its local midnight. A slot
without trades has no bar.

Trading days and early closes are exchange-calendars' (XNYS), which knows the sessions that NYSE has announced, about
three years ahead, and derives later ones from its rules; `exchange_days` lists them. Arrays of instants are int64
microseconds since 1970 UTC.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass, Timeframe

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from market_data_pipeline.domain.intervals import Interval

# The vendor's minute bars begin in 2003.
FIRST_DATE: Final = dt.date(1990, 1, 1)
END_DATE: Final = dt.date(2040, 1, 1)  # exclusive

EXCHANGE_ZONE_NAME: Final = "America/New_York"  # as cron schedules and SQL name it
NEW_YORK: Final = ZoneInfo(EXCHANGE_ZONE_NAME)
UTC: Final = ZoneInfo("UTC")

_DAY: Final = dt.timedelta(days=1)
_HOUR: Final = dt.timedelta(hours=1)
_US: Final = dt.timedelta(microseconds=1)
_US_PER_HOUR: Final = _HOUR // _US
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def to_us(ts: dt.datetime) -> int:
    """Return an aware instant as whole microseconds since 1970 UTC."""
    return (ts - _EPOCH) // _US


def from_us(us: int) -> dt.datetime:
    """Return microseconds since 1970 UTC as an aware UTC instant."""
    return _EPOCH + int(us) * _US


def exchange_date(ts: dt.datetime) -> dt.date:
    """Return the date in New York at the aware instant `ts`: "today" for splits and for the vendor's lists."""
    return ts.astimezone(NEW_YORK).date()


def exchange_instant(day: dt.date, at: dt.time) -> dt.datetime:
    """Return the aware UTC instant at which clocks in New York show `at` on `day`."""
    return dt.datetime.combine(day, at, NEW_YORK).astimezone(dt.UTC)


class _Axis(NamedTuple):
    """A calendar's instants, ascending."""

    midnights: np.ndarray  # start of every local day, and of the first one after the range
    anchors: np.ndarray  # where the bar grid starts on every local day, session or not
    grid_days: np.ndarray  # of these, the one of every session
    day_starts: np.ndarray  # local midnight of every session
    starts: np.ndarray  # start and end of every session
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class Session:
    """One trading session: aware UTC instants of half-open intervals."""

    date: dt.date  # exchange-local
    start: dt.datetime  # of the extended hours
    end: dt.datetime
    day_start: dt.datetime  # local midnight; the 1d bar lasts until the next one, 23 or 25 h twice a year
    day_end: dt.datetime
    early_close: bool
    grid_start: dt.datetime  # where the grid of the intraday bars starts on this day
    regular_start: dt.datetime  # of the regular hours
    regular_end: dt.datetime
    expected_start: dt.datetime  # within these, a missing bar is late: the session; of an index, the regular hours
    expected_end: dt.datetime


class _Hours(NamedTuple):
    """A market's time zone, and its hours after local midnight."""

    tz: ZoneInfo
    start: dt.timedelta
    end: dt.timedelta
    early_end: dt.timedelta
    regular: tuple[dt.timedelta, dt.timedelta, dt.timedelta] | None = None  # start, end, early end; None: the session
    weekly: bool = False  # closed from 17:00 New York on Friday to 17:00 on Sunday
    only_regular: bool = False  # bars are to be expected in the regular hours only


_REGULAR: Final = (9 * _HOUR + _HOUR / 2, 16 * _HOUR, 13 * _HOUR)
_ROUND_THE_CLOCK: Final = _Hours(UTC, 0 * _HOUR, 24 * _HOUR, 24 * _HOUR)
_NEW_YORK_HOURS: Final = _Hours(NEW_YORK, 4 * _HOUR, 20 * _HOUR, 17 * _HOUR, _REGULAR)
_HOURS: Final = {
    AssetClass.US_EQUITY: _NEW_YORK_HOURS,
    AssetClass.CRYPTO: _ROUND_THE_CLOCK,
    AssetClass.FOREX: _ROUND_THE_CLOCK._replace(weekly=True),
    AssetClass.INDEX: _NEW_YORK_HOURS._replace(only_regular=True),
}
_FOREX_TURN: Final = dt.time(17)  # New York: where the week of forex opens and closes
_FRIDAY, _SATURDAY, _SUNDAY = 4, 5, 6

# The vendor's day bars of indices start at 00:00 Chicago, 01:00 New York, all year (its published samples of 2023, and
# answers recorded since), although its text says New York.
_INDEX_DAY_OFFSET: Final = _HOUR


class SessionCalendar:
    """The sessions of one asset class from `FIRST_DATE` to before `END_DATE`.

    Creating one costs nothing. The first question about sessions takes milliseconds, but half a second with a version
    of exchange-calendars that `exchange_days` was not made from. Every date is exchange-local and every range of dates
    half-open; a date outside the calendar raises `UsageError`.
    """

    def __init__(self, asset_class: AssetClass) -> None:
        """Create the calendar of `asset_class`; `calendar_for` returns the shared one."""
        self.asset_class = asset_class
        self._hours = _HOURS[asset_class]
        self.tz = self._hours.tz
        self._known: dict[dt.date, Session] = {}

    def midnight(self, day: dt.date) -> dt.datetime:
        """Return the UTC instant at which `day` begins on the exchange's clock."""
        return dt.datetime.combine(day, dt.time(), self.tz).astimezone(dt.UTC)

    def session_date(self, ts: dt.datetime) -> dt.date:
        """Return the exchange-local calendar date of `ts`, whether or not there is a session on it."""
        return ts.astimezone(self.tz).date()

    def sessions(self, start: dt.date, end: dt.date) -> tuple[Session, ...]:
        """Return the sessions dated from `start` to before `end`, ascending."""
        if end <= start:
            return ()
        _check_range(start)
        _check_range(end - _DAY)
        return tuple(self._session(day) for day in self._dates[self._position(start) : self._position(end)])

    def session_on(self, day: dt.date) -> Session | None:
        """Return the session dated `day`, None on a day without one."""
        _check_range(day)
        at = self._position(day)
        return self._session(day) if at < len(self._dates) and self._dates[at] == day else None

    def next_session(self, after: dt.date) -> Session:
        """Return the first session dated after `after`."""
        _check_range(after + _DAY)
        at = self._position(after + _DAY)
        if at == len(self._dates):
            raise _outside(END_DATE)
        return self._session(self._dates[at])

    def previous_session(self, before: dt.date) -> Session:
        """Return the last session dated before `before`."""
        _check_range(before - _DAY)
        at = self._position(before)
        if at == 0:
            raise _outside(FIRST_DATE - _DAY)
        return self._session(self._dates[at - 1])

    @property
    def has_extended_hours(self) -> bool:
        """Whether a session has other than regular hours."""
        return self._hours.regular is not None

    def vendor_day_offset(self) -> dt.timedelta:
        """Return how long after local midnight the vendor's day bars may start: they are stored at midnight."""
        return _INDEX_DAY_OFFSET if self.asset_class is AssetClass.INDEX else dt.timedelta(0)

    def full_slot_count(self, timeframe: Timeframe) -> int:
        """Return how many slots of `timeframe` a session of full length has."""
        return 1 if timeframe is Timeframe.D1 else -(-(self._hours.end - self._hours.start) // timeframe.span)

    def slots_us(self, timeframe: Timeframe, session: Session) -> np.ndarray:
        """Return the slots of `session`, ascending."""
        import numpy as np

        if timeframe is Timeframe.D1:
            return np.array([to_us(session.day_start)], dtype="int64")
        first = to_us(slot_start(timeframe, session, 0))
        return np.arange(first, to_us(session.end), timeframe.span // _US, dtype="int64")

    def early_closes(self) -> list[dt.date]:
        """Return the dates of all sessions that close early, ascending."""
        return sorted(self._schedule[1])

    def prepare(self) -> None:
        """Load now, in half a second, what the first question would load, so that forked processes share it."""
        _ = self._axis

    def slots_between(self, timeframe: Timeframe, interval: Interval) -> np.ndarray:
        """Return the slots within `interval`, ascending; a year of 5m slots (48,000) takes under a millisecond."""
        import numpy as np

        start_us, end_us = to_us(interval.start), to_us(interval.end)
        if end_us <= start_us:
            return np.empty(0, dtype="int64")
        first, last = self.session_date(interval.start), self.session_date(interval.end - _US)
        _check_range(first)
        _check_range(last)
        rows = slice(self._position(first), self._position(last + _DAY))
        if timeframe is Timeframe.D1:
            slots = self._axis.day_starts[rows]
        else:
            span = timeframe.span // _US
            starts, ends = self._first_slots(timeframe)[rows, None], self._axis.ends[rows, None]
            grid = starts + np.arange(self.full_slot_count(timeframe), dtype="int64") * span
            slots = grid[grid < ends]
        within: np.ndarray = slots[np.searchsorted(slots, start_us) : np.searchsorted(slots, end_us)]
        return within

    def slot_index(self, timeframe: Timeframe, ts_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the session and slot of each instant, and that session's slot count: three int64 arrays like `ts_us`.

        Sessions are counted from `FIRST_DATE`, so neighbours differ by 1. An instant before its session's first slot
        has a slot below 0; one after the last slot has a slot not below the count.
        """
        import numpy as np

        session = np.searchsorted(self._axis.day_starts, ts_us, side="right") - 1
        if timeframe is Timeframe.D1:
            return session, (ts_us - self._axis.day_starts[session]) // (_DAY // _US), np.ones_like(session)
        span, start, end = timeframe.span // _US, self._first_slots(timeframe)[session], self._axis.ends[session]
        return session, (ts_us - start) // span, -(-(end - start) // span)

    def expected_slot_index(self, timeframe: Timeframe, ts_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `slot_index` does, with slots counted from the first in which a bar is to be expected.

        That is the first of the session; of an index, the first of the regular hours, and the last one is theirs too.
        """
        session, slot, count = self.slot_index(timeframe, ts_us)
        if not self._hours.only_regular or self._hours.regular is None or timeframe is Timeframe.D1:
            return session, slot, count
        span, start = timeframe.span // _US, self._axis.starts[session]
        opens, closes = self.regular_hours_us(ts_us)
        first, last = (opens - start) // span, -(-(closes - start) // span)
        return session, slot - first, last - first

    def regular_hours_us(self, ts_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the start and the end of the regular hours of the session on each instant's date, or the one before.

        Round the clock these are the session's own.
        """
        import numpy as np

        session = np.maximum(np.searchsorted(self._axis.day_starts, ts_us, side="right") - 1, 0)
        starts, ends = self._axis.starts[session], self._axis.ends[session]
        if self._hours.regular is None:
            return starts, ends
        opens, closes, _ = self._hours.regular
        # An early close ends both by the same three hours sooner.
        return starts + (opens - self._hours.start) // _US, ends - (self._hours.end - closes) // _US

    def _first_slots(self, timeframe: Timeframe) -> np.ndarray:
        """Return the start of the first slot of every session."""
        if not self._hours.weekly:
            return self._axis.starts  # they lie on every grid
        starts, grid = self._axis.starts, self._axis.grid_days
        first: np.ndarray = starts - (starts - grid) % (timeframe.span // _US)
        return first

    def in_session(self, timeframe: Timeframe, ts_us: np.ndarray) -> np.ndarray:
        """Return a mask: True where an instant lies within a session; for day bars, on the date of one."""
        if self.asset_class is AssetClass.CRYPTO:
            import numpy as np

            return np.ones(len(ts_us), dtype=bool)
        _, slot, count = self.slot_index(timeframe, ts_us)
        inside: np.ndarray = (slot >= 0) & (slot < count)
        return inside

    def grid_anchors_us(self, first_us: int, last_us: int) -> np.ndarray:
        """Return where the bar grid restarts on each day around [first_us, last_us], session or not, ascending.

        That is 04:00 New York (00:00 UTC for round-the-clock markets) of every day, from the last restart at or before
        `first_us` to the last at or before `last_us`.
        """
        import numpy as np

        for at in (first_us, last_us):
            _check_range(self.session_date(from_us(at)))
        low, high = np.searchsorted(self._axis.anchors, (first_us, last_us), side="right")
        return self._axis.anchors[max(int(low) - 1, 0) : int(high)]

    def session_days(self, ts_us: np.ndarray) -> np.ndarray:
        """Return the exchange-local date of each instant as datetime64[D]: `session_date` for arrays."""
        import numpy as np

        return np.datetime64(FIRST_DATE, "D") + (np.searchsorted(self._axis.midnights, ts_us, side="right") - 1)

    def midnights_us(self, ts_us: np.ndarray) -> np.ndarray:
        """Return the local midnight at or before each instant; outside the calendar, that of its first or last day."""
        import numpy as np

        midnights = self._axis.midnights
        at_or_before: np.ndarray = midnights[np.maximum(np.searchsorted(midnights, ts_us, side="right") - 1, 0)]
        return at_or_before

    def first_of_days(self, ts_us: np.ndarray) -> np.ndarray:
        """Return the indices of ascending instants that are the first of their exchange-local date."""
        import numpy as np

        if not len(ts_us):
            return np.empty(0, dtype="int64")
        midnights = self._axis.midnights
        low, high = np.searchsorted(midnights, (ts_us[0], ts_us[-1]), side="right")
        firsts = np.empty(high - low + 1, dtype="int64")
        firsts[0] = 0
        firsts[1:] = np.searchsorted(ts_us, midnights[low:high])
        found = np.ones(len(firsts), dtype=bool)  # a date without instants has the index of the next date's first
        np.not_equal(firsts[1:], firsts[:-1], out=found[1:])
        return firsts[found]

    @cached_property
    def _schedule(self) -> tuple[tuple[dt.date, ...], frozenset[dt.date]]:
        """All session dates, ascending, and those among them that close early."""
        if not self.asset_class.market.keeps_exchange_days:
            days = (FIRST_DATE + i * _DAY for i in range((END_DATE - FIRST_DATE).days))
            return tuple(day for day in days if not (self._hours.weekly and day.weekday() == _SATURDAY)), frozenset()
        if self.asset_class is not AssetClass.US_EQUITY:
            return calendar_for(AssetClass.US_EQUITY)._schedule
        from importlib.metadata import version

        from market_data_pipeline.domain import exchange_days

        if version("exchange-calendars") == exchange_days.MADE_FROM:
            closed, early_closes = _listed(exchange_days.CLOSED), _listed(exchange_days.EARLY)
            dates = (FIRST_DATE + i * _DAY for i in range((END_DATE - FIRST_DATE).days))
            return tuple(day for day in dates if day.weekday() < _SATURDAY and day not in closed), early_closes

        from exchange_calendars.exchange_calendar_xnys import XNYSExchangeCalendar

        calendar = XNYSExchangeCalendar(start=FIRST_DATE.isoformat(), end=(END_DATE - _DAY).isoformat())
        sessions: pd.DatetimeIndex = calendar.sessions
        early: pd.DatetimeIndex = calendar.early_closes
        return tuple(sessions.date), frozenset(early.date)

    @property
    def _dates(self) -> tuple[dt.date, ...]:
        return self._schedule[0]

    def _position(self, day: dt.date) -> int:
        """Return how many sessions are dated before `day`."""
        return bisect_left(self._dates, day)

    def _session(self, day: dt.date) -> Session:
        """Return the session on a date that has one; each is made once, because every step of a refresh asks.

        Clocks change at 02:00 on Sundays, when there is no session: from its first hour on, a session's day has ONE
        offset, so its hours count back from the next midnight.
        """
        if (known := self._known.get(day)) is not None:
            return known
        hours, day_end, early = self._hours, self.midnight(day + _DAY), day in self._schedule[1]
        begin = day_end - _DAY
        start, end = begin + hours.start, begin + (hours.early_end if early else hours.end)
        if hours.weekly and day.weekday() in (_FRIDAY, _SUNDAY):
            turn = exchange_instant(day, _FOREX_TURN)
            start, end = (turn, end) if day.weekday() == _SUNDAY else (start, turn)
        regular_start, regular_end = start, end
        if hours.regular is not None:
            opens, closes, closes_early = hours.regular
            regular_start, regular_end = begin + opens, begin + (closes_early if early else closes)
        regular = regular_start, regular_end
        expected = regular if hours.only_regular else (start, end)
        grid_start = begin + hours.start
        self._known[day] = Session(day, start, end, self.midnight(day), day_end, early, grid_start, *regular, *expected)
        return self._known[day]

    @cached_property
    def _axis(self) -> _Axis:
        """The calendar's instants, all derived from the session dates and the local midnights."""
        import numpy as np
        import pandas as pd

        days = pd.date_range(FIRST_DATE, END_DATE, tz=self.tz, unit="us").tz_convert("UTC").tz_localize(None)
        midnights = days.to_numpy().view("int64")
        anchors = midnights[1:] - (_DAY - self._hours.start) // _US
        numbers = (np.array(self._dates, dtype="datetime64[D]") - np.datetime64(FIRST_DATE, "D")).astype("int64")
        early = np.fromiter((day in self._schedule[1] for day in self._dates), dtype=bool, count=len(self._dates))
        length = np.where(early, self._hours.early_end // _US, self._hours.end // _US) - self._hours.start // _US
        grid = starts = anchors[numbers]
        ends = starts + length
        if self._hours.weekly:
            # In New York, clocks change before noon, so 17:00 is seven hours before the next midnight.
            weekly = calendar_for(AssetClass.US_EQUITY)._axis.midnights[numbers + 1] - 7 * _US_PER_HOUR
            weekdays = (numbers + FIRST_DATE.weekday()) % 7
            starts, ends = np.where(weekdays == _SUNDAY, weekly, starts), np.where(weekdays == _FRIDAY, weekly, ends)
        return _Axis(midnights, anchors, grid, midnights[numbers], starts, ends)


def _listed(lines: str) -> frozenset[dt.date]:
    """Return the days of lines such as `2025 0101 0109`."""
    found = []
    for line in lines.strip().splitlines():
        year, *days = line.split()
        found += [dt.date(int(year), int(day[:2]), int(day[2:])) for day in days]
    return frozenset(found)


def _check_range(day: dt.date) -> None:
    if not FIRST_DATE <= day < END_DATE:
        raise _outside(day)


def _outside(day: dt.date) -> UsageError:
    return UsageError(f"{day} is outside the trading calendar, which reaches from {FIRST_DATE} to {END_DATE - _DAY}.")


@cache
def calendar_for(asset_class: AssetClass) -> SessionCalendar:
    """Return the calendar of `asset_class` that the process's threads share."""
    return SessionCalendar(asset_class)


def slot_count(timeframe: Timeframe, session: Session) -> int:
    """Return how many bars of `timeframe` may exist in `session`: 192 of 5m on a full New York day, 1 of 1d."""
    if timeframe is Timeframe.D1:
        return 1
    return -(-(session.end - slot_start(timeframe, session, 0)) // timeframe.span)


def expected_slots(timeframe: Timeframe, session: Session) -> range:
    """Return the slots of `session` in which a bar is to be expected: all; of an index, those of the regular hours."""
    if timeframe is Timeframe.D1:
        return range(1)
    grid = slot_start(timeframe, session, 0)
    first = (session.expected_start - grid) // timeframe.span
    return range(first, -(-(session.expected_end - grid) // timeframe.span))


def slot_start(timeframe: Timeframe, session: Session, index: int) -> dt.datetime:
    """Return the start of the slot `index`, counted from 0, of `session`."""
    if timeframe is Timeframe.D1:
        return session.day_start
    lead = (session.start - session.grid_start) % timeframe.span
    return session.start - lead + index * timeframe.span
