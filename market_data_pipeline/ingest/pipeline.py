"""What a refresh works with, built once per run: vendor, database, clock and plan.

Add here: what every symbol of a run needs. Keep out: Dagster, which only wraps this in a resource.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from market_data_pipeline.domain.features.own import NO_OWN_FEATURES, OwnFeatures
from market_data_pipeline.domain.series import AssetClass, Tier
from market_data_pipeline.ingest.bulk_load import open_bulk_load
from market_data_pipeline.ingest.corporate_actions import load_overrides
from market_data_pipeline.ingest.fetch_plan import Timing
from market_data_pipeline.ingest.own_features import load_own_features
from market_data_pipeline.ingest.source import Vendor, check_source, staged_days
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.priority import server_gives_way
from market_data_pipeline.store.copy import StoreConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from typing import Self

    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.ingest.bulk_load import BulkLoad
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.rate_limit import SharedLimiter
    from market_data_pipeline.polygon.staged_days import StagedDays
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.source import Source


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Vendor, database, clock and plan of one run; a context manager that closes the vendor's connections.

    Attributes:
        client: the vendor; safe to use from several threads.
        database_url: where market data lives; each thread opens its own connection.
        clock: returns the current instant, aware UTC.
        plan: what the vendor's subscription allows.
        history_days: calendar days of history that a series should hold.
        max_concurrent_symbols: symbols that are fetched at the same time.
        as_of: the instant of a replay, None for the real clock.
        own_features: what the project computes in addition to the 17.
        source: what the database must hold bars of; None to leave that open.
        overrides: by symbol, which security it is according to a file of the project.
        staged: the vendor's flat files, where bars of settled days come from them; None for REST alone.
        rest_tiers: tiers whose bars need a vwap, which files do not have.
    """

    client: PolygonClient
    database_url: str
    clock: Callable[[], datetime]
    plan: Plan
    history_days: int
    max_concurrent_symbols: int
    as_of: datetime | None = None
    own_features: OwnFeatures = NO_OWN_FEATURES
    source: Source | None = None
    overrides: Mapping[str, Identity] = field(default_factory=dict)
    staged: StagedDays | None = None
    rest_tiers: frozenset[Tier] = frozenset()

    def timing(self, asset_class: AssetClass) -> Timing:
        """Return when bars of an asset class are served, as of now."""
        return Timing.on(self.plan, asset_class, self.clock())

    def connect(self) -> StoreConnection:
        """Return a new connection for one thread; the server's process for it gives way to those that answer readers.

        Raises:
            DatabaseUnavailableError: PostgreSQL cannot be reached.
        """
        connection = StoreConnection(self.database_url, self.as_of, source=self.source)
        if connection.server_pid is not None:
            server_gives_way(connection.server_pid)
        return connection

    def bulk_load(self, connection: StoreConnection) -> BulkLoad | None:
        """Return the flat files that serve the days of the history; None for REST alone.

        Raises:
            PipelineError: the files cannot be listed.
        """
        if self.staged is None:
            return None
        timing = self.timing(AssetClass.US_EQUITY)
        return open_bulk_load(
            self.staged, self.client, connection, timing, self.history_days, rest_tiers=self.rest_tiers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.staged is not None:
            self.staged.close()


def build_pipeline(
    settings: Settings, vendor: Vendor, *, history_days: int | None = None, by_file: bool = False
) -> Pipeline:
    """Return the pipeline that the settings describe, fetching from `vendor`.

    Args:
        settings: the environment's.
        vendor: where it answers.
        history_days: calendar days of history instead of the settings'.
        by_file: take the bars of settled days from flat files.

    Raises:
        ConfigurationError: the settings contradict themselves, name no flat files although they are to be read, or the
            database holds bars of another source.
        DatabaseUnavailableError: the database cannot be reached.
    """
    source = check_source(settings)
    return Pipeline(
        client=build_client(settings, vendor),
        database_url=settings.database_url,
        clock=settings.clock,
        plan=_plan(settings),
        history_days=history_days or settings.history_days,
        max_concurrent_symbols=settings.max_concurrent_symbols,
        as_of=settings.as_of,
        own_features=load_own_features(settings),
        source=source,
        overrides=load_overrides(settings),
        staged=staged_days(settings, vendor) if by_file else None,
        rest_tiers=frozenset(Tier(name) for name in settings.vwap_tiers),
    )


def build_client(settings: Settings, vendor: Vendor, *, retries: bool = True) -> PolygonClient:
    """Return a client of `vendor` that keeps to the limit that all users of the database share."""
    from market_data_pipeline.polygon.client import PolygonClient
    from market_data_pipeline.polygon.retry import MAX_ATTEMPTS

    plan = _plan(settings)
    return PolygonClient(
        vendor.base_url,
        vendor.key,
        limiter=shared_limiter(settings.database_url, plan.calls_per_minute),
        plan=plan,
        clock=settings.clock,
        max_attempts=MAX_ATTEMPTS if retries else 1,
    )


def _plan(settings: Settings) -> Plan:
    return plan_named(settings.plan).limited_to(settings.calls_per_minute)


def shared_limiter(
    database_url: str,
    calls_per_minute: int | None,
    *,
    window_seconds: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> SharedLimiter:
    """Return the limit that all users of a database share; it connects at its first use.

    Args:
        database_url: where the queue is.
        calls_per_minute: the plan's limit, None for an unlimited plan.
        window_seconds: the window that `calls_per_minute` is counted in, if it is not a minute.
        sleep: waits for a number of seconds.
    """
    from market_data_pipeline.polygon.rate_limit import SharedLimiter, spacing_seconds
    from market_data_pipeline.store.rate_limit_queue import RateLimitQueue

    spacing = spacing_seconds(calls_per_minute, window_seconds) if calls_per_minute else None
    return SharedLimiter(RateLimitQueue(database_url, spacing), sleep=sleep)
