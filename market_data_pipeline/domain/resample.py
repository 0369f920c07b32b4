"""Resample 5m bars to 15m, 1h and 4h.

A coarse bar is a BUCKET of the grid that starts at 04:00 New York on every day of the year (00:00 UTC for
round-the-clock markets) and steps by the timeframe's span. So 4h buckets begin at 04, 08, 12, 16, 20 and 00 New York in
summer and winter; the vendor's own 4h bars step by absolute hours and shift with the clocks. On the two days on which
clocks change, the last bucket before 04:00 ends with the grid; it never contains a bar of a session.

Of the regular hours alone, coarse bars are made when they are read: their grid starts at 09:30 New York, and the last
one of a day ends with the regular hours, at 16:00 or at 13:00.

Day bars are not resampled but fetched: the vendor's include the auction prints and leave out some extended-hours ones,
so they cannot be derived from minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain import bars as bar
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from market_data_pipeline.domain.calendar import SessionCalendar


def bucket_start_us(ts_us: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> np.ndarray:
    """Return the start of the bucket that each instant lies in.

    Args:
        ts_us: int64 microseconds since 1970 UTC, in any order.
        timeframe: an intraday timeframe.
        calendar: anchors the grid.

    Returns:
        Int64 microseconds since 1970 UTC, as long as `ts_us`.

    Raises:
        ValueError: the timeframe is 1d.
    """
    if timeframe is Timeframe.D1:
        msg = f"{timeframe} bars are fetched, not resampled"
        raise ValueError(msg)
    if not len(ts_us):
        return np.empty(0, dtype="int64")
    anchors = calendar.grid_anchors_us(int(ts_us.min()), int(ts_us.max()))
    anchor = anchors[np.searchsorted(anchors, ts_us, side="right") - 1]
    span_us = timeframe.minutes * 60_000_000
    buckets: np.ndarray = anchor + (ts_us - anchor) // span_us * span_us
    return buckets


def resample(bars: pd.DataFrame, timeframe: Timeframe, calendar: SessionCalendar) -> pd.DataFrame:
    """Return the coarser bars of `bars`, one for every bucket that contains at least one.

    A bucket that is still open, or is missing bars, gives a bar that will change: the caller leaves it out.

    Args:
        bars: a bar frame of 5m bars.
        timeframe: 15m, 1h or 4h.
        calendar: anchors the grid.

    Returns:
        A bar frame: the first open, the highest high, the lowest low, the last close; volume and trades are sums,
        vwap is weighted by volume. `trades` and `vwap` are NaN when any bar lacks them, vwap also without volume.
    """
    if bars.empty:
        return bar.empty()
    buckets = bucket_start_us(bar.ts_us(bars), timeframe, calendar)
    starts, values = aggregated(buckets, {name: bar.array(bars, name) for name in bar.VALUES})
    return bar.bar_frame(starts, values)


def aggregated(buckets: np.ndarray, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the start and the values of the bar of every bucket.

    Args:
        buckets: of each finer bar, ascending; at least one.
        columns: some of `domain.bars.VALUES`, each as long as `buckets`; `vwap` only along with `volume`.
    """
    first = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
    last = np.r_[first[1:], len(buckets)] - 1
    made = {}
    for name, values in columns.items():
        if name == "open":
            made[name] = values[first]
        elif name == "high":
            made[name] = np.maximum.reduceat(values, first)
        elif name == "low":
            made[name] = np.minimum.reduceat(values, first)
        elif name == "close":
            made[name] = values[last]
        elif name == "vwap":
            volume = np.add.reduceat(columns["volume"], first)
            turnover = np.add.reduceat(values * columns["volume"], first)
            made[name] = np.divide(turnover, volume, out=np.full(len(first), np.nan), where=volume > 0)
        else:
            made[name] = np.add.reduceat(values, first)
    return buckets[first], made


def regular_buckets_us(
    ts_us: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar
) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the end of the bucket of the regular hours that each instant within them lies in.

    Args:
        ts_us: int64 microseconds since 1970 UTC, all within regular hours.
        timeframe: an intraday timeframe.
        calendar: has the regular hours.
    """
    opens, closes = calendar.regular_hours_us(ts_us)
    span_us = timeframe.minutes * 60_000_000
    starts = opens + (ts_us - opens) // span_us * span_us
    return starts, np.minimum(starts + span_us, closes)


def in_regular_hours(ts_us: np.ndarray, calendar: SessionCalendar) -> np.ndarray:
    """Return a mask: True where an instant lies within the regular hours of a session."""
    opens, closes = calendar.regular_hours_us(ts_us)
    within: np.ndarray = (ts_us >= opens) & (ts_us < closes)
    return within
