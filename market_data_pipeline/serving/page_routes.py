"""The pages and their static files: addresses, headers, and what is shown when there is nothing to show.

Everything that a page needs comes from this server, and its Content-Security-Policy lets nothing else in. Keep out:
what a page shows (page, series_page).
"""

from __future__ import annotations

from datetime import UTC, datetime
from gzip import compress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from market_data_pipeline.domain.failures import DatabaseUnavailableError
from market_data_pipeline.serving import page
from market_data_pipeline.serving.negotiation import takes_gzip
from market_data_pipeline.serving.problems import RETRY_DATABASE_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike, stat_result

    import sqlalchemy as sa
    from starlette.types import Scope

    from market_data_pipeline.operations.dagster_state import DagsterState
    from market_data_pipeline.serving.access import AdminAccess
    from market_data_pipeline.serving.database import Database

STATIC: Final = Path(__file__).parent / "static"
_LEVEL: Final = 4  # a page of 500 symbols shrinks to a twentieth; a higher level takes twice as long for little
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
    """The pages' styles and scripts; a browser keeps them and asks each time whether they are still the same."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 for the one that the browser has."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def router(
    database: Database, dagster: DagsterState, access: AdminAccess, clock: Callable[[], datetime], ui_port: int
) -> APIRouter:
    """Return the routes of the pages; `ui_port` is where Dagster's UI listens on the same machine."""
    routes = APIRouter(include_in_schema=False)

    async def answer(request: Request, make: Callable[[sa.Engine], tuple[HTTPStatus, str]]) -> Response:
        """Return the page that `make` renders, in a thread: the event loop has others to serve meanwhile."""
        gzip_wanted = takes_gzip(",".join(request.headers.getlist("accept-encoding")))

        def rendered(source: sa.Engine) -> tuple[HTTPStatus, bytes]:
            status, text = make(source)
            return status, compress(text.encode(), _LEVEL) if gzip_wanted else text.encode()

        status, content = await database.report(rendered)
        headers = PAGE_HEADERS | ({"content-encoding": "gzip"} if gzip_wanted else {})
        return HTMLResponse(content, status, headers)

    @routes.get("/")
    async def status_page(request: Request) -> Response:
        now, wall, for_operator = clock(), datetime.now(UTC), access.is_allowed(request)
        dagster_url = _dagster_url(request, ui_port)

        def make(source: sa.Engine) -> tuple[HTTPStatus, str]:
            status = page.read_status(source, dagster, for_operator=for_operator)
            return HTTPStatus.OK, page.render_status(status, now, wall=wall, dagster_url=dagster_url)

        try:
            return await answer(request, make)
        except DatabaseUnavailableError:
            return unavailable(page.render_status(None, now, wall=wall))

    return routes


def unavailable(content: str) -> HTMLResponse:
    """Return a page that says that the database cannot be used."""
    headers = PAGE_HEADERS | {"retry-after": str(RETRY_DATABASE_AFTER)}
    return HTMLResponse(content, HTTPStatus.SERVICE_UNAVAILABLE, headers)


def _dagster_url(request: Request, ui_port: int) -> str | None:
    host = request.url.hostname
    if not host:
        return None
    return f"http://[{host}]:{ui_port}" if ":" in host else f"http://{host}:{ui_port}"
