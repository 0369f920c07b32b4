"""What the vendor announces about trading days, beside what the calendar says of them.

The calendar of sessions stays the base. What the vendor announces only explains why bars of a session do not come: all
of a day on which the market is closed, and those after an early close.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datetime import date, datetime

# The vendor publishes bars for four hours after an early close at 13:00, as after a usual one at 16:00.
EXTENDED_HOURS: Final = timedelta(hours=4)

# A series that has a bar of the last hour before an early close has not stopped before it.
_LAST_HOUR: Final = timedelta(hours=1)


class DayStatus(StrEnum):
    """What happens on the day."""

    CLOSED = "closed"
    EARLY_CLOSE = "early_close"


class Announcement(NamedTuple):
    """What the vendor says of one day.

    Attributes:
        session_date: the exchange-local date.
        status: what happens on it.
        name: of the holiday, or what the market status said.
        closes_at: when regular trading ends on an early close, aware UTC.
    """

    session_date: date
    status: DayStatus
    name: str | None = None
    closes_at: datetime | None = None

    def explains(self, now: datetime, last_ts: datetime | None) -> bool:
        """Return whether no further 5-minute bar of the day is to be expected.

        Args:
            now: aware UTC.
            last_ts: start of the series' last bar, None without one.
        """
        if self.status is DayStatus.CLOSED:
            return True
        if self.closes_at is None or last_ts is None or now < self.closes_at + EXTENDED_HOURS:
            return False
        return last_ts >= self.closes_at - _LAST_HOUR
