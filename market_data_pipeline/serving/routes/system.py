"""Health and metrics."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from market_data_pipeline.reports import health as reports
from market_data_pipeline.reports.models import HealthReport
from market_data_pipeline.serving import openapi
from market_data_pipeline.serving.metrics import EvaluationCollector, SeriesCollector, scrape_registry
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import RETRY_DATABASE_AFTER, Problem
from market_data_pipeline.serving.routes.admin import NoQuery, report_response

if TYPE_CHECKING:
    import sqlalchemy as sa

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.serving.metrics import Metrics


def router(database: Database, dagster: DagsterState, metrics: Metrics) -> APIRouter:
    """Return the routes about the service itself."""
    routes = APIRouter(tags=["system"])

    @routes.get(
        "/health",
        summary="Whether the dependencies answer",
        responses=openapi.health_responses(HealthReport),
        response_class=Response,
        operation_id="health",
    )
    async def health(_query: Annotated[NoQuery, Query()]) -> Response:
        """200 when the database and Dagster's daemon can be reached; else 503, with the report's status as `health`."""
        report = await database.health(lambda source: reports.health_report(source, dagster))
        if report.status == "healthy":
            return report_response(report.model_dump_json().encode())
        parts = (report.database, report.dagster_daemon)
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            " ".join(part.detail for part in parts if not part.reachable),
            kind=ProblemType.UNHEALTHY,
            headers={"retry-after": str(RETRY_DATABASE_AFTER)},
            health=report.status,
            timestamp=report.timestamp,
            database=report.database.model_dump(),
            dagster_daemon=report.dagster_daemon.model_dump(),
        )

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses=openapi.METRICS_RESPONSES,
        operation_id="metrics",
    )
    async def scrape() -> Response:
        """Requests, the cache, the series' freshness by tier, and what Dagster does not evaluate."""

        def read(source: sa.Engine) -> bytes:
            collectors = (SeriesCollector(source), EvaluationCollector(dagster))
            parts = (generate_latest(scrape_registry(collector)) for collector in collectors)
            return generate_latest(metrics.registry) + b"".join(parts)

        return Response(await database.health(read), 200, {"cache-control": "no-store"}, CONTENT_TYPE_LATEST)

    return routes
