"""The window of time at the end of a path that asks for bars, and how it follows the vendor's grid."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import compress
from typing import TYPE_CHECKING, Final

import numpy as np

from market_data_pipeline.domain.calendar import calendar_for, from_us, to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Timeframe, asset_class_of
from market_data_pipeline.polygon.rows import off_grid

if TYPE_CHECKING:
    from market_data_pipeline.domain.intervals import Interval

# What the vendor calls the timeframes that are fetched.
RANGES: Final = {Timeframe.M5: "5/minute", Timeframe.D1: "1/day"}


def first_ms(symbol: str, timeframe: Timeframe, start: datetime) -> int:
    """Return from when to request bars that start at `start` or later, in ms.

    Where the vendor's days may start later than the local ones, asking for local midnight would bring the day before.
    """
    offset = calendar_for(asset_class_of(symbol)).vendor_day_offset() if timeframe is Timeframe.D1 else timedelta(0)
    return to_us(start + offset) // 1000


def following_ms(symbol: str, timeframe: Timeframe, start_us: int) -> int:
    """Return the start of the next bar on the grid after the one that starts at `start_us`, in ms."""
    if timeframe is not Timeframe.D1:
        span_ms = timeframe.minutes * 60_000
        return (start_us // 1000 // span_ms + 1) * span_ms
    calendar = calendar_for(asset_class_of(symbol))
    return first_ms(symbol, timeframe, calendar.midnight(calendar.session_date(from_us(start_us)) + timedelta(days=1)))


def check_grid(symbol: str, timeframe: Timeframe, interval: Interval) -> None:
    """Raise `UsageError` unless bars of the timeframe are fetched and both ends of the interval are on its grid."""
    if timeframe not in RANGES:
        raise UsageError(f"{timeframe} bars are not fetched: they are made of {timeframe.base} bars.")
    off = off_grid(np.array([to_us(end) for end in interval]), symbol, timeframe)
    for end in compress(interval, off):
        raise UsageError(f"{end.isoformat()} is not on the grid of {timeframe} bars of {symbol}.")


def widened(target: str, first: int, last: int) -> str:
    """Return a path that ends in `/from/to`, in ms, with bounds that leave out none of `first` to `last`."""
    start, _, end = target.rpartition("/")
    start, _, begin = start.rpartition("/")
    if not (begin.isdigit() and end.isdigit() and int(begin) <= int(end)):
        return target  # dates, or no window at all
    return f"{start}/{min(int(begin), first)}/{max(int(end), last)}"
