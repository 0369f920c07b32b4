"""The pages and their static files: addresses, headers, and what is shown when there is nothing to show.

Everything that a page needs comes from this server, and its Content-Security-Policy admits nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from gzip import compress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
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
    from market_data_pipeline.reports.series import SeriesReport
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


@dataclass(frozen=True)
class PageAnswers:
    """Makes the pages; readers who ask for the same page at the same time share one.

    Attributes:
        database: read in the lane for reports.
        dagster: whose daemons and schedules the status page shows.
        access: decides what a reader sees.
        settings: the project's.
        own: the project's own features, which a series' chart offers too.
    """

    database: Database
    dagster: DagsterState
    access: AdminAccess
    settings: Settings
    own: Sequence[Feature]
    _flight: SingleFlight = field(default_factory=SingleFlight)

    async def status(self, request: Request) -> Response:
        """Return the page of all series, or one that says what is wrong with what was asked for."""
        now, wall, reader = self.settings.clock(), datetime.now(UTC), self._reader(request)
        try:
            wanted = status_page.wanted_by(request.query_params)
        except UsageError as error:
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            content = _message(reader.root, status, "This page cannot be shown", str(error))
            return HTMLResponse(content, status, PAGE_HEADERS)

        def make(source: sa.Engine) -> tuple[HTTPStatus, str]:
            status = status_page.read_status(source, self.dagster, wanted, for_operator=reader.is_operator)
            shown = status_page.render_status(
                status, now, wall=wall, dagster_url=reader.dagster_url, offer=reader.offer
            )
            return HTTPStatus.OK, shown

        try:
            return await self._shared(request, ("", wanted, reader), make)
        except DatabaseUnavailableError:
            return unavailable(status_page.render_status(None, now, wall=wall))

    async def series(self, request: Request, symbol: str, timeframe: str) -> Response:
        """Return the page of one series, or one that says that there is no such series."""
        now, reader = self.settings.clock(), self._reader(request)

        def make(source: sa.Engine) -> tuple[HTTPStatus, str]:
            try:
                report = self._report(source, _named(symbol, timeframe), now)
            except UsageError as error:
                shown = _message(reader.root, HTTPStatus.NOT_FOUND, "No such series", str(error))
                return HTTPStatus.NOT_FOUND, shown
            shown = series_page.render_series(
                report,
                now,
                root=reader.root,
                for_operator=reader.is_operator,
                own=self.own,
                dagster_url=reader.dagster_url,
                offer=reader.offer,
            )
            return HTTPStatus.OK, shown

        try:
            return await self._shared(request, (symbol, timeframe, reader), make)
        except DatabaseUnavailableError:
            sentence = "This page and the API recover on their own as soon as it answers."
            heading = "The database cannot be reached"
            return unavailable(_message(reader.root, HTTPStatus.SERVICE_UNAVAILABLE, heading, sentence))

    async def _shared(
        self, request: Request, key: tuple[Hashable, ...], make: Callable[[sa.Engine], tuple[HTTPStatus, str]]
    ) -> Response:
        """Return the page that `make` renders in a thread, so that the event loop serves others meanwhile.

        Readers who ask at the same time for what has the same `key` share one page.
        """
        gzip = takes_gzip(",".join(request.headers.getlist("accept-encoding")))

        def rendered(source: sa.Engine) -> tuple[HTTPStatus, bytes]:
            status, text = make(source)
            return status, compress(text.encode(), _LEVEL) if gzip else text.encode()

        try:
            status, content = await self._flight.run((*key, gzip), lambda: self.database.report(rendered))
        except DatabaseBusyError:
            sentence = "There are more readers than it can serve at once. This page tries again automatically."
            return unavailable(_message(_root(request), HTTPStatus.SERVICE_UNAVAILABLE, "The API is busy", sentence))
        return HTMLResponse(content, status, PAGE_HEADERS | ({"content-encoding": "gzip"} if gzip else {}))

    def _reader(self, request: Request) -> _Reader:
        return _Reader(
            self.access.is_allowed(request),
            self.access.offer(request),
            _dagster_url(request, self.settings),
            _root(request),
        )

    def _report(self, source: sa.Engine, series: Series, now: datetime) -> SeriesReport:
        """Return what the page of a series shows.

        Raises:
            UsageError: the symbol is not tracked.
        """
        plan = plan_named(self.settings.plan)
        timing = Timing.on(plan, asset_class_of(series.symbol), now)
        with snapshot(source) as connection:
            report = series_report(connection, series, timing, plan, self.settings.history_days)
            if report is None:
                raise UsageError(_untracked(connection, series.symbol))
        return report


class _Reader(NamedTuple):
    """What a page depends on besides what it is about."""

    is_operator: bool
    offer: str
    dagster_url: str | None
    root: str


def router(answers: PageAnswers) -> APIRouter:
    """Return the routes of the pages."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def index(request: Request) -> Response:
        return await answers.status(request)

    @routes.get("/series")
    async def chosen(request: Request) -> Response:
        """Redirect to the series named in the form of a series' page."""
        symbol = canonical_symbol(request.query_params.get("symbol", ""))
        timeframe = request.query_params.get("timeframe", str(Timeframe.D1))
        return RedirectResponse(series_url(symbol, quote(timeframe, safe="")) if symbol else "./", HTTPStatus.SEE_OTHER)

    @routes.get("/series/{symbol:path}/{timeframe}")
    async def one_series(request: Request, symbol: str, timeframe: str) -> Response:
        return await answers.series(request, symbol, timeframe)

    @routes.get("/series/{symbol:path}")
    async def one_symbol(request: Request, symbol: str) -> Response:
        """Redirect a symbol without a timeframe to its day bars, and a page with a slash at its end to that page."""
        name, _, last = symbol.rstrip("/").rpartition("/")
        named = (name, last) if name and last in set(Timeframe) else (symbol, Timeframe.D1)
        return RedirectResponse(_root(request) + series_url(canonical_symbol(named[0]), named[1]), HTTPStatus.SEE_OTHER)

    return routes


def _message(root: str, status: HTTPStatus, heading: str, sentence: str) -> str:
    return render("message.html", root=root, now=None, status=status.value, heading=heading, sentence=sentence)


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
