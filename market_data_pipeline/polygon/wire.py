"""Decode the vendor's bars, pages of one symbol or a day of the whole market, and refuse what cannot be trusted.

A page of bars is accepted whole or not at all: its envelope must echo the request, and every bar must obey the rules
below. A body that is not JSON is a transient error; JSON that contradicts the request or itself is a data error, whose
message names the bar and the field. In a market day each row belongs to another series: one that contradicts itself is
left out with a warning. 10,000 bars take about 7 ms: msgspec into typed rows, then one pass into numpy (orjson's
dictionaries cost as much before any type is checked, pyarrow's JSON reader half as much again).
"""

from __future__ import annotations

import logging
import math
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from market_data_pipeline.domain.bars import VALUES, bar_frame, empty
from market_data_pipeline.domain.calendar import calendar_for, from_us, to_us
from market_data_pipeline.domain.errors import DataError, PipelineError, TransientError
from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.polygon.refusals import RefusedInBodyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.intervals import Interval


_log = logging.getLogger(__name__)
_SUCCESSES: Final = frozenset({"OK", "DELAYED"})
_FIELDS: Final = ("o", "h", "l", "c", "v", "vw", "n")  # the vendor's names, in the order of `domain.bars.VALUES`
_LATEST_MS: Final = 10**14  # the year 5138: a later stamp is in a finer unit
_LATEST_US: Final = 10**17
_MOST_TRADES: Final = 2.0**53  # beyond, floats skip whole numbers, and the column holds no more than 2**63
_SPAN_5M_US: Final = 300 * 10**6
_PLACE: Final = re.compile(r" - at `\$(?:\.results\[(?P<row>\d+)\])?(?:\.(?P<field>\w+))?`")


class Bar(msgspec.Struct, gc=False):
    """One row of `results`. `vw` and `n` may be absent; nothing may be null."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741
    c: float
    v: float
    vw: float = math.nan
    n: float = math.nan


class Envelope(msgspec.Struct):
    """The part of every answer around its rows."""

    status: str
    next_url: str | None = None
    error: str | None = None
    message: str | None = None


class _BarsPage(Envelope):
    ticker: str | None = None
    adjusted: bool | None = None
    resultsCount: int | None = None
    results: list[Bar] | None = None


class Rows(NamedTuple):
    """The bars of one page: starts in int64 microseconds since 1970 UTC; `values` has a row for each of `VALUES`."""

    ts_us: np.ndarray
    values: np.ndarray


_R = TypeVar("_R")
_P = TypeVar("_P", bound=Envelope)


@dataclass(frozen=True, slots=True)
class Page(Generic[_R]):
    """One page: its rows, their number, and the vendor's address of the next page."""

    rows: _R
    count: int
    next_url: str | None


_PAGE: Final = msgspec.json.Decoder(_BarsPage)


def read_bars(body: bytes, symbol: str, timeframe: Timeframe, interval: Interval, after_us: int | None) -> Page[Rows]:
    """Return the bars of an aggregates page.

    Args:
        body: the unpacked answer to a request for `symbol` with `adjusted=false`.
        symbol: the ticker that the page must echo.
        timeframe: `5m` or `1d`; every bar starts on its grid (day bars at local midnight).
        interval: half-open UTC; no bar starts outside.
        after_us: start of the last bar of the page before, None for the first page.

    Raises:
        TransientError: the body is not JSON.
        DataError: it contradicts the request or itself.
        RefusedInBodyError: its status is not a success.
    """
    where = f"{symbol} {timeframe}"
    page = decode(_PAGE, body, where)
    if page.ticker != symbol:
        raise DataError(f"{where}: the answer is for ticker {page.ticker!r}.")
    rows = page.results or ()
    _check_envelope(page.adjusted, page.resultsCount, len(rows), where)
    ts_us, values = _matrix(rows, where)
    if rows:
        _check_stamps(ts_us, symbol, timeframe, interval, after_us)
        for rule, broken in _broken_rules(values):
            if broken.any():
                at = int(np.argmax(broken))
                raise DataError(f"{where}, bar {at} ({_when(ts_us[at])}): {rule}: {_shown(values, at)}.")
        _warn_of_vwap(ts_us, values, where)
    return Page(Rows(ts_us, values), len(ts_us), page.next_url)


def joined(pages: Sequence[Rows]) -> pd.DataFrame:
    """Return the bars of all pages of one answer, in order, as one bar frame."""
    if not pages:
        return empty()
    return _frame(np.concatenate([page.ts_us for page in pages]), np.hstack([page.values for page in pages]))


def _frame(ts_us: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """Return a bar frame of starts in microseconds and a matrix with the names of `VALUES` as rows."""
    return bar_frame(ts_us, dict(zip(VALUES, values, strict=True)))


def decode(decoder: msgspec.json.Decoder[_P], body: bytes, where: str, row: str = "bar") -> _P:
    """Return the typed page, whose rows the messages call `row`; raises what `read_bars` does."""
    failure: PipelineError
    try:
        page = decoder.decode(body.removeprefix(BOM_UTF8))
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), row)}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = TransientError(f"{where}: the answer of {len(body)} bytes is not readable JSON.")
    else:
        if page.status not in _SUCCESSES:
            raise RefusedInBodyError(page.status, page.error or page.message or "")
        return page
    raise failure


def in_words(message: str, row: str) -> str:
    """Return msgspec's message about a value with the row and the field in front."""
    place = _PLACE.search(message)
    what = message[: place.start()] if place else message
    missing = re.search(r"missing required field `(\w+)`", what)
    at = f", {row} {place['row']}" if place and place["row"] else ""
    name = missing[1] if missing else place["field"] if place else None
    text = "is missing" if missing else what.replace("`", "")
    return f"{at}, field {name}: {text}" if name else f"{at}: {text}"


def _check_envelope(adjusted: bool | None, results_count: int | None, rows: int, where: str) -> None:
    """Refuse a page that is adjusted, or whose number of rows is not the one it states."""
    if adjusted is not False:
        raise DataError(f"{where}: raw bars were requested and the answer says adjusted = {adjusted}.")
    if results_count != rows:
        raise DataError(f"{where}: resultsCount is {results_count} and there are {rows} rows.")


def _matrix(rows: Sequence[Bar], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts in microseconds, and the values with the names of `VALUES` as rows."""
    n, width = len(rows), 1 + len(_FIELDS)
    # Stamps travel as floats, which hold milliseconds exactly up to 2**53; what is larger is refused by its size.
    numbers = chain.from_iterable(map(attrgetter("t", *_FIELDS), rows))
    try:
        flat = np.fromiter(numbers, dtype="float64", count=n * width)
    except OverflowError:
        raise DataError(f"{where}, field t: a stamp has hundreds of digits.") from None
    table = flat.reshape(n, width)
    ms = table[:, 0]
    if (odd := (ms > _LATEST_MS) | (ms < 0)).any():
        at = int(np.argmax(odd))
        unit = "nanoseconds" if ms[at] >= _LATEST_US else "microseconds" if ms[at] > 0 else "a time before 1970"
        raise DataError(f"{where}, bar {at}, field t: {ms[at]:.0f} looks like {unit}; the API uses milliseconds.")
    return ms.astype("int64") * 1000, np.ascontiguousarray(table[:, 1:].T)


def _check_stamps(
    ts_us: np.ndarray, symbol: str, timeframe: Timeframe, interval: Interval, after_us: int | None
) -> None:
    where = f"{symbol} {timeframe}"
    outside = (ts_us < to_us(interval.start)) | (ts_us >= to_us(interval.end))
    if outside.any():
        at = int(np.argmax(outside))
        requested = f"[{interval.start.isoformat()}, {interval.end.isoformat()})"
        raise DataError(f"{where}, bar {at}, field t: {_when(ts_us[at])} is outside {requested}.")
    stale = np.diff(ts_us, prepend=ts_us[0] - 1 if after_us is None else after_us) <= 0
    if stale.any():
        at = int(np.argmax(stale))
        raise DataError(f"{where}, bar {at}, field t: {_when(ts_us[at])} does not come after the bar before it.")
    if (off := off_grid(ts_us, symbol, timeframe)).any():
        at = int(np.argmax(off))
        raise DataError(f"{where}, bar {at}, field t: {_when(ts_us[at])} is not on the grid of {timeframe} bars.")


def off_grid(ts_us: np.ndarray, symbol: str, timeframe: Timeframe) -> np.ndarray:
    """Return a mask: True where no bar of the timeframe starts; day bars start at local midnight."""
    if timeframe is Timeframe.D1:
        calendar = calendar_for(asset_class_of(symbol))
        days = calendar.session_days(ts_us).tolist()
        starts = np.fromiter((to_us(calendar.midnight(day)) for day in days), dtype="int64", count=len(days))
    else:
        starts = ts_us - ts_us % _SPAN_5M_US
    off: np.ndarray = starts != ts_us
    return off


def _broken_rules(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return each rule's sentence and which bars break it."""
    opened, high, low, close, volume, vwap, trades = values
    prices = values[:4]
    return [
        ("a price is not above 0 and finite", ~(np.isfinite(prices) & (prices > 0)).all(axis=0)),
        (
            "low <= open, close <= high does not hold",
            (np.minimum(opened, close) < low) | (np.maximum(opened, close) > high),
        ),
        ("the volume is infinite or below 0", ~(np.isfinite(volume) & (volume >= 0))),
        # It may be outside [low, high], see _warn_of_vwap; 0 stands for none where nothing traded.
        ("vw is infinite or below 0", np.isinf(vwap) | (vwap < 0)),
        ("n is not a count", (trades > _MOST_TRADES) | (trades < 0) | (trades != np.rint(trades)) & ~np.isnan(trades)),
    ]


def _warn_of_vwap(ts_us: np.ndarray, values: np.ndarray, where: str) -> None:
    # The vendor's vwap includes trades that its high and low exclude: a warning, not an error.
    high, low, vwap = values[1], values[2], values[5]
    outside = (vwap < low) | (vwap > high)
    if outside.any():
        first = _when(ts_us[int(np.argmax(outside))])
        _log.warning("%s: vw is outside [low, high] in %d bars, first at %s", where, int(outside.sum()), first)


def _when(us: int) -> str:
    """Return microseconds since 1970 UTC in ISO 8601."""
    return from_us(us).isoformat()


def _shown(values: np.ndarray, at: int) -> str:
    return ", ".join(f"{name} = {value:.10g}" for name, value in zip(_FIELDS, values[:, at], strict=True))


_CLOSE_TO_MIDNIGHT_US: Final = 8 * 3600 * 10**6  # from 16:00; clocks change on Sundays, so always 8 hours


class _MarketBar(Bar, gc=False, kw_only=True):
    """One row, which names its ticker."""

    T: str


class _MarketPage(Envelope):
    adjusted: bool | None = None
    resultsCount: int | None = None
    results: list[_MarketBar] | None = None


_MARKET_PAGE: Final = msgspec.json.Decoder(_MarketPage)


def read_market_day(body: bytes, day: date) -> pd.DataFrame:
    """Return the bars as a bar frame with a column `symbol` in front; every `ts` is 00:00 New York of `day`.

    The vendor stamps them at 16:00, also on days that close early.

    Raises:
        TransientError: the body is not JSON.
        DataError: it contradicts the request, repeats a ticker, has a bar on a date without a session, or stamps one
            other than 16:00 New York of `day`.
        RefusedInBodyError: its status is not a success.
    """
    where = f"US stocks on {day}"
    page = decode(_MARKET_PAGE, body, where)
    rows = page.results or ()
    _check_envelope(page.adjusted, page.resultsCount, len(rows), where)
    symbols = np.array([row.T for row in rows], dtype=object)
    ts_us, values = _matrix(rows, where)
    if rows:
        _check_rows(symbols, ts_us, day, where)
        bad = np.logical_or.reduce([broken for _, broken in _broken_rules(values)])
        if bad.any():
            named = ", ".join(symbols[bad][:5])
            _log.warning("%s: left out %d rows that contradict themselves, such as %s", where, int(bad.sum()), named)
        symbols, values = symbols[~bad], values[:, ~bad]
    midnight = to_us(calendar_for(AssetClass.US_EQUITY).midnight(day))
    bars = _frame(np.full(len(symbols), midnight, dtype="int64"), values)
    bars.insert(0, "symbol", symbols)
    return bars


def _check_rows(symbols: Sequence[str] | np.ndarray, ts_us: np.ndarray, day: date, where: str) -> None:
    seen: set[str] = set()
    for symbol in symbols:
        if symbol in seen:
            raise DataError(f"{where}: ticker {symbol!r} occurs twice.")
        seen.add(symbol)
    session = calendar_for(AssetClass.US_EQUITY).session_on(day)
    if session is None:
        raise DataError(f"{where}: there are {len(symbols)} bars, but no session on that date.")
    close_us = to_us(session.day_end) - _CLOSE_TO_MIDNIGHT_US
    if (wrong := ts_us != close_us).any():
        at = int(np.argmax(wrong))
        raise DataError(f"{where}: {symbols[at]} is stamped {_when(ts_us[at])} instead of {_when(close_us)}.")
