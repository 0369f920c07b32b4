"""What happens to every request around its route: path prefix, HEAD, the response cache, metrics, compression."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import RedirectResponse

from market_data_pipeline.serving.cache import RequestKey, ResponseCache
from market_data_pipeline.serving.formats import takes_gzip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from market_data_pipeline.serving.metrics import Metrics

SCOPE_KEY: Final = "market_data.request_key"

# Headers that a page of another site may send, and those of an answer that it may read.
_SENT: Final = ("Authorization", "If-None-Match")
_SHOWN: Final = (
    "ETag", "Link", "Retry-After", "X-Age-Seconds", "X-Cache-Lifespan", "X-Freshness", "X-Freshness-Warning", "X-Life",
    "X-Missing", "X-Settled-Until", "X-Staleness-Seconds", "X-Verified-At",
)  # fmt: skip

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMiddleware:
    """Answers from the response cache before any routing, and counts and times every request.

    A request that misses the cache goes on with its key in the scope. Metrics are kept under the route's template, so
    that unknown addresses add none.
    """

    def __init__(self, app: ASGIApp, cache: ResponseCache, clock: Callable[[], datetime], metrics: Metrics) -> None:
        self._app = app
        self._cache = cache
        self._clock = clock
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, method = time.perf_counter(), scope["method"]
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if not scope["path"].isprintable():  # a line's end at its end would be ignored by some routes and not by others
            scope = dict(scope, path=repr(scope["path"])[1:-1])
        if method == "HEAD":  # answered as GET (RFC 9110, section 9.3.2); uvicorn leaves the body out
            scope = dict(scope, method="GET")
        route = None
        try:
            route = await self._from_cache(scope, receive, noting)
            if route is None:
                await self._app(scope, receive, noting)
        finally:
            route = route or getattr(scope.get("route"), "path_format", "none")
            counted = method if method in _KNOWN_METHODS else "other"
            self._metrics.requests.labels(counted, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _from_cache(self, scope: Scope, receive: Receive, send: Send) -> str | None:
        """Answer from the cache and return the route's template, or None on a miss."""
        if scope["method"] != "GET" or not scope["path"].startswith("/api/v1/"):
            return None
        headers = {b"accept": "", b"accept-encoding": "", b"if-none-match": ""}
        for name, value in scope["headers"]:
            if name in headers:
                text = value.decode("latin-1")
                headers[name] = f"{headers[name]},{text}" if headers[name] else text
        key = scope[SCOPE_KEY] = RequestKey(scope["path"], scope["query_string"], headers[b"accept"])
        answer = self._cache.answers.get(key)
        if answer is None:
            return None
        self._metrics.hits.inc()
        if gzip := takes_gzip(headers[b"accept-encoding"]):
            await answer.compress()
        response = answer.render(self._clock(), gzip=gzip, if_none_match=headers[b"if-none-match"])
        await response(scope, receive, send)
        return answer.route


class PathPrefix:
    """Takes the path prefix off a request's path, so that a proxy may pass it on or not.

    Nothing behind it knows the prefix: pages and documents have relative addresses only.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        prefix = self._prefix
        if prefix and scope["type"] == "http" and f"{scope['path']}/".startswith(f"{prefix}/"):
            if scope["path"] == prefix:  # relative addresses need the slash at its end
                redirect = RedirectResponse(f"{prefix.rpartition('/')[2]}/", HTTPStatus.PERMANENT_REDIRECT)
                await redirect(scope, receive, send)
                return
            raw = scope.get("raw_path") or b""
            scope = dict(scope, path=scope["path"][len(prefix) :], raw_path=raw.removeprefix(prefix.encode()))
        await self._app(scope, receive, send)


class SeriesCors:
    """Lets web pages of other sites read series: `/api/v1/` without what is for operators, and the OpenAPI document.

    A browser on the API's own machine would otherwise let such a page read the operators' endpoints, too.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._shared = CORSMiddleware(
            app, allow_origins=origins, allow_methods=("GET", "HEAD"), allow_headers=_SENT, expose_headers=_SHOWN
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        path = scope["path"] if scope["type"] == "http" else ""
        shared = path.startswith("/api/v1/") and not path.startswith("/api/v1/admin/")
        await (self._shared if shared or path == "/openapi.json" else self._app)(scope, receive, send)


class PlainGzip(GZipMiddleware):
    """Compresses what is outside `/api/v1`: answers about a series arrive compressed, admin reports stay plain."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        handler = self.app if SCOPE_KEY in scope else super().__call__
        await handler(scope, receive, send)
