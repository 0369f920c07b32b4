"""The two endpoints of a series: its features and its bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from market_data_pipeline.domain.series import Series
from market_data_pipeline.reports import series_records as reading
from market_data_pipeline.serving import openapi as documents
from market_data_pipeline.serving.formats import instant
from market_data_pipeline.serving.parameters import BarsQuery, SeriesQuery
from market_data_pipeline.serving.series_answers import SeriesAnswers, Wish, unknown_symbol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.features.definitions import Feature

FEATURES_PATH: Final = "/api/v1/features/quant/{symbol}"
BARS_PATH: Final = "/api/v1/bars/{symbol}"
_LONGEST_SYMBOL: Final = 40  # characters; tickers have at most 34

Ticker = Annotated[str, Path(description="The vendor's ticker, case-sensitive.", examples=["AAPL"])]


def _series(symbol: str, query: SeriesQuery) -> Series:
    # What PostgreSQL could not even take as text is not asked for; anything else it may know in other letters' case.
    if len(symbol) > _LONGEST_SYMBOL or not symbol.isprintable():
        raise unknown_symbol(symbol, None)
    return Series(symbol, query.timeframe)


def router(answers: SeriesAnswers, own: Sequence[Feature] = ()) -> APIRouter:
    """Return the routes of series, answered by `answers`; records of features hold the project's `own` ones, too."""
    columns, selection = reading.record_columns(own), reading.features_selection(own)
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
        wish = Wish(
            series,
            FEATURES_PATH,
            "features",
            columns,
            selection,
            query.range_for(symbol),
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
        as_of = query.known_at(answers.clock())
        wish = Wish(
            series,
            BARS_PATH,
            "bars",
            reading.BAR_COLUMNS,
            reading.BARS if as_of is None else reading.BARS_AS_OF,
            query.range_for(symbol),
            lambda held: held.bars,
            query.adjusted,
            as_of,
            {"adjusted": query.adjusted, "as_of": None if as_of is None else instant(as_of)},
        )
        return await answers.respond(request, wish)

    return routes
