"""Two databases with something in them, a folder for backups, and empty databases to restore into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance

from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.database_urls import psycopg2_url
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World

NOW = datetime(2025, 3, 14, 21, 0, tzinfo=UTC)
STORAGE = "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\ntelemetry: {enabled: false}\n"


@pytest.fixture(scope="module")
def new_database(postgres_url: str) -> Iterator[Callable[..., str]]:
    """Return a function that makes a database and gives its URL."""
    with ExitStack() as stack:

        def make(template: str = "template1") -> str:
            name = copy_database(postgres_url, template)
            stack.callback(drop_database, postgres_url, name)
            return with_database(postgres_url, name)

        yield make


@pytest.fixture(scope="module")
def vendor_clock() -> list[datetime]:
    return [NOW]


@pytest.fixture(scope="module")
def world(new_database: Callable[..., str], migrated_template: str, vendor_clock: list[datetime]) -> Iterator[World]:
    """A database with five days of a symbol, and the vendor that they came from."""
    with running_server(open_source(None), lambda: vendor_clock[0], plan="advanced") as base_url:
        made = World(base_url, new_database(migrated_template), NOW)
        assert {one.status for one in made.refresh("AAPL", history_days=5).values()} == {"ok"}
        sync_sessions(engine(made.database_url))
        yield made


@pytest.fixture(scope="module")
def dagster_url(new_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with Dagster's storage in it, which knows a partition."""
    url, home = psycopg2_url(new_database()), tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text(STORAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_POSTGRES_URL", url)
        with DagsterInstance.from_config(str(home)) as instance:
            instance.get_run_records(limit=1)
            instance.add_dynamic_partitions("critical_symbols", ["AAPL"])
    return url


@pytest.fixture
def settings(world: World, dagster_url: str, tmp_path: Path) -> Settings:
    """The project whose databases are backed up."""
    return Settings(database_url=world.database_url, dagster_postgres_url=dagster_url, project_root=tmp_path)


@pytest.fixture
def empty(new_database: Callable[..., str], tmp_path: Path) -> Settings:
    """A project on two empty databases."""
    return Settings(
        database_url=new_database(), dagster_postgres_url=psycopg2_url(new_database()), project_root=tmp_path
    )


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()
