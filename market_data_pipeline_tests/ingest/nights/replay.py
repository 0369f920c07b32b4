"""The nights themselves: refreshes, the nightly job, and what the staleness sensor does, on a clock that is moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import sqlalchemy as sa

from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
from market_data_pipeline.ingest.shard import refresh_shard
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.orchestration.alerts.thresholds import alert_thresholds
from market_data_pipeline.orchestration.jobs.reconcile import reconcile
from market_data_pipeline.reports.freshness import series_freshness, tier_freshness
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import engine as engine_of
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.ingest.nights.truth import at

QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
FIRST_DAY = EQUITIES.session_date(at("9 00:00")) - timedelta(days=28)  # of the history

RELATIONS = {
    "bars": "symbol, timeframe, ts, open, high, low, close, volume, vwap, trades",
    "bars_adjusted": "symbol, timeframe, ts, open, high, low, close, volume, vwap, trades",
    "features": f"symbol, timeframe, ts, {', '.join(FEATURE_NAMES)}",
}


class Sent(NamedTuple):
    """An alert, and when it was sent."""

    at: datetime
    title: str
    body: str


@dataclass
class Replay:
    """One database that is followed live, and everything that was alerted and failed."""

    world: World
    engine: sa.Engine
    hook: Webhook
    tiers: Mapping[Tier, tuple[str, ...]]
    sent: list[Sent] = field(default_factory=list)
    failed: list[SeriesOutcome] = field(default_factory=list)

    def track(self) -> None:
        """Follow the universe from now on."""
        with self.world.connect() as connection:
            for tier, symbols in self.tiers.items():
                for symbol in symbols:
                    connection.execute(
                        "insert into market_data.symbols (symbol, tier, asset_class, active, added_at)"
                        " values (%s, %s, 'us_equity', true, %s)",
                        (symbol, tier, self.world.now),
                    )

    def refresh(self, *tiers: Tier, reverify: bool = False, full: bool = False) -> None:
        """Refresh whole tiers now."""
        requests = [SymbolRequest(symbol, tier, reverify=reverify) for tier in tiers for symbol in self.tiers[tier]]
        if not requests:
            return
        self.world.runs += 1
        with self.world.pipeline((EQUITIES.session_date(self.world.now) - FIRST_DAY).days) as pipeline:
            outcomes = refresh_shard(requests, pipeline=pipeline, run_id=f"run-{self.world.runs}", full=full)
            self.failed += [outcome for outcome in outcomes if outcome.failed]

    def reconcile(self) -> None:
        """Do what the nightly job does."""
        with self.world.pipeline(0) as pipeline, self.engine.connect() as connection:
            reconcile(pipeline, connection, 3)
        self.refresh(*self.tiers, reverify=True)

    def alert(self) -> None:
        """Do what a tick of the staleness sensor does about series."""
        settings = Settings(database_url=self.world.database_url, alert_urls=[self.hook.address()])
        alert_thresholds(self.engine, settings, tier_freshness(self.engine))
        self.sent += [Sent(self.world.now, each["title"], each["message"]) for each in self.hook.received]
        self.hook.received.clear()

    def states(self) -> list[Any]:
        """Return what the reports say of every series now."""
        with self.engine.connect() as connection:
            return series_freshness(connection)

    def stored(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return what is stored, in the order of its keys."""
        with psycopg.connect(self.world.database_url) as connection:
            return {
                relation: connection.execute(
                    f"select {columns} from market_data.{relation} order by symbol, timeframe, ts"
                ).fetchall()
                for relation, columns in RELATIONS.items()
            }


@contextmanager
def moving_engine(world: World) -> Iterator[sa.Engine]:
    """Lend an engine on the world's database whose clock is the world's, wherever it stands."""
    made = engine_of(world.database_url, as_of=world.now, pool_size=2)

    @sa.event.listens_for(made, "checkout")
    def set_clock(connection: Any, record: sa.pool.ConnectionPoolEntry, _: object) -> None:
        if record.info.get("clock") == world.now:
            return
        connection.autocommit = True
        connection.execute("select set_config('market_data.as_of', %s, false)", (world.now.isoformat(),))
        connection.autocommit = False
        record.info["clock"] = world.now

    yield made
    made.dispose()


def quarters(start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the quarters of an hour from `start` to before `end`."""
    while start < end:
        yield start
        start += QUARTER


def refreshed_tiers(quarter: datetime) -> tuple[Tier, ...]:
    """Return the tiers that the replay refreshes at this quarter of an hour, where nothing happens in the scenario.

    Refreshes are most of its time, so it makes those that change what is stated: from an hour after a session's start
    to an hour after its end, the critical tier hourly and the standard one every third hour, so that no series misses
    its RPO; all when the day bar is there, or is late; and when the day has settled, before the nightly job.
    """
    day = EQUITIES.session_date(quarter)
    clock = quarter - EQUITIES.midnight(day)
    before = EQUITIES.session_on(day - timedelta(days=1))
    if before is not None and clock in (2 * QUARTER, 3 * QUARTER, 11 * HOUR):
        return Tier.CRITICAL, Tier.STANDARD
    session = EQUITIES.session_on(day)
    if session is None or not session.start < quarter <= session.end + HOUR or quarter.minute:
        return ()
    every_third = (session.end + HOUR - quarter) % (3 * HOUR) == timedelta(0)
    return (Tier.CRITICAL, Tier.STANDARD) if every_third else (Tier.CRITICAL,)
