"""What happens to every request before and after its route: metrics, HEAD, the response cache, compression."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.middleware.gzip import GZipMiddleware

from market_data_pipeline.serving.answers import send_rendered
from market_data_pipeline.serving.cache import RequestKey, ResponseCache
from market_data_pipeline.serving.formats import takes_gzip

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from market_data_pipeline.serving.metrics import Metrics

SCOPE_KEY: Final = "market_data.request_key"

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class MetricsMiddleware:
    """Counts and times every request under its route's template, so that addresses cannot swell the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = _route_template(scope)
            method = scope["method"] if scope["method"] in _KNOWN_METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


class HeadMiddleware:
    """Answers HEAD as GET without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message.get("more_body"):
                    return
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        as_get = dict(scope, method="GET")
        await self._app(as_get, receive, without_body)
        scope["route_template"] = _route_template(as_get)


class CacheMiddleware:
    """Answers from the response cache before any routing; a request that misses goes on with its key in the scope."""

    def __init__(
        self, app: ASGIApp, cache: ResponseCache, clock: Callable[[], datetime], hit: Callable[[], None]
    ) -> None:
        self._app = app
        self._cache = cache
        self._clock = clock
        self._hit = hit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith("/api/v1/"):
            await self._app(scope, receive, send)
            return
        headers = {b"accept": "", b"accept-encoding": "", b"if-none-match": ""}
        for name, value in scope["headers"]:
            if name in headers:
                text = value.decode("latin-1")
                headers[name] = f"{headers[name]},{text}" if headers[name] else text
        key = RequestKey(scope["path"], scope["query_string"], headers[b"accept"])
        answer = self._cache.answers.get(key)
        if answer is None:
            scope[SCOPE_KEY] = key
            await self._app(scope, receive, send)
            return
        self._hit()
        scope["route_template"] = answer.route
        if gzip := takes_gzip(headers[b"accept-encoding"]):
            await answer.compress()
        rendered = answer.render(self._clock(), gzip=gzip, if_none_match=headers[b"if-none-match"])
        await send_rendered(rendered, send)


class ReportGzip(GZipMiddleware):
    """Compresses everything but answers about a series, which arrive compressed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        handler = self.app if SCOPE_KEY in scope else super().__call__
        await handler(scope, receive, send)


def _route_template(scope: Scope) -> str:
    return str(scope.get("route_template") or getattr(scope.get("route"), "path_format", "none"))
