"""The life of a series: it trades, it has fallen silent, or the vendor says that it no longer trades.

A series is SILENT once more whole sessions have passed without a bar than it usually goes without one, while others
traded. Where a bar is overdue while others trade, the vendor's reference data are worth a request: they distinguish a
symbol that is delisted or halted, of which nothing is missing, from one whose bars are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime


class Life(StrEnum):
    """Whether bars of a series are to be expected, and if not, why."""

    TRADING = "trading"
    SILENT = "silent"  # sessions pass without a bar where it used to trade
    HALTED = "halted"  # the vendor lists the ticker as inactive, without a date on which it was delisted
    DELISTED = "delisted"  # the vendor says so
    UNKNOWN = "unknown"  # the vendor knows no such ticker, and never had a bar of it or has none any more

    @property
    def expects_bars(self) -> bool:
        """False where the vendor says that it does not trade: no bar is then late."""
        return self in (Life.TRADING, Life.SILENT)


class LifeSince(NamedTuple):
    """The life of a series, and since when, aware UTC; None for one that trades, or that never had a bar."""

    life: Life = Life.TRADING
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What the vendor's reference data say of a ticker.

    Attributes:
        asked_at: when they were asked, aware UTC.
        known: whether they know the ticker; None when they could not be asked.
        active: whether it is listed.
        list_date: its first day, where they have it.
        delisted_at: when it was delisted, aware UTC; None while it is listed, or without a date.
        name: the company's or the pair's.
    """

    asked_at: datetime
    known: bool | None
    active: bool = False
    list_date: date | None = None
    delisted_at: datetime | None = None
    name: str | None = None


# Half of the shortest RPO: that a symbol is delisted is known before it would be alerted as late.
ASK_AFTER: Final = timedelta(minutes=30)

# Reference data change once a day. A symbol of which no bars are expected is not fetched more often either.
ASK_AGAIN_AFTER: Final = timedelta(days=1)

# How often a symbol goes without a bar for whole sessions is judged by twelve weeks: it may do so twice a month.
HABIT: Final = timedelta(days=84)


def usual_silence(days: Iterable[bool]) -> int:
    """Return for how many sessions in a row a series usually has no bar: the second-longest run of empty ones.

    Not the longest: what happened once, such as an unscheduled closing or a lost day, is no habit.

    Args:
        days: whether each session within `HABIT` has bars, in ascending order. Runs at either end do not count.
    """
    runs = [(held, sum(1 for _ in group)) for held, group in groupby(days)]
    inner = sorted(length for held, length in runs[1:-1] if not held)
    return inner[-2] if len(inner) > 1 else 0


def life_of(last_ts: datetime | None, listing: Listing | None, *, overdue: bool, silent: bool) -> LifeSince:
    """Return the life of a series.

    Args:
        last_ts: start of its last bar; None without one.
        listing: what the vendor says of the ticker; None when it was not asked.
        overdue: whether a bar has been due for longer than `ASK_AFTER`.
        silent: whether more sessions than usual have passed without a bar, or none ever had one.
    """
    if not (overdue or silent):
        return LifeSince()
    if listing is not None and listing.known and not listing.active:
        if listing.delisted_at is not None:
            return LifeSince(Life.DELISTED, listing.delisted_at)
        return LifeSince(Life.HALTED, last_ts)
    if listing is not None and listing.known is False:
        return LifeSince(Life.UNKNOWN, last_ts)
    if last_ts is not None:
        return LifeSince(Life.SILENT, last_ts) if silent else LifeSince()
    return LifeSince()  # listed, and yet to trade


def sentence(life: Life, since: datetime | None) -> str:
    """Return what to say of a series in this life, without its symbol and a full stop."""
    day = f" since {since:%Y-%m-%d}" if since is not None else ""
    gone = f"is no longer known to the vendor and has had no bars{day}" if day else "is unknown to the vendor"
    return {
        Life.TRADING: "trades",
        Life.SILENT: f"has had no bars since {since:%Y-%m-%d %H:%MZ}" if since is not None else "has no bars",
        Life.HALTED: f"is listed as inactive by the vendor and has had no bars{day}",
        Life.DELISTED: f"{'has been' if day else 'is'} delisted{day}, according to the vendor",
        Life.UNKNOWN: gone,
    }[life]
