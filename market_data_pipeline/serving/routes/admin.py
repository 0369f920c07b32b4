"""The operator's endpoints: what `market-data staleness`, `health` and `history` print, by HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from market_data_pipeline.reports import executions, freshness, health
from market_data_pipeline.reports import models as report_documents
from market_data_pipeline.serving import openapi as documents
from market_data_pipeline.serving.cache import Flights

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import sqlalchemy as sa

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.reports.models import Answer
    from market_data_pipeline.serving.access import AdminAccess
    from market_data_pipeline.serving.database import Database

MOST_SERIES: Final = 10_000
MOST_EXECUTIONS: Final = 500


class NoQuery(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid")


class StalenessQuery(NoQuery):
    """What the staleness endpoint takes."""

    limit: int = Field(50, ge=1, le=MOST_SERIES, description="At most this many series of each status, the worst.")


class HistoryQuery(NoQuery):
    """What the execution history takes."""

    limit: int = Field(20, ge=1, le=MOST_EXECUTIONS, description="At most this many executions, the newest.")


def report_response(report: Answer) -> Response:
    """Return a report as JSON, never to be cached."""
    return json_response(report.model_dump_json().encode())


def json_response(content: bytes) -> Response:
    """Return an encoded report, never to be cached."""
    return Response(content, 200, {"cache-control": "no-store"}, "application/json")


def router(database: Database, dagster: DagsterState, access: AdminAccess) -> APIRouter:
    """Return the admin routes, closed to those whom `access` refuses."""
    flights = Flights()

    async def admitted(request: Request) -> None:
        access.require(request)

    async def answer(key: Hashable, make: Callable[[sa.Engine], Answer]) -> Response:
        """Return a report; who asks for it while it is being made gets the same one."""

        def encoded(source: sa.Engine) -> bytes:
            return make(source).model_dump_json().encode()

        return json_response(await flights.share(key, lambda: database.report(encoded)))

    routes = APIRouter(prefix="/api/v1/admin", tags=["admin"], dependencies=[Depends(admitted)])

    @routes.get(
        "/features/staleness",
        summary="Staleness of every series",
        responses=documents.admin_responses(report_documents.StalenessReport),
        response_class=Response,
        operation_id="staleness",
    )
    async def staleness(query: Annotated[StalenessQuery, Query()]) -> Response:
        """How many series are fresh, aging, stale and missing, and the worst of each."""
        return await answer(("staleness", query.limit), lambda source: freshness.staleness_report(source, query.limit))

    @routes.get(
        "/scheduler-health",
        summary="Whether the pipeline does its work",
        responses=documents.admin_responses(report_documents.SchedulerHealth),
        response_class=Response,
        operation_id="scheduler_health",
    )
    async def scheduler_health(_query: Annotated[NoQuery, Query()]) -> Response:
        """Daemons, schedules, the last refresh, recent failures and the vendor's refusals."""
        return await answer("scheduler_health", lambda source: health.scheduler_health(source, dagster))

    @routes.get(
        "/scheduler/execution-history",
        summary="The newest executions",
        responses=documents.admin_responses(report_documents.ExecutionHistory),
        response_class=Response,
        operation_id="execution_history",
    )
    async def history(query: Annotated[HistoryQuery, Query()]) -> Response:
        """Dagster's runs, newest first, with what the audit trail knows of each."""
        return await answer(
            ("history", query.limit), lambda source: executions.execution_history(source, dagster, query.limit)
        )

    return routes
