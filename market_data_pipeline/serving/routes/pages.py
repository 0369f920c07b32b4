"""The pages and their static files: addresses, headers, and what is shown when there is nothing to show.

Everything that a page needs comes from this server, and its Content-Security-Policy admits nothing else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from gzip import compress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of, canonical_symbol, parse_timeframe
from market_data_pipeline.ingest.fetch_plan import Timing
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.reports.series import series_report
from market_data_pipeline.reports.series_records import similar_symbol
from market_data_pipeline.serving.cache import SingleFlight
from market_data_pipeline.serving.formats import takes_gzip
from market_data_pipeline.serving.pages import series as series_page
from market_data_pipeline.serving.pages import status as status_page
from market_data_pipeline.serving.pages.templates import render, series_url
from market_data_pipeline.serving.problems import RETRY_DATABASE_AFTER
from market_data_pipeline.serving.series_problems import may_exist
from market_data_pipeline.settings.addresses import local_url
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from os import PathLike, stat_result

    import sqlalchemy as sa
    from starlette.types import Scope

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.serving.access import AdminAccess
    from market_data_pipeline.serving.database import Database
    from market_data_pipeline.settings import Settings

STATIC: Final = Path(__file__).resolve().parents[1] / "static"
_LEVEL: Final = 4  # a page of 500 symbols shrinks to a twentieth; a higher level takes twice as long for little gain
STATIC_PATH: Final = "/static"

PAGE_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "Accept-Encoding",
    "x-content-type-options": "nosniff",
}


class PageFiles(StaticFiles):
    """The pages' styles and scripts; a browser keeps them and revalidates them each time."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 when the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def router(
    database: Database, dagster: DagsterState, access: AdminAccess, settings: Settings, own: Sequence[Feature] = ()
) -> APIRouter:
    """Return the routes of the pages; `own` are the project's own features, which a series' chart offers too."""
    routes = APIRouter(include_in_schema=False)
    plan = plan_named(settings.plan)

    flight = SingleFlight()

    async def answer(
        request: Request, key: tuple[Hashable, ...], make: Callable[[sa.Engine], tuple[HTTPStatus, str]]
    ) -> Response:
        """Return the page that `make` renders in a thread, so that the event loop serves others meanwhile.

        Readers who ask at the same time for what has the same `key` share one page.
        """
        gzip = takes_gzip(",".join(request.headers.getlist("accept-encoding")))

        def rendered(source: sa.Engine) -> tuple[HTTPStatus, bytes]:
            status, text = make(source)
            return status, compress(text.encode(), _LEVEL) if gzip else text.encode()

        try:
            status, content = await flight.run((*key, gzip), lambda: database.report(rendered))
        except DatabaseBusyError:
            sentence = "There are more readers than it can serve at once. This page tries again automatically."
            return unavailable(
                render(
                    "message.html",
                    root=_root(request),
                    now=None,
                    status=503,
                    heading="The API is busy",
                    sentence=sentence,
                )
            )
        headers = PAGE_HEADERS | ({"content-encoding": "gzip"} if gzip else {})
        return HTMLResponse(content, status, headers)

    @routes.get("/")
    async def index(request: Request) -> Response:
        now, wall, for_operator = settings.clock(), datetime.now(UTC), access.is_allowed(request)
        dagster_url, offer = _dagster_url(request, settings), access.offer(request)

        def make(source: sa.Engine) -> tuple[HTTPStatus, str]:
            status = status_page.read_status(source, dagster, for_operator=for_operator)
            return HTTPStatus.OK, status_page.render_status(
                status, now, wall=wall, dagster_url=dagster_url, offer=offer
            )

        try:
            return await answer(request, ("", for_operator, offer, dagster_url), make)
        except DatabaseUnavailableError:
            return unavailable(status_page.render_status(None, now, wall=wall))

    @routes.get("/series")
    async def chosen(request: Request) -> Response:
        """Redirect to the series named in the form of a series' page."""
        symbol = canonical_symbol(request.query_params.get("symbol", ""))
        timeframe = request.query_params.get("timeframe", str(Timeframe.D1))
        return RedirectResponse(series_url(symbol, quote(timeframe, safe="")) if symbol else "./", HTTPStatus.SEE_OTHER)

    @routes.get("/series/{symbol:path}/{timeframe}")
    async def one_series(request: Request, symbol: str, timeframe: str) -> Response:
        now, for_operator = settings.clock(), access.is_allowed(request)
        root, dagster_url, offer = _root(request), _dagster_url(request, settings), access.offer(request)
        message = partial(render, "message.html", root=root, now=None)

        def make(source: sa.Engine) -> tuple[HTTPStatus, str]:
            try:
                series = _named(symbol, timeframe)
                with snapshot(source) as connection:
                    report = series_report(
                        connection,
                        series,
                        Timing.on(plan, asset_class_of(series.symbol), now),
                        plan,
                        settings.history_days,
                    )
                    if report is None:
                        raise UsageError(_untracked(connection, series.symbol))
            except UsageError as error:
                return HTTPStatus.NOT_FOUND, message(status=404, heading="No such series", sentence=str(error))
            return HTTPStatus.OK, series_page.render_series(
                report,
                now,
                root=root,
                for_operator=for_operator,
                own=own,
                dagster_url=dagster_url,
                offer=offer,
            )

        try:
            return await answer(request, (symbol, timeframe, root, for_operator, offer, dagster_url), make)
        except DatabaseUnavailableError:
            sentence = "This page and the API recover on their own as soon as it answers."
            return unavailable(message(status=503, heading="The database cannot be reached", sentence=sentence))

    @routes.get("/series/{symbol:path}")
    async def one_symbol(request: Request, symbol: str) -> Response:
        """Redirect a symbol without a timeframe to its day bars, and a page with a slash at its end to that page."""
        name, _, last = symbol.rstrip("/").rpartition("/")
        named = (name, last) if name and last in set(Timeframe) else (symbol, Timeframe.D1)
        return RedirectResponse(_root(request) + series_url(canonical_symbol(named[0]), named[1]), HTTPStatus.SEE_OTHER)

    return routes


def unavailable(content: str) -> HTMLResponse:
    """Return a page as the 503 response while the database cannot be used."""
    headers = PAGE_HEADERS | {"retry-after": str(RETRY_DATABASE_AFTER)}
    return HTMLResponse(content, HTTPStatus.SERVICE_UNAVAILABLE, headers)


def _named(symbol: str, timeframe: str) -> Series:
    name = canonical_symbol(symbol)
    if not may_exist(name):
        raise UsageError("No symbol has this name.")
    return Series(name, parse_timeframe(timeframe))


def _untracked(connection: sa.Connection, symbol: str) -> str:
    similar = similar_symbol(connection, symbol)
    hint = f"Did you mean {similar}?" if similar else f"`market-data universe add {symbol}` adds it."
    return f"{symbol} is not tracked. {hint}"


def _root(request: Request) -> str:
    """Return the path from a page up to the status page, relative, so that a proxy may serve both under a prefix."""
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (path.partition(b"?")[0].count(b"/") - 1)


def _dagster_url(request: Request, settings: Settings) -> str | None:
    """Return the address of Dagster's UI: as MARKET_DATA_UI_URL has it, else on the host that the reader uses."""
    if settings.ui_url != settings.local_ui_url:
        return settings.ui_url
    host = request.url.hostname
    return local_url(host, settings.ui_port, settings.ui_prefix) if host else None
