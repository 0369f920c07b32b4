"""The vendor's reference data on tickers: which are active, since when they are listed, when they were delisted.

As recorded of the vendor: the list has active tickers unless `active=false` is requested, and only rows of inactive
ones hold `delisted_utc`; the details of a ticker that is no longer active, or never was, are a 404.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.query import Query, Refusal, cursor, parse_day, request_id, whole
from market_data_pipeline.sandbox.view import FIRST_EVENT

if TYPE_CHECKING:
    from market_data_pipeline.sandbox.view import Security, View

_DEFAULT_TICKERS: Final = 100
_MOST_TICKERS: Final = 1_000
_LONGEST_OF_NYSE: Final = 3  # letters of a ticker there, with few exceptions
_FILTERS: Final = (("market", "market"), ("type", "type"), ("exchange", "primary_exchange"))
_FUNDS: Final = frozenset({"DIA", "GLD", "IWM", "QQQ", "SPY", "TLT", "VOO", "VTI", "XLE", "XLF", "XLK"})


def tickers(view: View, query: Query, root: str) -> bytes:
    """Answer with a page of the tickers that match, and where the next one is."""
    if (text := query.get("active", "true")) not in {"true", "false"}:
        raise Refusal(400, f"Could not parse the parameter 'active': {text!r}. Use true or false.")
    limit = min(whole(query.get("limit", str(_DEFAULT_TICKERS)), "limit", 1, 10**9), _MOST_TICKERS)
    first = query.get("ticker.gte", "")
    named = [query["ticker"]] if "ticker" in query else [each for each in view.source.tickers() if each >= first]
    known = [found for name in named if (found := view.source.security(name)) is not None]
    rows = [_row(one) for one in known if (one.delisted is None) == (text == "true")]
    rows = [row for row in rows if all(query.get(name, row.get(key)) == row.get(key) for name, key in _FILTERS)]
    skip = whole(query.get("skip", "0"), "cursor", 0, 10**9)
    page = rows[skip : skip + limit]
    body = {"results": page, "status": "OK", "count": len(page)}
    if skip + limit < len(rows):
        carried = {name: text for name, text in query.items() if name not in {"cursor", "skip"}}
        body["next_url"] = f"{root}/v3/reference/tickers?cursor={cursor(**carried, skip=skip + limit)}"
    return _answer(body)


def ticker_details(view: View, query: Query, root: str, ticker: str) -> bytes:
    """Answer with what is known of an active ticker.

    Raises:
        Refusal: 404, there is none.
    """
    del root
    day = parse_day(query["date"], "date") if "date" in query else None
    known = view.source.security(ticker) if day is None else view.source.security_on(ticker, day)
    if known is None or known.delisted is not None:
        raise Refusal(404, "Ticker not found.")
    row = _row(known)
    if known.listed is not None:
        row["list_date"] = known.listed.isoformat()
    return _answer({"results": row, "status": "OK"})


def ticker_events(view: View, query: Query, root: str, identifier: str) -> bytes:
    """Answer with the changes of ticker of the security that has a ticker now, or has a FIGI, the newest first.

    Raises:
        Refusal: 404, there is none, or it is no stock.
    """
    del query, root
    known = view.source.security(identifier)
    if known is None or asset_class_of(known.ticker) is not AssetClass.US_EQUITY:
        raise Refusal(404, f"No ticker events found for {identifier}.")
    changes = known.changes or ((known.listed or FIRST_EVENT, known.ticker),)
    events = [
        {"type": "ticker_change", "date": day.isoformat(), "ticker_change": {"ticker": ticker}}
        for day, ticker in reversed(changes)
    ]
    row = _row(known)
    named = {name: row[name] for name in ("name", "composite_figi")}
    return _answer({"results": {**named, "events": events}, "status": "OK"})


def _row(known: Security) -> dict[str, Any]:
    asset_class = asset_class_of(known.ticker)
    row: dict[str, Any] = {
        "ticker": known.ticker,
        "name": f"{known.name or known.ticker} (synthetic)",
        "market": asset_class.market.vendor_name,
        "locale": asset_class.market.locale,
        "active": known.delisted is None,
        "currency_name": "usd",
    }
    if asset_class is AssetClass.US_EQUITY:
        is_fund = known.ticker in _FUNDS
        exchange = "ARCX" if is_fund else "XNAS" if len(known.ticker) > _LONGEST_OF_NYSE else "XNYS"
        row |= {"type": "ETF" if is_fund else "CS", "primary_exchange": exchange, "composite_figi": known.figi}
    if known.delisted is not None:
        midnight = calendar_for(AssetClass.US_EQUITY).midnight(known.delisted).astimezone(dt.UTC)
        row["delisted_utc"] = f"{midnight:%Y-%m-%dT%H:%M:%SZ}"
    return row


def _answer(body: dict[str, Any]) -> bytes:
    return json.dumps({"request_id": request_id(), **body}, separators=(",", ":")).encode()
