"""Questions about sessions that are asked of whole arrays of instants: years of slots in under a millisecond.

Add here: what would be slow one instant at a time. Keep out: where sessions come from (sessions).
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.instants import FIRST_DATE, check_range, from_us, to_us
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    import numpy as np

    from market_data_pipeline.domain.intervals import Interval

_DAY: Final = dt.timedelta(days=1)
_US: Final = dt.timedelta(microseconds=1)


class Axis(NamedTuple):
    """A calendar's instants: int64 microseconds since 1970 UTC, ascending."""

    midnights: np.ndarray  # start of every local day, and of the first one after the range
    anchors: np.ndarray  # where the bar grid starts on every local day, session or not
    day_starts: np.ndarray  # of every session: its local midnight,
    starts: np.ndarray  # the start of its extended hours
    ends: np.ndarray  # and their end


class SessionArrays(ABC):
    """The part of a calendar that answers for arrays; the rest says where its sessions are."""

    @property
    @abstractmethod
    def axis(self) -> Axis:
        """The calendar's instants."""

    @abstractmethod
    def position(self, day: dt.date) -> int:
        """Return how many sessions are dated before `day`."""

    @abstractmethod
    def session_date(self, ts: dt.datetime) -> dt.date:
        """Return the exchange-local calendar date of `ts`."""

    @abstractmethod
    def full_slot_count(self, timeframe: Timeframe) -> int:
        """Return how many bars of `timeframe` may exist in a session of full length."""

    def slots_between(self, timeframe: Timeframe, interval: Interval) -> np.ndarray:
        """Return the starts, within `interval`, of all bars that may exist, ascending.

        They are int64 microseconds since 1970 UTC. A year of 5m slots (48,000) takes under a millisecond.
        """
        import numpy as np

        start_us, end_us = to_us(interval.start), to_us(interval.end)
        if end_us <= start_us:
            return np.empty(0, dtype="int64")
        first, last = self.session_date(interval.start), self.session_date(interval.end - _US)
        check_range(first)
        check_range(last)
        rows = slice(self.position(first), self.position(last + _DAY))
        if timeframe is Timeframe.D1:
            slots = self.axis.day_starts[rows]
        else:
            span = timeframe.span // _US
            starts, ends = self.axis.starts[rows, None], self.axis.ends[rows, None]
            grid = starts + np.arange(self.full_slot_count(timeframe), dtype="int64") * span
            slots = grid[grid < ends]
        wanted: np.ndarray = slots[np.searchsorted(slots, start_us) : np.searchsorted(slots, end_us)]
        return wanted

    def slot_index(self, timeframe: Timeframe, ts_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where each instant lies among the sessions: (session, slot, slots in that session), int64 each.

        `session` counts sessions from `FIRST_DATE` on, so neighbours differ by 1. An instant before its session's first
        slot or after its last one has a slot below 0 or beyond the count; 1d has one slot a session.
        """
        import numpy as np

        session = np.searchsorted(self.axis.day_starts, ts_us, side="right") - 1
        if timeframe is Timeframe.D1:
            return session, (ts_us - self.axis.day_starts[session]) // (_DAY // _US), np.ones_like(session)
        span, start, end = timeframe.span // _US, self.axis.starts[session], self.axis.ends[session]
        return session, (ts_us - start) // span, -(-(end - start) // span)

    def grid_anchors_us(self, first_us: int, last_us: int) -> np.ndarray:
        """Return where the bar grid is anchored anew on each calendar day around [first_us, last_us], session or not.

        Int64 microseconds since 1970 UTC, ascending: 04:00 New York (round-the-clock markets 00:00 UTC) of every day
        from the last anchor at or before `first_us` to the last at or before `last_us`.
        """
        import numpy as np

        for at in (first_us, last_us):
            check_range(self.session_date(from_us(at)))
        low, high = np.searchsorted(self.axis.anchors, (first_us, last_us), side="right")
        return self.axis.anchors[max(int(low) - 1, 0) : int(high)]

    def session_days(self, ts_us: np.ndarray) -> np.ndarray:
        """Return the exchange-local calendar date of each instant as datetime64[D]; `session_date` for many."""
        import numpy as np

        return np.datetime64(FIRST_DATE, "D") + (np.searchsorted(self.axis.midnights, ts_us, side="right") - 1)

    def first_of_days(self, ts_us: np.ndarray) -> np.ndarray:
        """Return the index of the first of the ascending instants on each exchange-local date that has any."""
        import numpy as np

        if not len(ts_us):
            return np.empty(0, dtype="int64")
        midnights = self.axis.midnights
        low, high = np.searchsorted(midnights, (ts_us[0], ts_us[-1]), side="right")
        firsts = np.empty(high - low + 1, dtype="int64")
        firsts[0] = 0
        firsts[1:] = np.searchsorted(ts_us, midnights[low:high])
        found = np.ones(len(firsts), dtype=bool)  # a date without any leaves the index of the next date's first
        np.not_equal(firsts[1:], firsts[:-1], out=found[1:])
        return firsts[found]
