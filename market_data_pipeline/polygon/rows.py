"""One row of bars: its fields, the rules that it must obey, and how messages name it."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import ClassVar, Final, NamedTuple

import msgspec
import numpy as np

from market_data_pipeline.domain.calendar import calendar_for, from_us
from market_data_pipeline.domain.series import Timeframe, asset_class_of

FIELDS: Final = ("o", "h", "l", "c", "v", "vw", "n")  # the vendor's names, in the order of `domain.bars.VALUES`
LATEST_MS: Final = 10**14  # the year 5138: a later stamp is in a finer unit
_LATEST_US: Final = 10**17
_MOST_TRADES: Final = 2.0**31 - 1  # the column holds no more; the busiest days of all have a few million
_MOST: Final = 1e18  # of a price or a volume: no currency and no coin is counted in so many
_SPAN_5M_US: Final = 300 * 10**6
_MS: Final = timedelta(milliseconds=1)
_PLACE: Final = re.compile(r" - at `\$(?:\.results\[(?P<row>\d+)\])?(?:\.(?P<field>\w+))?`")


class Bar(msgspec.Struct, gc=False):
    """One row of `results`. `vw` and `n` may be absent."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741
    c: float
    v: float
    vw: float = math.nan
    n: float = math.nan


class IndexBar(msgspec.Struct, gc=False):
    """One row of an index, which has neither volume nor `vw` nor `n`; what an answer says of them is not read."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741
    c: float
    v: ClassVar[float] = math.nan
    vw: ClassVar[float] = math.nan
    n: ClassVar[float] = math.nan


class BadRow(NamedTuple):
    """A row that cannot be used: every session day that it may belong to is refused.

    Attributes:
        low_us: where the earliest of these days lies, microseconds since 1970 UTC.
        high_us: where the latest lies; None where the next page begins, or the answer ends.
        reason: which row of which page it is, and what is wrong with it.
    """

    low_us: int
    high_us: int | None
    reason: str


class Outside(NamedTuple):
    """Bars that lie in no session: starts and values as in `Rows`."""

    ts_us: np.ndarray
    values: np.ndarray


class Rows(NamedTuple):
    """The bars of one page: starts in int64 microseconds since 1970 UTC; `values` has a row for each of `VALUES`.

    `bad` are the rows that cannot be used, `outside` the bars that lie in no session, and `warnings` sentences about
    what was taken in all the same. `first_us` and `last_us` are the first and the last start that was read, bad rows
    included; None when there is none.
    """

    ts_us: np.ndarray
    values: np.ndarray
    first_us: int | None = None
    last_us: int | None = None
    bad: tuple[BadRow, ...] = ()
    outside: Outside | None = None
    warnings: tuple[str, ...] = ()


def odd_stamp(ms: float) -> str:
    """Say what a stamp looks like that cannot be in milliseconds."""
    unit = "nanoseconds" if ms * 1.0 >= _LATEST_US else "microseconds" if ms > 0 else "a time before 1970"
    return f"{ms:.0f} looks like {unit}; the API uses milliseconds"


def at_midnight(ms: np.ndarray, symbol: str) -> np.ndarray:
    """Return the stamps of day bars with those of a market whose days the vendor cuts elsewhere at local midnight.

    Args:
        ms: milliseconds, NaN for none.
        symbol: whose bars they are.
    """
    calendar = calendar_for(asset_class_of(symbol))
    offset_ms = calendar.vendor_day_offset() / _MS
    if not offset_ms:
        return ms
    usable = (ms >= 0) & (ms <= LATEST_MS)
    midnights = calendar.midnights_us(np.where(usable, ms, 0).astype("int64") * 1000) // 1000
    moved: np.ndarray = np.where(usable & (ms - midnights == offset_ms), midnights, ms)
    return moved


def off_grid(ts_us: np.ndarray, symbol: str, timeframe: Timeframe) -> np.ndarray:
    """Return a mask: True where no bar of the timeframe starts; day bars start at local midnight."""
    if timeframe is Timeframe.D1:
        starts = calendar_for(asset_class_of(symbol)).midnights_us(ts_us)
    else:
        starts = ts_us - ts_us % _SPAN_5M_US
    off: np.ndarray = starts != ts_us
    return off


def price_rules(values: np.ndarray, *, has_volume: bool = True) -> list[tuple[str, np.ndarray]]:
    """Return each rule about the fields that every bar has, with which bars break it; an index has no volume."""
    opened, high, low, close, volume = values[:5]
    prices = values[:4]
    rules = [
        ("a price is not above 0 and finite", ~((prices > 0) & (prices < _MOST)).all(axis=0)),
        (
            "low <= open, close <= high does not hold",
            (np.minimum(opened, close) < low) | (np.maximum(opened, close) > high),
        ),
        ("the volume is infinite or below 0", ~((volume >= 0) & (volume < _MOST))),
    ]
    return rules if has_volume else rules[:-1]


def optional_rules(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return each rule about `vw` and `n`, with which bars break it: they count as unknown there."""
    vwap, trades = values[5:]
    return [
        # It may be outside [low, high], see _warn_of_vwap; 0 stands for none where nothing traded.
        ("vw is infinite or below 0", np.isinf(vwap) | (vwap < 0)),
        ("n is not a count", (trades > _MOST_TRADES) | (trades < 0) | (trades != np.rint(trades)) & ~np.isnan(trades)),
    ]


def when(us: int) -> str:
    """Return microseconds since 1970 UTC in ISO 8601."""
    return from_us(us).isoformat()


def shown(values: np.ndarray, at: int) -> str:
    """Return the values of one bar with the vendor's names."""
    return ", ".join(f"{name} = {value:.10g}" for name, value in zip(FIELDS, values[:, at], strict=True))


def in_words(message: str, row: str) -> str:
    """Return msgspec's message about a value with the row and the field in front."""
    place = _PLACE.search(message)
    what = message[: place.start()] if place else message
    missing = re.search(r"missing required field `(\w+)`", what)
    at = f", {row} {place['row']}" if place and place["row"] else ""
    name = missing[1] if missing else place["field"] if place else None
    text = "is missing" if missing else what.replace("`", "")
    return f"{at}, field {name}: {text}" if name else f"{at}: {text}"
