"""Decode the vendor's bars, pages of one symbol or a day of the whole market, and refuse what cannot be trusted.

A page's envelope is accepted whole or not at all: it must echo the request. Its rows are judged one by one: a bar that
breaks a rule below has its session day refused (`polygon.bad_rows`), and the other days of the answer come in. A body
that is not JSON is a transient error; an envelope that contradicts the request is a data error. In a market day each
row belongs to another series: one that cannot be used is left out with a warning. 10,000 bars take about 7 ms:
msgspec into typed rows, then one pass into numpy (orjson's dictionaries cost as much before any type is checked,
pyarrow's JSON reader half as much again). Rows are looked at one by one only when that finds a fault.
"""

from __future__ import annotations

import json
import logging
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from market_data_pipeline.domain.bars import VALUES, bar_frame, empty
from market_data_pipeline.domain.calendar import calendar_for, from_us, to_us
from market_data_pipeline.domain.errors import (
    DataError,
    PipelineError,
    TransientError,
    UnreadableAnswerError,
    printable,
)
from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.polygon import bad_rows
from market_data_pipeline.polygon.refusals import RefusedInBodyError
from market_data_pipeline.polygon.rows import (
    FIELDS,
    LATEST_MS,
    Bar,
    IndexBar,
    Rows,
    at_midnight,
    in_words,
    odd_stamp,
    off_grid,
    optional_rules,
    price_rules,
    shown,
    when,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.intervals import Interval


_log = logging.getLogger(__name__)
_SUCCESSES: Final = frozenset({"OK", "DELAYED"})
_LITERALS: Final = re.compile(rb"[:\[,\s-](?:NaN|Infinity)\b")


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


class _IndexPage(Envelope):
    """A page of an index: its envelope says neither `adjusted` nor, in the vendor's samples, `resultsCount`."""

    ticker: str | None = None
    adjusted: bool | None = None
    resultsCount: int | None = None
    results: list[IndexBar] | None = None


class _BarsEnvelope(Envelope):
    """A page of bars whose rows are decoded one by one."""

    ticker: str | None = None
    adjusted: bool | None = None
    resultsCount: int | None = None
    results: list[object] | None = None


_R = TypeVar("_R")
_P = TypeVar("_P", bound=Envelope)


@dataclass(frozen=True, slots=True)
class Page(Generic[_R]):
    """One page: its rows, their number, and the vendor's address of the next page."""

    rows: _R
    count: int
    next_url: str | None


class BarsAnswer(NamedTuple):
    """What all pages of one answer say.

    Attributes:
        bars: a bar frame; without the refused days and without what lies in no session.
        refused: why each day with a bad row cannot be believed, by session date.
        outside: a bar frame of the bars that lie in no session.
        warnings: sentences about what was taken in although it was odd.
    """

    bars: pd.DataFrame
    refused: Mapping[date, str]
    outside: pd.DataFrame
    warnings: tuple[str, ...]


_PAGE: Final = msgspec.json.Decoder(_BarsPage)
_INDEX_PAGE: Final = msgspec.json.Decoder(_IndexPage)


def read_bars(
    body: bytes, symbol: str, timeframe: Timeframe, interval: Interval, earlier: Sequence[Rows] = ()
) -> Page[Rows]:
    """Return the bars of an aggregates page.

    Args:
        body: the unpacked answer to a request for `symbol` with `adjusted=false`.
        symbol: the ticker that the page must echo.
        timeframe: `5m` or `1d`; every bar starts on its grid (day bars at local midnight; those of indices, which the
            vendor starts an hour later, come out at midnight too).
        interval: half-open UTC; no bar starts outside.
        earlier: the pages before.

    Raises:
        TransientError: the body is not JSON.
        DataError: the envelope contradicts the request, or no row of the page has a usable stamp after those before.
        RefusedInBodyError: its status is not a success.
    """
    where = f"{symbol} {timeframe}" + (f", page {len(earlier) + 1}" if earlier else "")
    has_volume = asset_class_of(symbol).market.has_volume
    page: _BarsPage | _IndexPage | _BarsEnvelope
    flaws: dict[int, str] = {}
    warnings: list[str] = []
    try:
        page = (_PAGE if has_volume else _INDEX_PAGE).decode(body.removeprefix(BOM_UTF8))
        table = _table(page.results or ())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        page, warnings = _lenient(body, where)
        table, flaws, notes = bad_rows.decoded(page.results or (), where, Bar if has_volume else IndexBar)
        warnings += notes
    _check_status(page)
    if page.ticker != symbol:
        raise DataError(f"{where}: the answer is for ticker {page.ticker!r}.")
    if has_volume:
        _check_envelope(page.adjusted, page.resultsCount, len(table), where)
    elif page.resultsCount is not None:  # of an index there is nothing to adjust
        _check_envelope(False, page.resultsCount, len(table), where)
    if timeframe is Timeframe.D1:
        table[:, 0] = at_midnight(table[:, 0], symbol)
    if not len(table):
        return Page(Rows(*_EMPTY, warnings=tuple(warnings)), 0, page.next_url)
    if flaws or (fast := _clean(table, symbol, timeframe, interval, earlier)) is None:
        rows = bad_rows.sifted(table, flaws, symbol, timeframe, interval, earlier, where)
    else:
        rows = Rows(*fast, first_us=int(fast[0][0]), last_us=int(fast[0][-1]))
    _warn_of_vwap(rows.ts_us, rows.values, where)
    return Page(rows._replace(warnings=(*warnings, *rows.warnings)), len(table), page.next_url)


def joined(pages: Sequence[Rows], symbol: str, timeframe: Timeframe, interval: Interval) -> BarsAnswer:
    """Return what all pages of one answer say, in order."""
    if not pages:
        return BarsAnswer(empty(), {}, empty(), ())
    calendar = calendar_for(asset_class_of(symbol))
    refused: dict[date, str] = {}
    for number, page in enumerate(pages):
        for row in page.bad:
            following = (later.first_us for later in pages[number + 1 :] if later.first_us is not None)
            high_us = row.high_us if row.high_us is not None else next(following, to_us(interval.end) - 1)
            first, last = (calendar.session_date(from_us(us)) for us in (row.low_us, high_us))
            for session in calendar.sessions(first, last + timedelta(days=1)):
                refused.setdefault(session.date, row.reason)
    ts_us, values = np.concatenate([page.ts_us for page in pages]), np.hstack([page.values for page in pages])
    if refused:
        kept = ~np.isin(calendar.session_days(ts_us), np.array([*refused], dtype="datetime64[D]"))
        ts_us, values = ts_us[kept], values[:, kept]
    apart = [page.outside for page in pages if page.outside is not None]
    outside = empty()
    if apart:
        outside = _frame(np.concatenate([each.ts_us for each in apart]), np.hstack([each.values for each in apart]))
    warnings = [warning for page in pages for warning in page.warnings]
    if count := len(outside):
        what = "A bar lies" if count == 1 else f"{count} bars lie"
        many = count > _MANY_OUTSIDE * (count + len(ts_us))
        doubt = " There are many of them: is the calendar wrong about these hours?" if many else ""
        first = outside["ts"].iloc[0].isoformat()
        warnings.append(f"{symbol} {timeframe}: {what} in no session, first {first}; left out.{doubt}")
    return BarsAnswer(_frame(ts_us, values), dict(sorted(refused.items())), outside, tuple(warnings))


_MANY_OUTSIDE: Final = 0.1  # of an answer's bars: stray prints are a few, a day that the calendar does not know is not
_EMPTY: Final = (np.empty(0, dtype="int64"), np.empty((len(VALUES), 0)))


def _frame(ts_us: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """Return a bar frame of starts in microseconds and a matrix with the names of `VALUES` as rows."""
    return bar_frame(ts_us, dict(zip(VALUES, values, strict=True)))


def _clean(
    table: np.ndarray, symbol: str, timeframe: Timeframe, interval: Interval, earlier: Sequence[Rows]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the starts and the values of a page without any fault; None when there is one."""
    ms = table[:, 0]
    if ms[0] * 1000 < to_us(interval.start) or ms[-1] * 1000 >= to_us(interval.end) or (np.diff(ms) <= 0).any():
        return None
    ts_us, values = ms.astype("int64") * 1000, np.ascontiguousarray(table[:, 1:].T)
    after_us = next((page.last_us for page in reversed(earlier) if page.last_us is not None), None)
    has_volume = asset_class_of(symbol).market.has_volume
    if (
        (after_us is not None and ts_us[0] <= after_us)
        or off_grid(ts_us, symbol, timeframe).any()
        or not calendar_for(asset_class_of(symbol)).in_session(timeframe, ts_us).all()
        or any(broken.any() for _, broken in (*price_rules(values, has_volume=has_volume), *optional_rules(values)))
    ):
        return None
    return ts_us, values


def _lenient(body: bytes, where: str) -> tuple[_BarsEnvelope, list[str]]:
    """Return the page with undecoded rows, read as a browser would not: NaN and Infinity count as numbers."""
    failure: PipelineError
    try:
        parsed = json.loads(body.removeprefix(BOM_UTF8))
        page = msgspec.convert(parsed, _BarsEnvelope)
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), 'bar')}.")
    except (ValueError, RecursionError):
        failure = _unreadable(body, where)
    else:
        strict = _LITERALS.search(body) is None
        return page, [] if strict else [f"{where}: the answer has NaN or Infinity in it, which is not JSON."]
    raise failure


def decode(decoder: msgspec.json.Decoder[_P], body: bytes, where: str, row: str = "bar") -> _P:
    """Return the typed page, whose rows the messages call `row`; raises what `read_bars` does."""
    failure: PipelineError
    try:
        page = decoder.decode(body.removeprefix(BOM_UTF8))
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), row)}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = _unreadable(body, where)
    else:
        _check_status(page)
        return page
    raise failure


def _unreadable(body: bytes, where: str) -> TransientError:
    """Return the failure of a body that is not JSON; a proxy's page says nothing about what was requested."""
    is_page = body.removeprefix(BOM_UTF8).lstrip().startswith(b"{")
    failure = UnreadableAnswerError if is_page else TransientError
    return failure(f"{where}: the answer of {len(body)} bytes is not readable JSON.")


def _check_status(page: Envelope) -> None:
    if page.status not in _SUCCESSES:
        raise RefusedInBodyError(page.status, page.error or page.message or "")


def _check_envelope(adjusted: bool | None, results_count: int | None, rows: int, where: str) -> None:
    """Refuse a page that is adjusted, or whose number of rows is not the one it states."""
    if adjusted is not False:
        raise DataError(f"{where}: raw bars were requested and the answer says adjusted = {adjusted}.")
    if results_count != rows:
        raise DataError(f"{where}: resultsCount is {results_count} and there are {rows} rows.")


def _table(rows: Sequence[Bar | IndexBar]) -> np.ndarray:
    """Return a row for each bar: its stamp in milliseconds, then its values in the order of `VALUES`.

    Stamps travel as floats, which hold milliseconds exactly up to 2**53; what is larger is refused by its size.

    Raises:
        OverflowError: a stamp has hundreds of digits.
    """
    numbers = chain.from_iterable(map(attrgetter("t", *FIELDS), rows))
    width = 1 + len(FIELDS)
    return np.fromiter(numbers, dtype="float64", count=len(rows) * width).reshape(len(rows), width)


def _warn_of_vwap(ts_us: np.ndarray, values: np.ndarray, where: str) -> None:
    # The vendor's vwap includes trades that its high and low exclude: a warning, not an error.
    high, low, vwap = values[1], values[2], values[5]
    outside = (vwap < low) | (vwap > high)
    if outside.any():
        first = when(ts_us[int(np.argmax(outside))])
        _log.warning("%s: vw is outside [low, high] in %d bars, first at %s", where, int(outside.sum()), first)


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

    The vendor stamps them at 16:00, also on days that close early. A row that cannot be used is left out with a
    warning: the symbol is then requested on its own. An unreadable `vw` or `n` counts as unknown.

    Raises:
        TransientError: the body is not JSON.
        DataError: it contradicts the request, has a bar on a date without a session, or has no row that can be used.
        RefusedInBodyError: its status is not a success.
    """
    where = f"US stocks on {day}"
    rows, flaws = _market_rows(body, where)
    symbols = np.array([row.T for row in rows], dtype=object)
    table = _table(rows)
    ts_us, values = table[:, 0].astype("int64") * 1000, np.ascontiguousarray(table[:, 1:].T)
    if rows:
        good = _good_rows(symbols, ts_us, values, day, where, flaws)
        symbols, values = symbols[good], values[:, good]
    if flaws and not len(symbols):
        raise DataError(flaws[0])
    if flaws:
        _log.warning("%s: left out %d rows that cannot be used; %s", where, len(flaws), printable("; ".join(flaws[:5])))
    midnight = to_us(calendar_for(AssetClass.US_EQUITY).midnight(day))
    bars = _frame(np.full(len(symbols), midnight, dtype="int64"), values)
    bars.insert(0, "symbol", symbols)
    return bars


def _market_rows(body: bytes, where: str) -> tuple[Sequence[_MarketBar], list[str]]:
    """Return the rows of a market day, and what is wrong with those that do not decode."""
    page: _MarketPage | _BarsEnvelope
    rows: list[_MarketBar] = []
    flaws: list[str] = []
    try:
        page = _MARKET_PAGE.decode(body.removeprefix(BOM_UTF8))
        rows = page.results or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        page, _ = _lenient(body, where)
        for at, row in enumerate(page.results or ()):
            try:
                rows.append(bad_rows.converted(row, _MarketBar)[0])
            except msgspec.ValidationError as error:
                flaws.append(f"{where}, bar {at}{in_words(str(error), 'bar')}.")
    _check_status(page)
    _check_envelope(page.adjusted, page.resultsCount, len(rows) + len(flaws), where)
    stamped = [row for row in rows if 0 <= row.t <= LATEST_MS]
    if len(stamped) < len(rows):
        odd = (row for row in rows if not 0 <= row.t <= LATEST_MS)
        flaws += [f"{where}: {row.T}, field t: {odd_stamp(min(row.t, 10**18))}." for row in odd]
    return stamped, flaws


def _good_rows(
    symbols: np.ndarray, ts_us: np.ndarray, values: np.ndarray, day: date, where: str, flaws: list[str]
) -> np.ndarray:
    """Return which rows can be used, and add what is wrong with the others to `flaws`."""
    session = calendar_for(AssetClass.US_EQUITY).session_on(day)
    if session is None:
        raise DataError(f"{where}: there are {len(symbols)} bars, but no session on that date.")
    good = np.ones(len(symbols), dtype=bool)
    close_us = to_us(session.day_end) - _CLOSE_TO_MIDNIGHT_US
    for at in np.flatnonzero(ts_us != close_us).tolist():
        good[at] = False
        flaws.append(f"{where}: {symbols[at]} is stamped {when(ts_us[at])} instead of {when(close_us)}.")
    for number, (_, broken) in enumerate(optional_rules(values), start=5):
        values[number, broken] = np.nan
    for rule, broken in price_rules(values):
        for at in np.flatnonzero(broken & good).tolist():
            good[at] = False
            flaws.append(f"{where}: {symbols[at]}: {rule}: {shown(values, at)}.")
    first: dict[str, int] = {}
    for at, symbol in enumerate(symbols):
        if (other := first.setdefault(symbol, at)) == at:
            continue
        good[at] = False
        if not np.array_equal(values[:, at], values[:, other], equal_nan=True):
            good[other] = False
            flaws.append(f"{where}: ticker {symbol!r} occurs twice.")
    return good
