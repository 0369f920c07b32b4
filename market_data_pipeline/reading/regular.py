"""Rows of the regular hours alone: bars that start in them, and coarse bars that are made of these.

A 5m or 15m bar lies in the regular hours or outside. A 1h or 4h bar that is stored begins on the grid of the whole
session, so that of 09:00 holds half an hour before the open: of the regular hours, coarse bars are made of 5m bars when
they are read. One of them is returned once it will not change as part of the day's course: the 5m bar that ends it or a
later one is held, or the day has settled. Day bars are the vendor's, whatever the session; markets without other hours
have all their bars in the regular ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.objectives import SETTLED_AT
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of
from market_data_pipeline.store.many_series import Columns, Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np

_BASE_US: Final = Timeframe.M5.minutes * 60_000_000
# From the end of a day to when it settles; no session's day ends when clocks change.
_SETTLES_US: Final = (SETTLED_AT.hour * 60 + SETTLED_AT.minute) * 60_000_000
_COARSE: Final = (Timeframe.H1, Timeframe.H4)


def is_made(series: Series) -> bool:
    """Return whether bars of the regular hours of a series are made of 5m bars when they are read."""
    return series.timeframe in _COARSE and calendar_for(asset_class_of(series.symbol)).has_extended_hours


def read_as(series: Series) -> Series:
    """Return the stored series that has the bars of the regular hours of `series`, or what they are made of."""
    return Series(series.symbol, series.timeframe.base) if is_made(series) else series


def stretch_to_read(stretch: Stretch) -> Stretch:
    """Return the stored rows that the bars of a stretch are made of."""
    if not is_made(stretch.series):
        return stretch
    return Stretch(read_as(stretch.series), stretch.start, stretch.end + stretch.series.timeframe.span)


def columns_to_read(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that coarse bars with the columns `names` are made of."""
    return (*names, "volume") if "vwap" in names and "volume" not in names else names


def regular_rows(found: Columns, stretches: Sequence[Stretch], names: Sequence[str], instant: datetime) -> Columns:
    """Return the rows of the regular hours.

    Args:
        found: what was read of `stretch_to_read` of each stretch.
        stretches: as they were asked for.
        names: the columns to return.
        instant: the present, or that of which bars are read.
    """
    import numpy as np

    edges = np.searchsorted(found.at, np.arange(len(stretches) + 1, dtype=found.at.dtype))
    ats, starts, values = [], [], []
    for number, stretch in enumerate(stretches):
        rows = slice(int(edges[number]), int(edges[number + 1]))
        of_one = _of_one(found.ts[rows], {name: each[rows] for name, each in found.values.items()}, stretch, instant)
        ats.append(np.full(len(of_one[0]), number, dtype=found.at.dtype))
        starts.append(of_one[0])
        values.append(of_one[1])
    joined = {name: _joined([each[name] for each in values]) for name in names}
    return Columns(np.concatenate(ats), np.concatenate(starts), joined)


def _of_one(
    ts_us: np.ndarray, values: dict[str, Any], stretch: Stretch, instant: datetime
) -> tuple[np.ndarray, dict[str, Any]]:
    from market_data_pipeline.domain.resample import aggregated, in_regular_hours, regular_buckets_us

    series, calendar = stretch.series, calendar_for(asset_class_of(stretch.series.symbol))
    if series.timeframe is Timeframe.D1 or not calendar.has_extended_hours or not len(ts_us):
        return ts_us, values
    kept = in_regular_hours(ts_us, calendar)
    inside = {name: _taken(each, kept) for name, each in values.items()}
    if not is_made(series) or not kept.any():
        return ts_us[kept], inside
    last_us = int(ts_us[-1])
    buckets, ends = regular_buckets_us(ts_us[kept], series.timeframe, calendar)
    starts, made = aggregated(buckets, inside)
    ends = ends[buckets.searchsorted(starts)]
    settles = calendar.midnights_us(starts + 86_400_000_000) + _SETTLES_US
    complete = (ends <= last_us + _BASE_US) | (settles <= to_us(instant))
    wanted = complete & (starts >= to_us(stretch.start)) & (starts < to_us(stretch.end))
    return starts[wanted], {name: each[wanted] for name, each in made.items()}


def _taken(values: Any, mask: np.ndarray) -> Any:
    if isinstance(values, list):
        return [value for value, kept in zip(values, mask.tolist(), strict=True) if kept]
    return values[mask]


def _joined(parts: list[Any]) -> Any:
    import numpy as np

    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return np.concatenate(parts)
