"""What Prometheus scrapes: the API's own work, and how fresh the series are.

The series' figures are read at each scrape. When the database is lost the scrape still answers, with
`market_data_database_up 0` and without them.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import Freshness
from market_data_pipeline.reports.freshness import tier_counts
from market_data_pipeline.reports.health import vendor_requests
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa
    from prometheus_client.registry import Collector
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from market_data_pipeline.serving.cache import Shelf

# Seconds: from a shelf hit (0.1 ms) to the statement timeout.
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The instruments of one app, in a registry of its own."""

    def __init__(self, shelf: Shelf) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "market_data_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "market_data_http_request_seconds",
            "Until the last byte.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.hits = Counter("market_data_cache_hits", "Answers given from memory.", registry=self.registry)
        self.cuts = Counter(
            "market_data_cache_cuts", "Answers made from records in memory, without a reading.", registry=self.registry
        )
        self.renewals = Counter(
            "market_data_cache_renewals",
            "Records read again after a commit, before anybody asked.",
            registry=self.registry,
        )
        cached = Gauge("market_data_cache_bytes", "Memory reserved for answers and records.", registry=self.registry)
        cached.set_function(lambda: shelf.size)
        listening = Gauge(
            "market_data_cache_open", "1 while commits are heard of and answers kept.", registry=self.registry
        )
        listening.set_function(lambda: shelf.is_open)


class SeriesCollector:
    """Freshness by tier, for one scrape."""

    def __init__(self, source: sa.Engine) -> None:
        self._source = source

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read and yield the figures."""
        up = GaugeMetricFamily("market_data_database_up", "1 when the database answered this scrape.")
        try:
            with snapshot(self._source) as connection:
                tiers = tier_counts(connection)
                sent = vendor_requests(connection)
        except DatabaseUnavailableError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        # Gauges, because the log is asked about a day only: a sum over all of it would read millions of rows a scrape.
        asked = GaugeMetricFamily(
            "market_data_vendor_requests_24h", "Requests sent to the vendor in the last 24 hours."
        )
        asked.add_metric([], sent.total_requests)
        refused = GaugeMetricFamily("market_data_vendor_rate_limited_24h", "Answers 429 among them.")
        refused.add_metric([], sent.rate_limited)
        yield from (asked, refused)
        series = GaugeMetricFamily("market_data_series", "Series by tier and status.", labels=("tier", "status"))
        worst = GaugeMetricFamily(
            "market_data_staleness_seconds_max", "Of the stalest series of a tier.", labels=("tier",)
        )
        failing = GaugeMetricFamily(
            "market_data_series_failing", "Series whose last execution failed.", labels=("tier",)
        )
        for tier in sorted(tier for tier, counts in tiers.items() if counts.series):
            counts = tiers[tier]
            for status in Freshness:
                series.add_metric([tier, status], getattr(counts, status.value))
            worst.add_metric([tier], counts.worst_seconds or 0.0)
            failing.add_metric([tier], counts.failing)
        yield from (series, worst, failing)


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
            route = scope.get("route_template") or getattr(scope.get("route"), "path_format", "none")
            method = scope["method"] if scope["method"] in _KNOWN_METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


def scrape_registry(collector: Collector) -> CollectorRegistry:
    """Return a registry that asks `collector` only."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
