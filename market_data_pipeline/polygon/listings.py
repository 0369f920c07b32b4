"""Decode the vendor's list of tickers: whether it knows one, and since when that one is delisted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from market_data_pipeline.domain.life import Listing
from market_data_pipeline.polygon.wire import Envelope, decode

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Ticker(msgspec.Struct):
    ticker: str
    active: bool = True
    name: object = None
    list_date: object = None
    delisted_utc: object = None


class _TickerPage(Envelope):
    results: list[_Ticker] | None = None


_PAGE: Final = msgspec.json.Decoder(_TickerPage)

# What to ask, in this order, until the answer names the ticker: the list of inactive ones alone has `delisted_utc`, and
# the details of a ticker that is not active are a 404, as those of an unknown one.
QUESTIONS: Final[tuple[Mapping[str, str], ...]] = ({"active": "true"}, {"active": "false"})


def read_listing(body: bytes, symbol: str, asked_at: datetime) -> Listing | None:
    """Return what an answer says of `symbol`; None when it does not name it.

    A ticker that was reused has several rows: the one that is active counts, else the one delisted last. A name or a
    date that cannot be read counts as not given.

    Raises:
        TransientError: the body is not JSON.
        DataError: a row is malformed.
        RefusedInBodyError: its status is not a success.
    """
    page = decode(_PAGE, body, f"ticker {symbol}", "row")
    rows = [row for row in page.results or () if row.ticker == symbol]
    if not rows:
        return None
    last = max(rows, key=lambda row: (row.active, _delisted_at(row) or _LONG_AGO))
    listed, delisted = _instant(last.list_date), None if last.active else _delisted_at(last)
    name = last.name if isinstance(last.name, str) else None
    return Listing(asked_at, True, last.active, None if listed is None else listed.date(), delisted, name)


_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


def _delisted_at(row: _Ticker) -> datetime | None:
    instant = _instant(row.delisted_utc)
    if instant is None:
        return None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _instant(text: object) -> datetime | None:
    """Return a date or an instant in ISO 8601; None for anything else."""
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
