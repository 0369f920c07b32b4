"""What Prometheus scrapes: the API's own work, and how fresh the series are.

The series' figures are read at each scrape. While the database is lost, a scrape still answers, with
`market_data_database_up 0` and without those figures.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.domain.objectives import Freshness
from market_data_pipeline.reports.backups import last_backup
from market_data_pipeline.reports.freshness import tier_counts
from market_data_pipeline.reports.health import not_evaluated, vendor_requests
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa
    from prometheus_client.registry import Collector

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.serving.cache import ResponseCache

# Seconds: from a cache hit (0.1 ms) to the statement timeout.
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The instruments of one app, in a registry of its own."""

    def __init__(self, cache: ResponseCache) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "market_data_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "market_data_http_request_seconds",
            "Seconds until the last byte is sent.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.hits = Counter("market_data_cache_hits", "Answers sent from memory.", registry=self.registry)
        self.cuts = Counter(
            "market_data_cache_cuts", "Answers cut from records in memory, without a read.", registry=self.registry
        )
        cached = Gauge("market_data_cache_bytes", "Memory reserved for answers and records.", registry=self.registry)
        cached.set_function(lambda: cache.size)
        listening = Gauge(
            "market_data_cache_open", "1 while the API listens for commits and keeps answers.", registry=self.registry
        )
        listening.set_function(lambda: cache.is_open)


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
                backup = last_backup(connection)
        except (DatabaseUnavailableError, DatabaseBusyError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        # Gauges over one day: a counter would have to sum the whole log, millions of rows per scrape.
        requests = GaugeMetricFamily(
            "market_data_vendor_requests_24h", "Requests sent to the vendor in the last 24 hours."
        )
        requests.add_metric([], sent.total_requests)
        refused = GaugeMetricFamily("market_data_vendor_rate_limited_24h", "Responses with status 429 among them.")
        refused.add_metric([], sent.rate_limited)
        yield from (requests, refused)
        series = GaugeMetricFamily("market_data_series", "Series by tier and status.", labels=("tier", "status"))
        worst = GaugeMetricFamily(
            "market_data_staleness_seconds_max", "Staleness of the stalest series of a tier.", labels=("tier",)
        )
        failing = GaugeMetricFamily(
            "market_data_series_failing", "Series whose last execution failed.", labels=("tier",)
        )
        silent = GaugeMetricFamily(
            "market_data_series_silent", "Series without a bar for more sessions than usual.", labels=("tier",)
        )
        not_expected = GaugeMetricFamily(
            "market_data_series_not_expected",
            "Series of which no bars are expected: halted, delisted or unknown. They are not in market_data_series.",
            labels=("tier",),
        )
        for tier in sorted(tier for tier, counts in tiers.items() if counts.series or counts.not_expected):
            counts = tiers[tier]
            for status in Freshness:
                series.add_metric([tier, status], getattr(counts, status.value))
            worst.add_metric([tier], counts.worst_seconds or 0.0)
            failing.add_metric([tier], counts.failing)
            silent.add_metric([tier], counts.silent)
            not_expected.add_metric([tier], counts.not_expected)
        yield from (series, worst, failing, silent, not_expected)
        age = GaugeMetricFamily(
            "market_data_backup_age_seconds", "Seconds since the instant of the last finished backup."
        )
        size = GaugeMetricFamily("market_data_backup_bytes", "Size of the last finished backup.")
        late = GaugeMetricFamily("market_data_backup_late", "1 when the next scheduled backup has not come in time.")
        if backup is not None:
            age.add_metric([], backup.age_seconds)
            size.add_metric([], backup.bytes)
            late.add_metric([], float(backup.late))
        yield from (age, size, late)


class EvaluationCollector:
    """Which schedules and sensors are not evaluated, for one scrape; nothing while Dagster cannot be asked."""

    def __init__(self, dagster: DagsterState) -> None:
        self._dagster = dagster

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read and yield the figures."""
        late = GaugeMetricFamily(
            "market_data_evaluation_late",
            "1 when a schedule or sensor should have been evaluated and was not.",
            labels=("name",),
        )
        with suppress(DatabaseUnavailableError):
            now = datetime.now(UTC)
            for one in self._dagster.evaluations():
                late.add_metric([one.name], float(bool(not_evaluated([one], now))))
        yield late


def scrape_registry(collector: Collector) -> CollectorRegistry:
    """Return a registry that holds only `collector`."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
