"""Decode the vendor's grouped-daily answer: one day's bars of every US stock.

Each row is a series of its own, so a row that contradicts itself is left out with a warning and the others stay; in
everything else the answer is trusted as a page of bars is (pages).

Add here: what concerns the market as a whole. Keep out: the rules for bars (pages).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from market_data_pipeline.domain.failures import DataError
from market_data_pipeline.domain.instants import to_us
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.domain.sessions import calendar_for
from market_data_pipeline.polygon.pages import Bar, Envelope, broken_rules, check_envelope, decode, frame, matrix, when

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    import pandas as pd

_log = logging.getLogger(__name__)

_CLOSE_TO_MIDNIGHT_US: Final = 8 * 3600 * 10**6  # from 16:00; clocks change on Sundays, so always 8 hours


class _MarketBar(Bar, gc=False, kw_only=True):
    """One row, which names its ticker."""

    T: str


class _MarketPage(Envelope):
    adjusted: bool | None = None
    resultsCount: int | None = None
    results: list[_MarketBar] | None = None


_PAGE: Final = msgspec.json.Decoder(_MarketPage)


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
    page = decode(_PAGE, body, where)
    rows = page.results or ()
    check_envelope(page.adjusted, page.resultsCount, len(rows), where)
    symbols = np.array([row.T for row in rows], dtype=object)
    ts_us, values = matrix(rows, where)
    if rows:
        _check_rows(symbols, ts_us, day, where)
        bad = np.logical_or.reduce([broken for _, broken in broken_rules(values)])
        if bad.any():
            named = ", ".join(symbols[bad][:5])
            _log.warning("%s: left out %d rows that contradict themselves, such as %s", where, int(bad.sum()), named)
        symbols, values = symbols[~bad], values[:, ~bad]
    midnight = to_us(calendar_for(AssetClass.US_EQUITY).midnight(day))
    bars = frame(np.full(len(symbols), midnight, dtype="int64"), values)
    bars.insert(0, "symbol", symbols)
    return bars


def _check_rows(symbols: Sequence[str] | np.ndarray, ts_us: np.ndarray, day: date, where: str) -> None:
    seen: set[str] = set()
    for symbol in symbols:
        if symbol in seen:
            raise DataError(f"{where}: ticker {symbol!r} comes twice.")
        seen.add(symbol)
    session = calendar_for(AssetClass.US_EQUITY).session_on(day)
    if session is None:
        raise DataError(f"{where}: there are {len(symbols)} bars, and no session on that date.")
    close_us = to_us(session.day_end) - _CLOSE_TO_MIDNIGHT_US
    if (wrong := ts_us != close_us).any():
        at = int(np.argmax(wrong))
        raise DataError(f"{where}: {symbols[at]} is stamped {when(ts_us[at])} instead of {when(close_us)}.")
