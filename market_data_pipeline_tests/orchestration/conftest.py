"""A real Dagster instance on a real PostgreSQL, and a pipeline whose vendor does what a test says."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from pydantic import Field

from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.errors import FailureKind
from market_data_pipeline.domain.series import Series, Tier
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
from market_data_pipeline.orchestration.partitions import sync_partitions
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.project import STORAGE_ENVIRONMENT
from market_data_pipeline.store.connection import engine as engine_of
from market_data_pipeline.store.universe import sync_universe
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)
UNIVERSE = {
    Tier.CRITICAL: ("AAPL", "MSFT", "NVDA"),
    Tier.STANDARD: ("AMD", "KO"),
    Tier.LOW_PRIORITY: ("F",),
}


class StandIn(PipelineResource):
    """The pipeline without a vendor: every series changes, except of the unchanged symbols, and of those that fail."""

    url: str
    failing: list[str] = Field(default=[])
    unchanged: list[str] = Field(default=[])
    alert_urls: list[str] = Field(default=[])
    now: str = NOW.isoformat()

    def settings(self) -> Settings:
        """Return settings for the test's database."""
        return Settings(database_url=self.url, as_of=datetime.fromisoformat(self.now), alert_urls=self.alert_urls)

    @contextmanager
    def database(self) -> Iterator[sa.Engine]:
        """Lend an engine whose clock stands at `now`."""
        lent = engine_of(self.url, as_of=datetime.fromisoformat(self.now))
        yield lent
        lent.dispose()

    def refresh(
        self,
        requests: Sequence[SymbolRequest],
        *,
        run_id: str,
        history_days: int | None = None,
        full: bool = False,
        by_file: bool = False,
    ) -> Iterator[SeriesOutcome]:
        """Yield an outcome for every series."""
        for request in requests:
            for timeframe in request.timeframes:
                series = Series(request.symbol, timeframe)
                if request.symbol in self.failing:
                    yield SeriesOutcome(
                        series,
                        request.tier,
                        "failed",
                        kind=FailureKind.TRANSIENT,
                        error_class="RateLimitedError",
                        error="The vendor refused five times.",
                    )
                else:
                    yield SeriesOutcome(
                        series,
                        request.tier,
                        "unchanged" if request.symbol in self.unchanged else "ok",
                        counters=Counters(
                            requests=2, rows_fetched=12, rows_inserted=11, rows_updated=1, features_written=12
                        ),
                        bar_count=(history_days or 365) + full,
                        feature_count=12,
                        first_ts=NOW - timedelta(days=1),
                        last_ts=NOW - timedelta(minutes=5),
                        verified_at=NOW,
                    )


@pytest.fixture(scope="session")
def dagster_template(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database with Dagster's empty tables: making them takes two seconds, copying them 0.1."""
    name = f"dagster_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DAGSTER_POSTGRES_URL", psycopg2_url(with_database(postgres_url, name)))
            home = tmp_path_factory.mktemp("dagster_home")
            shutil.copy(REPOSITORY / "dagster.yaml", home)
            patch.chdir(home)
            with dg.DagsterInstance.from_config(str(home)):
                pass
    yield name
    drop_database(postgres_url, name)


@pytest.fixture
def dagster_url(postgres_url: str, dagster_template: str) -> Iterator[str]:
    """The psycopg2 URL of a new database with Dagster's empty tables."""
    name = copy_database(postgres_url, dagster_template)
    yield psycopg2_url(with_database(postgres_url, name))
    drop_database(postgres_url, name)


@pytest.fixture
def dagster_home(tmp_path: Path, dagster_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with this repository's `dagster.yaml` and a storage of its own."""
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name, value in {"DAGSTER_POSTGRES_URL": dagster_url, **STORAGE_ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def psycopg2_url(url: str) -> str:
    """Return `url` as Dagster's storage accepts it."""
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


@pytest.fixture
def instance(dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance as this repository configures it."""
    with dg.DagsterInstance.get() as made:
        yield made


@pytest.fixture
def database(database_url: str) -> Iterator[sa.Engine]:
    """An engine on a market database with the universe of `UNIVERSE`; its clock stands at `NOW`."""
    made = engine_of(database_url, as_of=NOW)
    sync_universe(made, UNIVERSE, NOW)
    yield made
    made.dispose()


@pytest.fixture
def registered(instance: dg.DagsterInstance, database: sa.Engine) -> dg.DagsterInstance:
    """The instance with the universe's partitions."""
    sync_partitions(instance, database)
    return instance
