"""The endpoints of series, their features and their bars: from the parsed request to what is read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import Response

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.reports.series_records import (
    BAR_COLUMNS,
    BARS,
    BARS_AS_OF,
    TOTAL_RETURN_BARS,
    TOTAL_RETURN_BARS_AS_OF,
    features_selection,
    has_other_hours,
    record_columns,
    regular_bars,
)
from market_data_pipeline.serving import openapi
from market_data_pipeline.serving.formats import instant
from market_data_pipeline.serving.parameters import BarsQuery, SeriesQuery, SeveralBarsQuery, SeveralQuery
from market_data_pipeline.serving.series import Selection, SeriesAnswers, SeriesRequest
from market_data_pipeline.serving.several import SeveralAnswers, SeveralRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.serving.formats import Media
    from market_data_pipeline.serving.models import Answers

FEATURES_PATH: Final = "/api/v1/features/quant"
BARS_PATH: Final = "/api/v1/bars"
_OF_ONE: Final = "/{symbol}"
_ROUTED: Final = "/{symbol:path}"

Ticker = Annotated[str, Path(description="The vendor's ticker, case-sensitive.", examples=["AAPL"])]


class SeriesRoute(APIRoute):
    """Parses the query by its model alone.

    FastAPI looks at the model's fields again for every request: 0.4 ms, a sixth of all that a read takes of the API.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        endpoint = self.endpoint
        model: type[SeriesQuery] = get_type_hints(endpoint)["query"]

        async def handle(request: Request) -> Response:
            try:
                query = model.model_validate(_given(request))
            except ValidationError as error:
                found = error.errors(include_url=False)
                raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in found]) from None
            response: Response = await endpoint(request, **request.path_params, query=query)
            return response

        return handle


def router(answers: SeriesAnswers, several: SeveralAnswers, own: Sequence[Feature], described: Answers) -> APIRouter:
    """Return the routes of series.

    Args:
        answers: makes the answers about one series.
        several: makes those about several.
        own: the project's own features, which records of features also hold.
        described: the models of answers of features.
    """
    routes = APIRouter(tags=["series"], route_class=SeriesRoute)
    columns = record_columns(own)
    features = Selection("features", columns, features_selection(own), lambda summary: summary.features)
    of_regular_hours = features_selection(own, regular=True)

    def features_of(query: SeriesQuery, *symbols: str) -> Selection:
        query.check_features([query.series_of(symbol) for symbol in symbols])
        if query.session == "extended":
            return features
        return replace(
            features, regular=lambda series: of_regular_hours if has_other_hours(series) else features.read_as
        )

    @routes.get(
        FEATURES_PATH + _ROUTED,
        summary="Features of a series",
        responses=openapi.features_responses(columns, described),
        response_class=Response,
        operation_id="features",
    )
    async def features_of_one(http: Request, symbol: Ticker, query: Annotated[SeriesQuery, Query()]) -> Response:
        """Split-adjusted bars with their 17 features, the newest `limit` of the range, oldest first.

        A series that is tracked but was never computed is a 404, and a backfill of it is queued, unless the vendor was
        asked since the last schedule and had nothing.
        """
        return await answers.respond(
            http, _one(http, symbol, query, features_of(query, symbol), FEATURES_PATH + _OF_ONE)
        )

    @routes.get(
        BARS_PATH + _ROUTED,
        summary="Bars of a series",
        responses=openapi.bars_responses(),
        response_class=Response,
        operation_id="bars",
    )
    async def bars_of_one(http: Request, symbol: Ticker, query: Annotated[BarsQuery, Query()]) -> Response:
        """Bars, the newest `limit` of the range, oldest first; with `as_of`, the values known at that instant."""
        selection = _bars(query, answers.clock())
        return await answers.respond(http, _one(http, symbol, query, selection, BARS_PATH + _OF_ONE))

    @routes.get(
        FEATURES_PATH,
        summary="Features of several symbols",
        responses=openapi.several_features_responses(columns, described),
        response_class=Response,
        operation_id="features_of_several",
    )
    async def features_of_several(http: Request, query: Annotated[SeveralQuery, Query()]) -> Response:
        """Split-adjusted bars with their 17 features, the newest `limit` of each symbol and 10,000 in all.

        A symbol that is not tracked refuses the request; one without features is in the answer, with the problem.
        """
        return await several.respond(
            http, _several(http, query.symbols, query, features_of(query, *query.symbols.split(",")))
        )

    @routes.get(
        BARS_PATH,
        summary="Bars of several symbols",
        responses=openapi.several_bars_responses(),
        response_class=Response,
        operation_id="bars_of_several",
    )
    async def bars_of_several(http: Request, query: Annotated[SeveralBarsQuery, Query()]) -> Response:
        """Bars, the newest `limit` of each symbol and 10,000 in all; symbols as for features."""
        return await several.respond(http, _several(http, query.symbols, query, _bars(query, several.clock())))

    return routes


def _given(request: Request) -> dict[str, str]:
    """Return the parameters; `symbols` may also be repeated, as client libraries write a list."""
    given = dict(request.query_params)
    if "symbols" in given:
        given["symbols"] = ",".join(request.query_params.getlist("symbols"))
    return given


def _one(http: Request, symbol: str, query: SeriesQuery, selection: Selection, route: str) -> SeriesRequest:
    series = query.series_of(symbol)
    return SeriesRequest(series, selection, query.range_for(series), _media(http, query), route, _milliseconds(query))


def _several(http: Request, symbols: str, query: SeriesQuery, selection: Selection) -> SeveralRequest:
    series = [query.series_of(symbol) for symbol in symbols.split(",")]
    ranges = dict(zip(series, query.ranges_for(series), strict=True))
    return SeveralRequest(ranges, selection, _media(http, query), _milliseconds(query))


def _bars(query: BarsQuery, now: datetime) -> Selection:
    as_of, adjustment = query.known_at(now), query.adjusts_for()
    now_read, then_read = BARS, BARS_AS_OF
    if adjustment is Adjustment.ALL:
        now_read, then_read = TOTAL_RETURN_BARS, TOTAL_RETURN_BARS_AS_OF
    read_as = now_read if as_of is None else then_read
    return Selection(
        "bars",
        BAR_COLUMNS,
        read_as,
        lambda summary: summary.bars,
        adjustment,
        as_of,
        None if query.session == "extended" else partial(regular_bars, read_as),
        {
            "adjusted": adjustment is not Adjustment.RAW,
            "adjustment": adjustment.value,
            "as_of": None if as_of is None else instant(as_of),
        },
    )


def _media(http: Request, query: SeriesQuery) -> Media:
    return query.media(",".join(http.headers.getlist("accept")))


def _milliseconds(query: SeriesQuery) -> bool:
    return query.timestamps == "ms"
