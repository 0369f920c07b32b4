"""The vendor's endpoints: a request's path and query in, an answer's status and body out.

Keep out: sockets, keys and rate limits (server), and what is visible (view).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox import market_status
from market_data_pipeline.sandbox.encode import encode_bars, number
from market_data_pipeline.sandbox.pages import page_of, reverse
from market_data_pipeline.sandbox.query import (
    Refusal,
    adjusted,
    cursor,
    parse_day,
    parse_range,
    refused,
    request_id,
    whole,
    with_cursor,
)
from market_data_pipeline.sandbox.securities import ticker_details, ticker_events, tickers
from market_data_pipeline.sandbox.view import from_ms, to_ms

if TYPE_CHECKING:
    from market_data_pipeline.sandbox.bars import Bars, DividendRow, SplitRow
    from market_data_pipeline.sandbox.view import View

_OUTSIDE_PLAN: Final = (
    "Your plan doesn't include this data timeframe. Please upgrade your plan at https://polygon.io/pricing"
)
_PRESENT: Final = (
    "/stocks/v1/"  # where the present lists of splits and dividends are; the deprecated ones: /v3/reference/
)
# The codes of the deprecated list of dividends.
_OLDER_TYPES: Final = {"special": "SC", "supplemental": "SC", "irregular": "SC"}

Query = Mapping[str, str]
_R = TypeVar("_R")
Comparison = Callable[[dt.date, dt.date], bool]


class Answer(NamedTuple):
    """An HTTP answer; the body is JSON."""

    status: int
    body: bytes


def answer(view: View, path: str, query: Query, root: str) -> Answer:
    """Return the answer to `GET path?query`.

    Args:
        view: what is visible now.
        path: decoded, without the query.
        query: decoded, without the key.
        root: scheme, host and port as the client wrote them, for `next_url`.
    """
    try:
        for pattern, endpoint in _ROUTES:
            if match := pattern.fullmatch(path):
                return Answer(200, endpoint(view, with_cursor(query), root, *match.groups()))
    except Refusal as refusal:
        return Answer(refusal.status, refused(refusal.status, refusal.text))
    return Answer(404, refused(404, f"There is no endpoint {path}."))


def _aggregates(
    view: View, query: Query, root: str, ticker: str, multiplier: str, timespan: str, start: str, end: str
) -> bytes:
    requested = parse_range(ticker, multiplier, timespan, start, end, query)
    if requested.end_ms <= view.history_start:
        raise Refusal(403, _OUTSIDE_PLAN)
    page = page_of(view, requested)
    rewritten = adjusted(query)
    bars = view.adjusted(ticker, page.bars) if rewritten else page.bars
    offset = 0 if requested.step_ms else requested.calendar.vendor_day_offset() // dt.timedelta(milliseconds=1)
    next_url = None
    if page.resume is not None:
        resume = str(page.resume + offset)
        first, last = (start, resume) if requested.descending else (resume, end)
        path = f"/v2/aggs/ticker/{quote(ticker, safe=':')}/range/{multiplier}/{timespan}/{first}/{last}"
        # Like the vendor's, the cursor carries no `adjusted`: a client that does not repeat it gets the default.
        next_url = (
            f"{root}{path}?cursor={cursor(limit=requested.limit, sort='desc' if requested.descending else 'asc')}"
        )
    head = _counts(bars, rewritten, base=int(bars.base.sum()), ticker=ticker)
    if offset:
        midnights = requested.calendar.midnights_us(bars.t * 1000) // 1000
        bars = replace(bars, t=np.where(bars.t == midnights, bars.t + offset, bars.t))
    return _envelope(view, head, encode_bars(reverse(bars) if requested.descending else bars), next_url)


def _previous(view: View, query: Query, root: str, ticker: str) -> bytes:
    del root
    calendar = calendar_for(AssetClass.US_EQUITY)
    today = calendar.session_date(view.now)
    week = to_ms(calendar.midnight(today - dt.timedelta(days=8)))
    bars = view.days(ticker, week, to_ms(calendar.midnight(today))).take(slice(-1, None))
    rewritten = adjusted(query)
    head = _counts(bars, rewritten, base=len(bars), ticker=ticker)
    return _envelope(view, head, _named_row(view, ticker, bars, rewritten))


def _grouped(view: View, query: Query, root: str, date: str) -> bytes:
    del root
    calendar = calendar_for(AssetClass.US_EQUITY)
    day = parse_day(date, "date")
    start, end = (to_ms(calendar.midnight(day + dt.timedelta(days=i))) for i in (0, 1))
    if end <= view.history_start:
        raise Refusal(403, _OUTSIDE_PLAN)
    rewritten = adjusted(query)
    stocks = [t for t in view.source.tickers() if asset_class_of(t).market.has_corporate_actions]
    rows = [row for t in stocks if (row := _named_row(view, t, view.days(t, start, end), rewritten))]
    head = {"queryCount": len(rows), "resultsCount": len(rows), "adjusted": rewritten}
    return _envelope(view, head, b",".join(rows))


def _splits(view: View, query: Query, root: str, path: str) -> bytes:
    """Answer both lists: the present one, and the deprecated one under /v3, which says less of each split."""
    present = path.startswith(_PRESENT)
    found = [split for split in view.splits() if _matches(split.ticker, split.execution_date, "execution_date", query)]
    factors = _historical_factors(view) if present else {}
    return _listed(view, query, root, path, found, lambda split: _split_text(split, factors.get(split)))


def _dividends(view: View, query: Query, root: str, path: str) -> bytes:
    """Answer both lists of dividends; no `historical_adjustment_factor`, which would need the bars of every ticker."""
    present = path.startswith(_PRESENT)
    tickers = query.get("ticker.any_of", "").split(",") if present and "ticker.any_of" in query else None
    found = [
        each
        for each in view.dividends()
        if _matches(each.ticker, each.ex_date, "ex_dividend_date", query)
        and (tickers is None or each.ticker in tickers)
    ]
    return _listed(view, query, root, path, found, lambda each: _dividend_text(view, each, present))


def _listed(view: View, query: Query, root: str, path: str, found: list[_R], written: Callable[[_R], str]) -> bytes:
    """Return a page of a list, which is by ascending date, in the order and from the place that are requested."""
    present = path.startswith(_PRESENT)
    limit = min(whole(query.get("limit", "100" if present else "10"), "limit", 1, 10**9), 5_000 if present else 1_000)
    skip = whole(query.get("skip", "0"), "cursor", 0, 10**9)
    order = query.get("sort", "").rpartition(".")[2] if present else query.get("order")
    if order != "asc":
        found.reverse()
    rows = [written(each) for each in found[skip : skip + limit]]
    body: dict[str, Any] = {"status": view.status, "request_id": request_id()}
    if skip + limit < len(found):
        carried = {name: text for name, text in query.items() if name not in {"cursor", "skip"}}
        body["next_url"] = f"{root}{path}?cursor={cursor(**carried, skip=skip + limit)}"
    return b'{"results":[' + ",".join(rows).encode() + b"]," + _text(body)[1:]


def _historical_factors(view: View) -> dict[SplitRow, float]:
    """Return what a price before each split is multiplied by to be one of after the last."""
    found: dict[SplitRow, float] = {}
    so_far: dict[str, float] = {}
    for split in reversed(view.splits()):
        so_far[split.ticker] = so_far.get(split.ticker, 1.0) * split.split_from / split.split_to
        found[split] = so_far[split.ticker]
    return found


def _split_text(split: SplitRow, historical: float | None) -> str:
    kind = "forward_split" if split.split_to > split.split_from else "reverse_split"
    more = ("", "") if historical is None else (
        f'"adjustment_type":"{kind}",', f'"historical_adjustment_factor":{number(round(historical, 6))},'
    )  # fmt: skip
    return (
        f'{{{more[0]}"execution_date":"{split.execution_date}",{more[1]}"id":"E{_digest(split)}",'
        f'"split_from":{number(split.split_from)},"split_to":{number(split.split_to)},'
        f'"ticker":{json.dumps(split.ticker)}}}'
    )


def _dividend_text(view: View, each: DividendRow, present: bool) -> str:
    row: dict[str, Any] = {
        "cash_amount": each.amount,
        "currency": each.currency,
        "declaration_date": each.declared and str(each.declared),
        "ex_dividend_date": str(each.ex_date),
        "frequency": each.frequency,
        "id": f"E{_hashed(f'{each.ticker} {each.ex_date} {each.amount} {each.currency}')}",
        "pay_date": each.pay and str(each.pay),
        "record_date": each.record and str(each.record),
        "ticker": each.ticker,
    }
    if present:
        later = (s for s in view.splits() if s.ticker == each.ticker and s.execution_date > each.ex_date)
        amount = each.amount * math.prod(split.split_from / split.split_to for split in later)
        row |= {"distribution_type": each.type, "split_adjusted_cash_amount": round(amount, 6)}
    else:
        row["dividend_type"] = _OLDER_TYPES.get(each.type, "CD")
    return _text({name: value for name, value in sorted(row.items()) if value is not None}).decode()


def _digest(split: SplitRow) -> str:
    return _hashed(f"{split.ticker} {split.execution_date} {split.split_to / split.split_from}")


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


_COMPARISONS: Final[Mapping[str, Comparison]] = {
    "": lambda day, bound: day == bound,
    ".gte": lambda day, bound: day >= bound,
    ".gt": lambda day, bound: day > bound,
    ".lte": lambda day, bound: day <= bound,
    ".lt": lambda day, bound: day < bound,
}


def _matches(ticker: str, day: dt.date, name: str, query: Query) -> bool:
    """Return whether a row's ticker and its day, which parameters call `name`, are requested."""
    return query.get("ticker", ticker) == ticker and all(
        holds(day, parse_day(query[name + suffix], name + suffix))
        for suffix, holds in _COMPARISONS.items()
        if name + suffix in query
    )


def _named_row(view: View, ticker: str, bars: Bars, rewritten: bool) -> bytes:
    """Return a day bar as whole-market answers write it: with its ticker, and at 16:00 New York rather than 00:00."""
    if not len(bars):
        return b""
    shown = view.adjusted(ticker, bars) if rewritten else bars
    calendar = calendar_for(AssetClass.US_EQUITY)
    close = dt.datetime.combine(calendar.session_date(from_ms(int(bars.t[0]))), dt.time(16), calendar.tz)
    row = encode_bars(replace(shown, t=np.array([to_ms(close)], dtype="int64")))
    return b'{"T":' + json.dumps(ticker).encode() + b"," + row[1:]


def _counts(bars: Bars, rewritten: bool, *, base: int, ticker: str) -> dict[str, Any]:
    counts = {"ticker": ticker, "queryCount": base, "resultsCount": len(bars)}
    return counts | ({"adjusted": rewritten} if asset_class_of(ticker).market.has_volume else {})


def _envelope(view: View, head: dict[str, Any], rows: bytes | bytearray, next_url: str | None = None) -> bytes:
    """Return a page in the vendor's order of keys; an empty one has neither `results` nor `count`."""
    tail: dict[str, Any] = {"status": view.status, "request_id": request_id()}
    if rows:
        tail["count"] = head["resultsCount"]
    if next_url is not None:
        tail["next_url"] = next_url
    results = (b',"results":[', rows, b"]") if rows else ()
    return b"".join((_text(head)[:-1], *results, b",", _text(tail)[1:]))


def _text(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


_ROUTES: Final[tuple[tuple[re.Pattern[str], Callable[..., bytes]], ...]] = (
    (re.compile(r"/v2/aggs/ticker/([^/]+)/range/([^/]+)/([^/]+)/([^/]+)/([^/]+)"), _aggregates),
    (re.compile(r"/v2/aggs/ticker/([^/]+)/prev"), _previous),
    (re.compile(r"/v2/aggs/grouped/locale/us/market/stocks/([^/]+)", re.IGNORECASE), _grouped),
    (re.compile(r"/v3/reference/tickers"), tickers),
    (re.compile(r"/v3/reference/tickers/([^/]+)"), ticker_details),
    (re.compile(r"/vX/reference/tickers/([^/]+)/events"), ticker_events),
    (re.compile(r"(/stocks/v1/splits|/v3/reference/splits)"), _splits),
    (re.compile(r"(/stocks/v1/dividends|/v3/reference/dividends)"), _dividends),
    (re.compile(r"/v1/marketstatus/upcoming"), market_status.upcoming),
    (re.compile(r"/v1/marketstatus/now"), market_status.now),
)
