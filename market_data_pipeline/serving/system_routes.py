"""Health, metrics and the status page."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import HTMLResponse, Response

from market_data_pipeline.domain.failures import DatabaseUnavailableError
from market_data_pipeline.operations import report_documents, reports
from market_data_pipeline.serving import documents, page
from market_data_pipeline.serving.admin_routes import NoQuery, report_response
from market_data_pipeline.serving.metrics import SeriesCollector, scrape_registry
from market_data_pipeline.serving.problems import RETRY_DATABASE_AFTER, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.operations.dagster_state import DagsterState
    from market_data_pipeline.serving.access import AdminAccess
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.serving.metrics import Metrics

# The page has its own styles and nothing else.
_PAGE_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def router(
    database: Database, dagster: DagsterState, access: AdminAccess, metrics: Metrics, clock: Callable[[], datetime]
) -> APIRouter:
    """Return the routes that speak of the service itself."""
    routes = APIRouter(tags=["system"])

    @routes.get(
        "/health",
        summary="Whether the dependencies answer",
        responses=documents.health_responses(report_documents.HealthReport),
        response_class=Response,
        operation_id="health",
    )
    async def health(_query: Annotated[NoQuery, Query()]) -> Response:
        """200 when the database and Dagster's daemon can be reached, else 503 with the same members."""
        report = await database.report(lambda source: reports.health_report(source, dagster))
        if report["status"] == "healthy":
            return report_response(report)
        parts = (report["database"], report["dagster_daemon"])
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            " ".join(part["detail"] for part in parts if not part["reachable"]),
            headers={"retry-after": str(RETRY_DATABASE_AFTER)},
            health=report["status"],
            timestamp=report["timestamp"],
            database=report["database"],
            dagster_daemon=report["dagster_daemon"],
        )

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"description": "The text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        operation_id="metrics",
    )
    async def scrape() -> Response:
        """Requests, the cache, and the series' freshness by tier."""

        def read(source: sa.Engine) -> bytes:
            return generate_latest(metrics.registry) + generate_latest(scrape_registry(SeriesCollector(source)))

        return Response(await database.report(read), 200, {"cache-control": "no-store"}, CONTENT_TYPE_LATEST)

    @routes.get("/", include_in_schema=False)
    async def status_page(request: Request) -> HTMLResponse:
        """The status page."""
        now, for_operator = clock(), access.is_allowed(request)
        try:
            status = await database.report(
                lambda source: page.read_status(source, dagster, now, for_operator=for_operator)
            )
        except DatabaseUnavailableError:
            headers = _PAGE_HEADERS | {"retry-after": str(RETRY_DATABASE_AFTER)}
            return HTMLResponse(page.render(None, now), HTTPStatus.SERVICE_UNAVAILABLE, headers)
        return HTMLResponse(page.render(status, now), headers=_PAGE_HEADERS)

    return routes
