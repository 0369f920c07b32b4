"""A small ingestion with a lake beside its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.lake.location import Lake
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.lake.tables import LakeTable, SyncedTable, table_named
from market_data_pipeline.lake.verify import VerifiedTable, verify
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import World

# A Tuesday: the 40 days before it touch three months, and the last session has settled.
NOON = datetime(2025, 4, 1, 12, 0, tzinfo=NEW_YORK)
# Tables of two timeframes tell as much as all of them, and take a third of the time.
SOME = tuple(
    table_named(f"{kind}_{timeframe}") for kind in ("bars", "features", "bar_revisions") for timeframe in ("1h", "1d")
)


class LakeWorld:
    """A vendor that changes its mind, a database, and a lake."""

    def __init__(self, world: World, source: ChangingSource, url: str) -> None:
        self.world, self.source, self.url = world, source, url

    @property
    def settings(self) -> Settings:
        return load_settings(
            database_url=self.world.database_url, as_of=self.world.now.astimezone(UTC), lake_url=self.url
        )

    @property
    def lake(self) -> Lake:
        return Lake.of(self.settings)

    def refresh(self, *symbols: str, **options: Any) -> None:
        outcomes = self.world.refresh(*symbols, **{"history_days": 40, **options})
        assert not [outcome.error for outcome in outcomes.values() if outcome.failed]

    def sync(self, tables: tuple[LakeTable, ...] = SOME, **options: Any) -> dict[str, SyncedTable]:
        return {one.name: one for one in sync(self.settings, tables=tables, **options)}

    def verify(self, tables: tuple[LakeTable, ...] = SOME) -> list[VerifiedTable]:
        return verify(self.settings, tables=tables)

    def assert_equal(self, tables: tuple[LakeTable, ...] = SOME) -> None:
        found = self.verify(tables)
        assert [(one.name, one.equal, one.behind, one.sample) for one in found] == [
            (table.name, True, 0, ()) for table in tables
        ]
        assert all(one.rows for one in found if not one.name.startswith("bar_revisions"))

    def rows(self, name: str) -> pa.Table:
        """The rows of a table by symbol and time, whatever its files are."""
        delta = self.lake.open(name)
        assert delta is not None
        table = delta.to_pyarrow_table()
        keys = [(key, "ascending") for key in ("symbol", "ts", "id") if key in table.column_names]
        return table.sort_by(keys)

    def rows_of_splits(self) -> list[dict[str, Any]]:
        delta = self.lake.open("splits")
        assert delta is not None
        return delta.to_pyarrow_table().to_pylist()


@pytest.fixture(scope="module")
def filled(postgres_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database with 40 days of two stocks, made once for the tests of a module."""
    name = copy_database(postgres_url, migrated_template)
    with serving(with_database(postgres_url, name), tmp_path_factory.mktemp("lake")) as made:
        made.refresh("AAPL", "MSFT")
    yield name
    drop_database(postgres_url, name)


@pytest.fixture
def lake_world(postgres_url: str, filled: str, tmp_path: Path) -> Iterator[LakeWorld]:
    """Two stocks with 40 days of bars, and no lake yet."""
    name = copy_database(postgres_url, filled)
    with serving(with_database(postgres_url, name), tmp_path) as made:
        yield made
    drop_database(postgres_url, name)


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[LakeWorld]:
    source = ChangingSource(open_source(None))
    world = World("", database_url, NOON.astimezone(UTC), "advanced")
    with running_server(source, world.clock, plan="advanced") as world.base_url:
        yield LakeWorld(world, source, str(folder / "lake"))
