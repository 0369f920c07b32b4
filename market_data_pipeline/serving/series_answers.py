"""From one understood request about a series to its answer: what is in memory, what is read, how it is worded.

Add here: where the records of an answer come from. Keep out: parameters and routes (series_routes), statements
(reading), how an answer is sent (answers), and what is kept for how long (shelf).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from market_data_pipeline.reports import series_records as reading
from market_data_pipeline.serving.answers import Answer, RenderedResponse, opening
from market_data_pipeline.serving.cache import (
    DEEPEST,
    SCOPE_KEY,
    SHELF_LIFE_SECONDS,
    Flights,
    Renewals,
    RequestKey,
    Shelf,
    Stock,
    StockKey,
    Ticket,
    bound,
    depth_for,
    packed,
    start_of,
)
from market_data_pipeline.serving.formats import (
    ACCEPTED,
    Media,
    encode,
    instant,
    json_array,
    json_lines,
    media_for,
    takes_gzip,
)
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.store.backfill_requests import request_backfill
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import sqlalchemy as sa
    from starlette.requests import Request
    from starlette.responses import Response

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Column, Rows
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.store.backfill_requests import BackfillRequest

T = TypeVar("T")

REQUESTED_BY: Final = "api"
ASK_AGAIN_AFTER: Final = 60  # seconds; the sensor looks twice a minute and a series takes a few seconds


@dataclass(frozen=True, slots=True)
class Wish:
    """One request, understood: what to read and how to word it."""

    series: Series
    route: str
    records_key: str
    columns: Sequence[Column]
    selection: sa.TextClause
    wanted: reading.Range
    watermarks: Callable[[reading.SeriesSummary], reading.Watermarks | None]
    adjusted: bool = True
    as_of: datetime | None = None
    members: dict[str, Any] = field(default_factory=dict)  # further members of a JSON answer

    @property
    def stock_key(self) -> StockKey:
        """The stock that the answer could be cut from."""
        return StockKey(self.series, self.records_key, self.adjusted)

    def read(self, connection: sa.Connection, requested: reading.Range) -> Rows:
        """Return the records of a range."""
        return reading.read_records(
            connection, self.selection, self.series, requested, adjusted=self.adjusted, as_of=self.as_of
        )


@dataclass
class SeriesAnswers:
    """Makes answers; requests for the same bytes, or from the same stock, at the same time share one reading."""

    database: Database
    shelf: Shelf
    clock: Callable[[], datetime]
    cut: Callable[[], None]  # called for each answer that was cut from what was in memory
    renewals: Renewals
    _flights: Flights = field(default_factory=Flights)

    async def respond(self, request: Request, wish: Wish) -> Response:
        """Return the response to a request that the shelf could not answer.

        Raises:
            Problem: 404 for an unknown or a never computed series, 406 when no representation is acceptable.
            DatabaseUnavailableError: the database cannot be used.
        """
        headers = request.headers
        media = media_for(",".join(headers.getlist("accept")))
        if media is None:
            raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"Offered are {ACCEPTED}.")
        answer = await self._answer(request.scope.get(SCOPE_KEY), wish, media)
        if gzip := takes_gzip(",".join(headers.getlist("accept-encoding"))):
            await answer.compress()
        if_none_match = ",".join(headers.getlist("if-none-match"))
        return RenderedResponse(answer.render(self.clock(), gzip=gzip, if_none_match=if_none_match))

    async def _answer(self, key: RequestKey | None, wish: Wish, media: Media) -> Answer:
        ticket = self.shelf.ticket(wish.series)
        if key is None or ticket is None:
            return await self._make(wish, media)
        answer = None
        if media is Media.JSON and wish.as_of is None:
            answer = await self._from_stock(wish, ticket)
        if answer is None:
            answer = await self._flights.share((key, ticket), lambda: self._make(wish, media))
        self.shelf.answers.put(key, answer, ticket)
        self.shelf.asked.add(wish.series)  # only now: names that nobody follows would be remembered without end
        return answer

    async def _from_stock(self, wish: Wish, ticket: Ticket) -> Answer | None:
        """Return the answer cut from a stock, which is read if it can be deep enough; None when it cannot."""
        key, wanted = wish.stock_key, wish.wanted
        stock = self.shelf.stocks.get(key)
        records = None if stock is None else stock.cut(wanted)
        if records is not None:
            self.cut()
        else:
            depth, newest = depth_for(wanted.limit), wanted.end is None or wanted.end > self.clock()
            if not newest or depth > DEEPEST:
                return None
            stock = await self._stock(wish, depth, ticket)
            records = stock.cut(wanted)
        if stock is None or records is None:
            return None
        ends = (start_of(records[0]), start_of(records[-1])) if records else None
        return _json(wish, stock.held, b"[%b]" % b",".join(records), len(records), ends, stock.expires)

    async def _stock(self, wish: Wish, depth: int, ticket: Ticket | None) -> Stock:
        """Read a stock and keep it."""
        key = wish.stock_key
        stock = await self._flights.share((key, depth, ticket), lambda: self._make_stock(wish, depth))
        self.shelf.stocks.put(key, stock, ticket)
        return stock

    async def _make(self, wish: Wish, media: Media) -> Answer:
        expires = time.monotonic() + SHELF_LIFE_SECONDS

        def read(connection: sa.Connection, held: reading.SeriesSummary) -> Answer:
            rows = wish.read(connection, wish.wanted)
            if media is Media.JSON:
                ends = (bound(rows[0][0]), bound(rows[-1][0])) if rows else None
                return _json(wish, held, json_array(wish.columns, rows), len(rows), ends, expires)
            return _answer(wish, held, media, encode(media, wish.columns, rows), expires)

        return await self._read(wish, read)

    async def _make_stock(self, wish: Wish, depth: int) -> Stock:
        expires = time.monotonic() + SHELF_LIFE_SECONDS

        async def remake() -> None:
            if wish.stock_key not in self.shelf.stocks:
                await self._stock(wish, depth, self.shelf.ticket(wish.series))

        def read(connection: sa.Connection, held: reading.SeriesSummary) -> Stock:
            rows = wish.read(connection, reading.Range(None, None, depth))
            oldest = bound(rows[0][0]) if rows else b""
            lines = packed(json_lines(wish.columns, rows))
            return Stock(wish.series, held, lines, oldest, len(rows) < depth, expires, remake)

        return await self._read(wish, read)

    async def _read(self, wish: Wish, question: Callable[[sa.Connection, reading.SeriesSummary], T]) -> T:
        """Return the answer to `question`, which is asked in a snapshot that holds records of the series.

        Raises:
            Problem: 404, where there are none.
        """
        now, series = self.clock(), wish.series

        def ask(source: sa.Engine) -> T | None:
            with snapshot(source) as connection:
                held = reading.read_summary(connection, series, now)
                if wish.watermarks(held) is not None:
                    return question(connection, held)
                if held.tracked:
                    return None
                raise unknown_symbol(series.symbol, reading.similar_symbol(connection, series.symbol))

        found = await self.database.series(ask)
        if found is not None:
            return found
        asked = await self.database.series(lambda source: request_backfill(source, series, now, REQUESTED_BY))
        raise missing_problem(series, asked, wish.records_key)


def unknown_symbol(symbol: str, similar: str | None) -> Problem:
    """Return the 404 for a symbol that is not in the universe."""
    hint = f" Did you mean {similar}?" if similar else " `market-data universe add` adds a symbol."
    return Problem(HTTPStatus.NOT_FOUND, f"{symbol[:40]!r} is not tracked here.{hint}")


def missing_problem(series: Series, request: BackfillRequest, what: str) -> Problem:
    """Return the 404 for a tracked series whose `what`, for example `features`, have never been computed."""
    requested_at = instant(request.requested_at)
    state = (
        f"A backfill was queued just now, at {requested_at}"
        if request.is_new
        else f"A backfill was already requested at {requested_at} and is {request.status}"
    )
    return Problem(
        HTTPStatus.NOT_FOUND,
        f"{series.symbol} is tracked, but its {series.timeframe} {what} have never been computed. {state}: "
        f"ask again in a minute.",
        headers={"retry-after": str(ASK_AGAIN_AFTER)},
        symbol=series.symbol,
        timeframe=str(series.timeframe),
        freshness={"status": "MISSING"},
        backfill_request={
            "id": request.id,
            "status": request.status,
            "requested_at": requested_at,
            "already_requested": not request.is_new,
        },
    )


def _json(
    wish: Wish, held: reading.SeriesSummary, array: bytes, count: int, ends: tuple[bytes, bytes] | None, expires: float
) -> Answer:
    """Return the answer of an `array` of `count` records; `ends` are the starts of the first and the last bar."""
    head = opening(
        {
            "symbol": wish.series.symbol,
            "timeframe": wish.series.timeframe,
            **wish.members,
            "records_returned": count,
            "date_range": {"start": f"{ends[0].decode()}Z", "end": f"{ends[1].decode()}Z"} if ends else None,
        }
    )
    return _answer(wish, held, Media.JSON, array + b"}", expires, head)


def _answer(
    wish: Wish, held: reading.SeriesSummary, media: Media, content: bytes, expires: float, head: bytes = b""
) -> Answer:
    watermarks = wish.watermarks(held)
    assert watermarks is not None  # noqa: S101 - narrows the type: nothing is read of a series that has none
    return Answer(
        series=wish.series,
        media=media,
        opening=head,
        records_key=wish.records_key,
        content=content,
        watermarks=watermarks,
        valid_until=held.next_split,
        expires=expires,
        route=wish.route,
    )
