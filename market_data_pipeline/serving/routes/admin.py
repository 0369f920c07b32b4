"""The operator's endpoints: what `market-data staleness`, `health` and `history` print, over HTTP."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports import executions, freshness, health
from market_data_pipeline.reports.models import ExecutionHistory, SchedulerHealth, StalenessReport
from market_data_pipeline.serving import openapi
from market_data_pipeline.serving.answers import link_header
from market_data_pipeline.serving.cache import SingleFlight
from market_data_pipeline.serving.series_problems import LONGEST_SYMBOL

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import sqlalchemy as sa

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.reports.models import Answer
    from market_data_pipeline.serving.access import AdminAccess
    from market_data_pipeline.serving.database import Database

STALENESS_PATH: Final = "/api/v1/admin/features/staleness"
MOST_SERIES: Final = 10_000
MOST_EXECUTIONS: Final = 500


class NoQuery(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid")


class Status(StrEnum):
    """The lists of the staleness report."""

    FRESH = "fresh"
    AGING = "aging"
    STALE = "stale"
    MISSING = "missing"
    NOT_EXPECTED = "not_expected"


class StalenessQuery(NoQuery):
    """Parameters of the staleness endpoint."""

    symbol: str = Field(
        "",
        max_length=LONGEST_SYMBOL,
        pattern=r"^[^\x00-\x1f]*$",
        description="Only series of symbols that contain this text, whatever the case of its letters.",
        examples=["AAPL"],
    )
    tier: Tier | None = Field(None, description="Only series of this tier.")
    status: Status | None = Field(None, description="List only series of this status; all are counted.")
    limit: int = Field(50, ge=1, le=MOST_SERIES, description="At most this many series of each status, the worst.")
    offset: int = Field(0, ge=0, le=10**9, description="Leave out this many of each status; `next` sets it.")


class HistoryQuery(NoQuery):
    """Parameters of the execution history."""

    limit: int = Field(20, ge=1, le=MOST_EXECUTIONS, description="At most this many executions, the newest.")


def report_response(content: bytes) -> Response:
    """Return an encoded report, never to be cached."""
    return Response(content, 200, {"cache-control": "no-store"}, "application/json")


def router(database: Database, dagster: DagsterState, access: AdminAccess, prefix: str) -> APIRouter:
    """Return the admin routes, open only to requests that `access` allows; `prefix` is the path to the API."""
    flight = SingleFlight()

    async def admitted(request: Request) -> None:
        access.require(request)

    async def answer(key: Hashable, make: Callable[[sa.Engine], Answer]) -> Response:
        """Return a report; concurrent requests for it share one."""

        def encoded(source: sa.Engine) -> bytes:
            return make(source).model_dump_json().encode()

        return report_response(await flight.run(key, lambda: database.report(encoded)))

    routes = APIRouter(
        prefix="/api/v1/admin", tags=["admin"], dependencies=[Security(openapi.BEARER), Depends(admitted)]
    )

    @routes.get(
        "/features/staleness",
        summary="Staleness of every series",
        responses=openapi.admin_responses(StalenessReport),
        response_class=Response,
        operation_id="staleness",
    )
    async def staleness(query: Annotated[StalenessQuery, Query()]) -> Response:
        """How many series are fresh, aging, stale and missing, and the worst of each; `next` leads to the rest."""

        def read(source: sa.Engine) -> tuple[bytes, str | None]:
            found = freshness.staleness_report(
                source,
                query.limit,
                freshness.Selection(tier=query.tier, part=query.symbol),
                offset=query.offset,
                statuses=[query.status.name] if query.status else freshness.STATUSES,
            )
            link = None
            if found.truncated:
                rest = query.model_dump(exclude_defaults=True, mode="json")
                rest |= {"limit": query.limit, "offset": query.offset + query.limit}
                link = f"{prefix}{STALENESS_PATH}?{urlencode(rest)}"
            return found.model_copy(update={"next": link}).model_dump_json().encode(), link

        content, link = await flight.run(("staleness", *query), lambda: database.report(read))
        response = report_response(content)
        response.raw_headers.extend(link_header(link))
        return response

    @routes.get(
        "/scheduler-health",
        summary="Whether the pipeline is working",
        responses=openapi.admin_responses(SchedulerHealth),
        response_class=Response,
        operation_id="scheduler_health",
    )
    async def scheduler_health(_query: Annotated[NoQuery, Query()]) -> Response:
        """Daemons, schedules, the last refresh, recent failures and how often the vendor answered 429."""
        return await answer("scheduler_health", lambda source: health.scheduler_health(source, dagster))

    @routes.get(
        "/scheduler/execution-history",
        summary="The newest executions",
        responses=openapi.admin_responses(ExecutionHistory),
        response_class=Response,
        operation_id="execution_history",
    )
    async def history(query: Annotated[HistoryQuery, Query()]) -> Response:
        """Dagster's runs, newest first, with the audit log's counts of each."""
        return await answer(
            ("history", query.limit), lambda source: executions.execution_history(source, dagster, query.limit)
        )

    return routes
