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
from market_data_pipeline.sandbox.query import Query, Refusal, request_id, whole

if TYPE_CHECKING:
    from market_data_pipeline.sandbox.view import Security, View

_DEFAULT_TICKERS: Final = 100
_MOST_TICKERS: Final = 1_000


def tickers(view: View, query: Query, root: str) -> bytes:
    """Answer with the tickers that match; one page of at most `limit`, without a next one."""
    del root
    if (text := query.get("active", "true")) not in {"true", "false"}:
        raise Refusal(400, f"Could not parse the parameter 'active': {text!r}. Use true or false.")
    limit = min(whole(query.get("limit", str(_DEFAULT_TICKERS)), "limit", 1, 10**9), _MOST_TICKERS)
    named = [query["ticker"]] if "ticker" in query else view.source.tickers()
    known = [found for name in named if (found := view.source.security(name)) is not None]
    rows = [_row(one) for one in known if (one.delisted is None) == (text == "true")]
    rows = [row for row in rows if query.get("market", row["market"]) == row["market"]][:limit]
    return _answer({"results": rows, "status": "OK", "count": len(rows)})


def ticker_details(view: View, query: Query, root: str, ticker: str) -> bytes:
    """Answer with what is known of an active ticker.

    Raises:
        Refusal: 404, there is none.
    """
    del query, root
    known = view.source.security(ticker)
    if known is None or known.delisted is not None:
        raise Refusal(404, "Ticker not found.")
    row = _row(known)
    if known.listed is not None:
        row["list_date"] = known.listed.isoformat()
    return _answer({"results": row, "status": "OK"})


def _row(known: Security) -> dict[str, Any]:
    asset_class = asset_class_of(known.ticker)
    row = {
        "ticker": known.ticker,
        "name": f"{known.ticker} (synthetic)",
        "market": asset_class.market.vendor_name,
        "locale": asset_class.market.locale,
        "active": known.delisted is None,
        "currency_name": "usd",
    }
    if known.delisted is not None:
        midnight = calendar_for(AssetClass.US_EQUITY).midnight(known.delisted).astimezone(dt.UTC)
        row["delisted_utc"] = f"{midnight:%Y-%m-%dT%H:%M:%SZ}"
    return row


def _answer(body: dict[str, Any]) -> bytes:
    return json.dumps({"request_id": request_id(), **body}, separators=(",", ":")).encode()
