"""A small but complete ingestion: the sandbox server over HTTP, a database of its own, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import SecretStr

from market_data_pipeline.domain.identity import Identity
from market_data_pipeline.domain.series import Tier, Timeframe, asset_class_of
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
from market_data_pipeline.ingest.pipeline import Pipeline
from market_data_pipeline.ingest.shard import refresh_shard
from market_data_pipeline.polygon.client import PolygonClient
from market_data_pipeline.polygon.flat_files import FileAccess, FlatFiles
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.polygon.rate_limit import UnlimitedLimiter
from market_data_pipeline.polygon.staged_days import StagedDays
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.view import Source
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline.store.source import Source as BarSource


class Patience:
    """Seconds that pass only by sleeping, so that no test really waits for the rate limit or after a 429."""

    def __init__(self) -> None:
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def monotonic(self) -> float:
        return self.slept


@dataclass
class World:
    """One vendor, one database and one clock; `refresh` is a run."""

    base_url: str
    database_url: str
    now: datetime
    plan: str = "advanced"
    key: str = SANDBOX_KEY
    threads: int = 3
    files_folder: Path | None = None
    files_url: str | None = None
    runs: int = field(default=0, init=False)
    overrides: Mapping[str, Identity] = field(default_factory=dict, init=False)
    _tracked: set[str] = field(default_factory=set, init=False)

    def clock(self) -> datetime:
        return self.now

    def pipeline(self, history_days: int) -> Pipeline:
        patience = Patience()
        client = PolygonClient(
            self.base_url,
            self.key,
            limiter=UnlimitedLimiter(sleep=patience.sleep, monotonic=patience.monotonic),
            plan=plan_named(self.plan),
            sleep=patience.sleep,
            clock=self.clock,
        )
        staged = None
        if self.files_folder is not None:
            key = SecretStr(self.key)
            staged = StagedDays(self.files_folder, FlatFiles(FileAccess(self.files_url or self.base_url, key, key)))
        return Pipeline(
            client, self.database_url, self.clock, plan_named(self.plan), history_days, self.threads, self.now,
            source=BarSource("sandbox", None, self.plan), overrides=self.overrides, staged=staged,
        )  # fmt: skip

    def refresh(
        self,
        *symbols: str,
        timeframes: tuple[Timeframe, ...] = tuple(Timeframe),
        history_days: int = 10,
        full: bool = False,
        reverify: bool = False,
        tiers: Mapping[str, Tier] = MappingProxyType({}),
    ) -> dict[str, SeriesOutcome]:
        """Run a refresh and return its outcomes by partition key; symbols without a tier in `tiers` are critical."""
        self.runs += 1
        self.track(*symbols)
        requests = [SymbolRequest(symbol, tiers.get(symbol, Tier.CRITICAL), timeframes, reverify) for symbol in symbols]
        with self.pipeline(history_days) as pipeline:
            outcomes = list(refresh_shard(requests, pipeline=pipeline, run_id=f"run-{self.runs}", full=full))
        by_key = {outcome.series.partition_key: outcome for outcome in outcomes}
        assert len(by_key) == len(outcomes)
        return by_key

    def track(self, *symbols: str) -> None:
        if self._tracked.issuperset(symbols):
            return
        with self.connect() as connection:
            for symbol in symbols:
                connection.execute(
                    "insert into market_data.symbols values (%s, 'critical', %s, true, %s) on conflict do nothing",
                    (symbol, asset_class_of(symbol), self.now),
                )
        self._tracked.update(symbols)

    def connect(self) -> psycopg.Connection[dict[str, object]]:
        return psycopg.connect(self.database_url, autocommit=True, row_factory=dict_row)

    def query(self, statement: str, *parameters: object) -> list[dict[str, object]]:
        with self.connect() as connection:
            connection.execute("select set_config('TimeZone', 'UTC', false)")
            return connection.execute(statement, parameters).fetchall()


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(database_url: str) -> Iterator[MakeWorld]:
    """Return a function that starts a vendor and gives the world around it."""
    with ExitStack() as stack:

        def make(
            now: datetime,
            *,
            replay: Path | None = None,
            source: Source | None = None,
            plan: str = "advanced",
            files_folder: Path | None = None,
        ) -> World:
            world = World("", database_url, now.astimezone(UTC), plan, files_folder=files_folder)
            world.base_url = stack.enter_context(running_server(source or open_source(replay), world.clock, plan=plan))
            return world

        yield make


@pytest.fixture(params=["rest", "files"])
def files_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return None, and then a folder for a world whose settled days come from the vendor's flat files."""
    return tmp_path / "files" if request.param == "files" else None
