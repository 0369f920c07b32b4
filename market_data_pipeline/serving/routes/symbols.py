"""The list of the symbols that are followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports.models import SymbolList
from market_data_pipeline.reports.symbols import followed_symbols
from market_data_pipeline.serving import openapi
from market_data_pipeline.serving.answers import link_header
from market_data_pipeline.serving.cache import SingleFlight
from market_data_pipeline.serving.routes.admin import NoQuery, report_response
from market_data_pipeline.serving.series_problems import LONGEST_SYMBOL
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.serving.database import Database

SYMBOLS_PATH: Final = "/api/v1/symbols"
MOST_SYMBOLS: Final = 10_000


class SymbolsQuery(NoQuery):
    """Parameters of the list of symbols."""

    tier: Tier | None = Field(None, description="Only symbols of this tier.")
    limit: int = Field(200, ge=1, le=MOST_SYMBOLS, description="At most this many symbols; `next` leads to the rest.")
    after: str = Field(
        "",
        max_length=LONGEST_SYMBOL,
        pattern=r"^[^\x00-\x1f]*$",
        description="Only symbols that come after this one.",
        examples=["AAPL"],
    )


def router(database: Database, clock: Callable[[], datetime], prefix: str) -> APIRouter:
    """Return the route; `prefix` is the path below which people reach the API."""
    routes = APIRouter(tags=["series"])
    flight = SingleFlight()

    @routes.get(
        SYMBOLS_PATH,
        summary="The symbols that are followed",
        responses=openapi.symbols_responses(SymbolList),
        response_class=Response,
        operation_id="symbols",
    )
    async def symbols(http: Request, query: Annotated[SymbolsQuery, Query()]) -> Response:
        """Each symbol with its tier, its asset class, and which bars of it are held, in alphabetical order."""

        def read(source: sa.Engine) -> tuple[bytes, str | None]:
            with snapshot(source) as connection:
                found = followed_symbols(connection, clock(), after=query.after, tier=query.tier, limit=query.limit)
            link = None
            if found.truncated:
                kept = query.model_dump(exclude_none=True) | {"after": found.symbols[-1].symbol}
                link = f"{prefix}{SYMBOLS_PATH}?{urlencode(kept)}"
            return found.model_copy(update={"next": link}).model_dump_json().encode(), link

        content, link = await flight.run(tuple(query), lambda: database.report(read))
        response = report_response(content)
        response.raw_headers.extend(link_header(link))
        return response

    return routes
