"""The two endpoints of a series: its features and its bars."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline.domain.series import Series
from market_data_pipeline.operations.snapshot import snapshot
from market_data_pipeline.serving import documents, reading
from market_data_pipeline.serving.answers import Answer, RenderedResponse, opening
from market_data_pipeline.serving.backfills import missing_problem, request_backfill
from market_data_pipeline.serving.columns import BAR_COLUMNS, feature_columns
from market_data_pipeline.serving.encoding import encode, instant
from market_data_pipeline.serving.negotiation import ACCEPTED, Media, media_for, takes_gzip
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.serving.queries import BarsQuery, SeriesQuery
from market_data_pipeline.serving.shelf import SCOPE_KEY, RequestKey, Shelf, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.feature_definitions import Feature
    from market_data_pipeline.serving.columns import Column
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.serving.standing import Standing

FEATURES_PATH: Final = "/api/v1/features/quant/{symbol}"
BARS_PATH: Final = "/api/v1/bars/{symbol}"
_LONGEST_SYMBOL: Final = 40  # characters; tickers have at most 34

Ticker = Annotated[str, Path(description="The vendor's ticker, case-sensitive.", examples=["AAPL"])]


@dataclass(frozen=True, slots=True)
class Wish:
    """One request, understood: what to read and how to word it."""

    series: Series
    route: str
    records_key: str
    columns: Sequence[Column]
    selection: reading.Selection
    parameters: dict[str, Any]
    members: dict[str, Any]  # further members of a JSON answer
    standing: Callable[[reading.Held], Standing | None]


@dataclass
class SeriesAnswers:
    """Makes answers from the database; requests for the same bytes at the same time share one reading."""

    database: Database
    shelf: Shelf
    clock: Callable[[], datetime]
    _flights: dict[tuple[RequestKey, Ticket], asyncio.Task[Answer]] = field(default_factory=dict)

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
        flight = self._flights.get((key, ticket))
        if flight is None:
            flight = asyncio.create_task(self._make(wish, media))
            self._flights[key, ticket] = flight
            flight.add_done_callback(lambda done: self._landed(key, ticket, done))
        # Shielded: the client who asked first may hang up, and the others still want the answer.
        return await asyncio.shield(flight)

    def _landed(self, key: RequestKey, ticket: Ticket, flight: asyncio.Task[Answer]) -> None:
        del self._flights[key, ticket]
        if not flight.cancelled() and flight.exception() is None:
            self.shelf.put(key, flight.result(), ticket)

    async def _make(self, wish: Wish, media: Media) -> Answer:
        now = self.clock()
        answer = await self.database.series(lambda source: _read(source, wish, media, now))
        if answer is not None:
            return answer
        series = wish.series
        asked = await self.database.series(lambda source: request_backfill(source, series, now))
        raise missing_problem(series, asked, wish.records_key)


def _read(source: sa.Engine, wish: Wish, media: Media, now: datetime) -> Answer | None:
    """Return the answer, made from one snapshot; None for a tracked series that has nothing yet."""
    with snapshot(source) as connection:
        held = reading.read_held(connection, wish.series, now)
        standing = wish.standing(held)
        if standing is None:
            if held.tracked:
                return None
            raise unknown_symbol(wish.series.symbol, reading.similar_symbol(connection, wish.series.symbol))
        if media is Media.JSON:
            records = reading.read_records(connection, wish.selection, wish.parameters)
        else:
            rows = reading.read_rows(connection, wish.selection, wish.parameters)
    if media is not Media.JSON:
        first, last = (instant(rows[i][0]) for i in (0, -1)) if rows else (None, None)
        records = reading.Records(len(rows), first, last, encode(media, wish.columns, rows))
    head: dict[str, Any] = {
        "symbol": wish.series.symbol,
        "timeframe": wish.series.timeframe,
        **wish.members,
        "records_returned": records.number,
        "date_range": {"start": records.first, "end": records.last} if records.number else None,
    }
    return Answer(
        series=wish.series,
        media=media,
        opening=opening(head) if media is Media.JSON else b"",
        records_key=wish.records_key,
        content=records.content,
        standing=standing,
        valid_until=held.next_split,
        route=wish.route,
    )


def unknown_symbol(symbol: str, similar: str | None) -> Problem:
    """Return the 404 for a symbol that is not in the universe."""
    hint = f" Did you mean {similar}?" if similar else " `market-data universe add` adds a symbol."
    return Problem(HTTPStatus.NOT_FOUND, f"{symbol[:40]!r} is not tracked here.{hint}")


def _series(symbol: str, query: SeriesQuery) -> Series:
    # What PostgreSQL could not even take as text is not asked for; anything else it may know in other letters' case.
    if len(symbol) > _LONGEST_SYMBOL or not symbol.isprintable():
        raise unknown_symbol(symbol, None)
    return Series(symbol, query.timeframe)


def router(answers: SeriesAnswers, own: Sequence[Feature] = ()) -> APIRouter:
    """Return the routes of series, answered by `answers`; records of features hold the project's `own` ones, too."""
    columns, selection = feature_columns(own), reading.features_selection(own)
    routes = APIRouter(tags=["series"])

    @routes.get(
        FEATURES_PATH.replace("{symbol}", "{symbol:path}"),
        summary="Features of a series",
        responses=documents.series_responses(documents.features_example(columns), documents.features_answer(columns)),
        response_class=Response,
        operation_id="features",
    )
    async def features(request: Request, symbol: Ticker, query: Annotated[SeriesQuery, Query()]) -> Response:
        """Split-adjusted bars with their 17 features, the newest `limit` of the range, oldest first.

        A series that is tracked but was never computed is a 404, and a backfill of it is queued.
        """
        series = _series(symbol, query)
        wanted = query.range_for(symbol)
        wish = Wish(
            series,
            FEATURES_PATH,
            "features",
            columns,
            selection,
            reading.parameters(series, wanted),
            {},
            lambda held: held.features,
        )
        return await answers.respond(request, wish)

    @routes.get(
        BARS_PATH.replace("{symbol}", "{symbol:path}"),
        summary="Bars of a series",
        responses=documents.series_responses(documents.BARS_EXAMPLE, documents.BarsAnswer),
        response_class=Response,
        operation_id="bars",
    )
    async def bars(request: Request, symbol: Ticker, query: Annotated[BarsQuery, Query()]) -> Response:
        """Bars, the newest `limit` of the range, oldest first; with `as_of`, the values known at that instant."""
        series = _series(symbol, query)
        wanted = query.range_for(symbol)
        as_of = query.known_at(answers.clock())
        adjusted = query.adjusted
        wish = Wish(
            series,
            BARS_PATH,
            "bars",
            BAR_COLUMNS,
            reading.BARS if as_of is None else reading.BARS_AS_OF,
            reading.parameters(series, wanted, adjusted=adjusted, as_of=as_of),
            {"adjusted": adjusted, "as_of": None if as_of is None else instant(as_of)},
            lambda held: held.bars,
        )
        return await answers.respond(request, wish)

    return routes
