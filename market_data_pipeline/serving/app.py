"""The assembly of the read API, and the server that runs it."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from fastapi import FastAPI

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.ingest.own_features import load_own_features
from market_data_pipeline.reports.series_records import record_columns
from market_data_pipeline.serving import openapi, problems
from market_data_pipeline.serving.access import AdminAccess
from market_data_pipeline.serving.cache import ResponseCache, follow_commits
from market_data_pipeline.serving.connections import (
    allow_many_connections,
    listening,
    return_memory,
    server_options,
)
from market_data_pipeline.serving.database import Database, connection_to
from market_data_pipeline.serving.metrics import Metrics
from market_data_pipeline.serving.middleware import PathPrefix, PlainGzip, RequestMiddleware, SeriesCors
from market_data_pipeline.serving.routes import admin as admin_routes
from market_data_pipeline.serving.routes import pages as page_routes
from market_data_pipeline.serving.routes import reference as reference_routes
from market_data_pipeline.serving.routes import series as series_routes
from market_data_pipeline.serving.routes import sign_in as sign_in_routes
from market_data_pipeline.serving.routes import symbols as symbol_routes
from market_data_pipeline.serving.routes import system as system_routes
from market_data_pipeline.serving.series import SeriesAnswers
from market_data_pipeline.serving.several import SeveralAnswers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.serving.models import Answers
    from market_data_pipeline.settings import Settings

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 8000

_DESCRIPTION: Final = """Bars and features of every tracked series, with their freshness.

Bars are labelled by their START; every interval is half-open and every instant UTC (ISO 8601 with Z). Records come as
JSON by record or by column, CSV, an Arrow stream or Parquet,
as `Accept` or the parameter `format` says. Errors are RFC 9457 problem documents. Answers carry an ETag: send it
back in `If-None-Match`, and unchanged records cost nothing.

"""


class _Api(FastAPI):
    """FastAPI, whose document also has the schemas that responses refer to by name."""

    def __init__(self, features: Answers, **given: Any) -> None:
        super().__init__(**given)
        self._features = features

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            openapi.with_schemas(super().openapi(), self._features)
        return super().openapi()


def create_app(settings: Settings, dagster: DagsterState) -> FastAPI:
    """Return the read API for `settings`, which reads Dagster's runs, daemons and schedules through `dagster`.

    Nothing is connected before the app starts. The app also starts without a database, and answers 503 until there is
    one.
    """
    elsewhere = settings.reads_elsewhere
    database = Database(settings.reader_url, settings.as_of, settings.database_url if elsewhere else None)
    # A standby does not pass on what the writers notify of.
    notifying, standby = (connection_to(settings.database_url), database.conninfo if elsewhere else None)
    access = AdminAccess(settings.api_token, settings.api_url)
    cache = ResponseCache(settings.clock)
    metrics = Metrics(cache)
    answers = SeriesAnswers(database, cache, settings.clock, metrics.cuts.inc, settings.api_prefix)
    several = SeveralAnswers(database, settings.clock, settings.api_prefix)
    own = load_own_features(settings)
    pages = page_routes.PageAnswers(database, dagster, access, settings, own.declarations)
    for problem in own.problems:
        log.warning("%s", problem)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = (
            asyncio.create_task(follow_commits(notifying, cache, standby)),
            asyncio.create_task(_open_quietly(dagster)),
        )
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            database.close()
            dagster.close()

    described = openapi.feature_answers(record_columns(own.declarations))
    app = _Api(
        described,
        title="Market data",
        version=__version__,
        description=_DESCRIPTION + openapi.problem_list(),
        lifespan=lifespan,
        servers=openapi.SERVERS,
        docs_url=None,  # a page of ours with files of ours
        redoc_url=None,
        redirect_slashes=False,
        responses=openapi.UNPROCESSABLE,
    )
    problems.install(app)
    app.include_router(series_routes.router(answers, several, own.declarations, described))
    app.include_router(symbol_routes.router(database, settings.clock, settings.api_prefix))
    app.include_router(admin_routes.router(database, dagster, access, settings.api_prefix))
    app.include_router(system_routes.router(database, dagster, metrics))
    app.include_router(page_routes.router(pages))
    app.include_router(reference_routes.router())
    app.include_router(sign_in_routes.router(access))
    app.mount(page_routes.STATIC_PATH, page_routes.PageFiles(directory=page_routes.STATIC))
    # The middleware added last sees a request first.
    app.add_middleware(PlainGzip, minimum_size=1_000, compresslevel=6)
    app.add_middleware(RequestMiddleware, cache=cache, clock=settings.clock, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(SeriesCors, origins=settings.cors_origins)
    app.add_middleware(PathPrefix, prefix=settings.api_prefix)
    return app


async def _open_quietly(dagster: DagsterState) -> None:
    """Open Dagster's storage before the first request needs it; if it cannot be opened, that request reports why."""
    with suppress(DatabaseUnavailableError):
        await anyio.to_thread.run_sync(dagster.open)


def run(settings: Settings, dagster: DagsterState, host: str = LOOPBACK, port: int = PORT) -> None:
    """Serve until SIGINT or SIGTERM."""
    import uvicorn

    allow_many_connections()
    return_memory()
    config = uvicorn.Config(
        create_app(settings, dagster),
        host=host,
        port=port,
        log_level="error",  # a client's mistakes are answered, failures are logged as errors
        timeout_graceful_shutdown=12,  # a place in a lane and a statement take 10 s at most; `up` waits for 15
        **server_options(),
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):  # uvicorn re-raises the signal that stopped it
        server.run(listening(config))
    if not server.started:
        sys.exit("The read API did not start.")
