"""Decode what the vendor says of securities: a ticker's changes, its details on a day, and pages of its list.

A value that cannot be read counts as not given: identity is worth having, but no bar waits for it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from market_data_pipeline.domain.identity import Delisted, Described
from market_data_pipeline.polygon.wire import Envelope, Page, decode

if TYPE_CHECKING:
    from typing import Any


class Changes(NamedTuple):
    """A security, and the days from which it had a ticker, as the vendor lists them."""

    described: Described
    changes: tuple[tuple[date, str], ...]


class ListedPage(NamedTuple):
    """Some of the active tickers: all of them from the first one to the last one, ascending."""

    listed: tuple[Described, ...]
    is_last: bool


class _Change(msgspec.Struct):
    ticker: str


class _Event(msgspec.Struct):
    type: object = None
    date: object = None
    ticker_change: _Change | None = None


class _Events(msgspec.Struct):
    events: list[_Event] = msgspec.field(default_factory=list)
    name: object = None
    composite_figi: object = None
    cik: object = None


class _EventsPage(Envelope):
    results: _Events | None = None


class _Details(msgspec.Struct):
    ticker: str
    active: bool = True
    delisted_utc: object = None
    name: object = None
    composite_figi: object = None
    cik: object = None
    type: object = None
    list_date: object = None


class _DetailsPage(Envelope):
    results: _Details | None = None


class _ListPage(Envelope):
    results: list[_Details] | None = None


_EVENTS: Final = msgspec.json.Decoder(_EventsPage)
_DETAILS: Final = msgspec.json.Decoder(_DetailsPage)
_LIST: Final = msgspec.json.Decoder(_ListPage)


def read_changes(body: bytes, ticker: str) -> Changes | None:
    """Return an answer of ticker events, without those that cannot be read; None for one that says nothing.

    Raises:
        TransientError: the body is not JSON.
        DataError: it has another shape.
        RefusedInBodyError: its status is not a success.
    """
    found = decode(_EVENTS, body, f"events of {ticker}", "event").results
    if found is None:
        return None
    changes = [
        (day, event.ticker_change.ticker)
        for event in found.events
        if event.type in (None, "ticker_change")
        and event.ticker_change is not None
        and event.ticker_change.ticker
        and (day := _day(event.date)) is not None
    ]
    described = Described(ticker, _text(found.composite_figi), _text(found.cik), _text(found.name))
    return Changes(described, tuple(sorted(changes)))


def read_details(body: bytes, ticker: str) -> Described | None:
    """Return what an answer of details says of a ticker; None for one that is about another ticker.

    Raises:
        PipelineError: as `read_changes`.
    """
    found = decode(_DETAILS, body, f"ticker {ticker}", "ticker").results
    return _described(found) if found is not None and found.ticker == ticker else None


def read_page(body: bytes) -> ListedPage:
    """Return a page of the list of tickers.

    Raises:
        PipelineError: as `read_changes`.
    """
    page = decode(_LIST, body, "tickers", "row")
    return ListedPage(tuple(map(_described, page.results or ())), page.next_url is None)


def read_list(body: bytes) -> Page[tuple[Described, ...]]:
    """Return a page of the list of tickers, and where the next one is.

    Raises:
        PipelineError: as `read_changes`.
    """
    page = decode(_LIST, body, "tickers", "row")
    rows = tuple(map(_described, page.results or ()))
    return Page(rows, len(rows), page.next_url)


def read_delisted(body: bytes, ticker: str) -> tuple[Delisted, ...]:
    """Return the securities of an answer that had a ticker last and are delisted, the one delisted last first.

    A row without a day of its delisting is left out: nobody could say which history is its own.

    Raises:
        PipelineError: as `read_changes`.
    """
    page = decode(_LIST, body, f"delisted {ticker}", "row")
    found = [
        Delisted(_described(row), instant.date(), instant)
        for row in page.results or ()
        if row.ticker == ticker and not row.active and (instant := _instant(row.delisted_utc)) is not None
    ]
    return tuple(sorted(found, key=lambda each: each.last_day, reverse=True))


def _described(row: _Details) -> Described:
    return Described(
        row.ticker,
        _text(row.composite_figi),
        _text(row.cik),
        _text(row.name),
        _text(row.type),
        _day(row.list_date),
    )


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _instant(value: Any) -> datetime | None:
    """Return an instant in UTC, in which the vendor gives days as their midnight."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if instant is None:
        return None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _day(value: Any) -> date | None:
    try:
        return date.fromisoformat(value[:10]) if isinstance(value, str) else None
    except ValueError:
        return None
