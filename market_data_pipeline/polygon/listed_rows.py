"""The rows of a reference list of the whole market, of which one ticker's bad row must not hold up the others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_log = logging.getLogger(__name__)
_Row = TypeVar("_Row")


class _Ticker(msgspec.Struct):
    ticker: str


_NAME: Final = msgspec.json.Decoder(_Ticker)


def readable_rows(
    results: Iterable[msgspec.Raw],
    read: Callable[[msgspec.Raw, str], _Row],
    what: str,
    followed: Collection[str] | None,
    unreadable: dict[str, str] | None,
) -> list[_Row]:
    """Return the rows that can be read, of all tickers; the others are left out with a warning.

    Args:
        results: the rows of a page as they came.
        read: decodes a row, of which the second argument says which one it is; raises DataError.
        what: is listed, in the singular, such as `split`.
        followed: the tickers that matter; None for all.
        unreadable: receives, by ticker, what is wrong with a row of a ticker that matters, or, under `NO_TICKER`, with
            a row without a ticker; None to raise it instead.

    Raises:
        DataError: a row that matters cannot be read, and `unreadable` is None.
    """
    rows, left_out = [], []
    for i, raw in enumerate(results):
        try:
            rows.append(read(raw, f"{what}s, row {i}"))
        except DataError as error:
            ticker = _ticker_of(raw)
            if followed is not None and ticker != NO_TICKER and ticker not in followed:
                left_out.append(str(error))
                continue
            if unreadable is None:
                raise
            _log.warning("A %s of %s is left out until it can be read: %s", what, ticker or "an unnamed ticker", error)
            unreadable.setdefault(ticker, str(error))
    if left_out:
        _log.warning("Left out %d %ss of tickers that are not followed, such as: %s", len(left_out), what, left_out[0])
    return rows


def _ticker_of(raw: msgspec.Raw) -> str:
    try:
        return _NAME.decode(raw).ticker or NO_TICKER
    except msgspec.ValidationError:
        return NO_TICKER
