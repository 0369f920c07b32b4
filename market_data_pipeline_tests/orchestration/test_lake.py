"""The lake's assets: what a run of the job materializes, checks and shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.lake.tables import NAMES, TABLES
from market_data_pipeline.orchestration.lake import CHECK, lake_key
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.lake.conftest import LakeWorld, filled, serving

__all__ = ["filled"]


class Beside(PipelineResource):
    """The settings of a test's database and lake."""

    url: str
    lake: str

    def settings(self) -> Settings:
        """Return the settings."""
        return Settings(database_url=self.url, lake_url=self.lake)


@pytest.fixture
def world(postgres_url: str, filled: str, tmp_path: Path) -> Iterator[LakeWorld]:
    name = copy_database(postgres_url, filled)
    with serving(with_database(postgres_url, name), tmp_path) as made:
        yield made
    drop_database(postgres_url, name)


def run(instance: dg.DagsterInstance, world: LakeWorld, *selected: str) -> dg.ExecuteInProcessResult:
    beside = Beside(url=world.world.database_url, lake=world.url)
    job = build_defs(resource_overrides={"pipeline": beside}).resolve_job_def("lake")
    keys = [lake_key(name) for name in selected] or None
    return job.execute_in_process(instance=instance, asset_selection=keys)


def test_a_run_materializes_every_table_and_compares_it_with_the_database(
    instance: dg.DagsterInstance, world: LakeWorld
) -> None:
    result = run(instance, world)
    shown = {
        event.asset_key.path[-1]: event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert set(shown) == set(NAMES)
    (settled,) = world.world.query(
        "select count(*) as n from market_data.bars as b join market_data.series_state as s using (symbol, timeframe)"
        " where timeframe = '1d' and b.ts < s.settled_until"
    )
    for name in ("bars_1d", "features_1d"):
        rows = world.rows(name)
        assert shown[name]["dagster/row_count"].value == len(rows) == settled["n"]
        assert shown[name]["rows_written"].value == len(rows)
    verdicts = {event.asset_key.path[-1]: event for event in result.get_asset_check_evaluations()}
    assert set(verdicts) == {table.name for table in TABLES}
    assert all(verdict.passed for verdict in verdicts.values())
    assert verdicts["bars_5m"].metadata["rows_compared"].value == shown["bars_5m"]["rows_written"].value

    delta = world.lake.open("bars_1d")
    assert delta is not None
    delta.delete("symbol = 'AAPL'")
    again = run(instance, world, "bars_1d", "splits")
    assert {e.asset_key.path[-1] for e in again.get_asset_materialization_events() if e.asset_key} == {
        "bars_1d",
        "splits",
    }
    (verdict,) = again.get_asset_check_evaluations()
    assert verdict.check_name == CHECK
    assert not verdict.passed
    assert "lake sync --full" in (verdict.description or "")


def test_a_table_is_downstream_of_the_tiers() -> None:
    graph = build_defs().resolve_asset_graph()
    assert graph.get(lake_key("features_1h")).parent_keys == {
        dg.AssetKey([tier, "features"]) for tier in ("critical", "standard", "low_priority")
    }
    assert [column.name for column in graph.get(lake_key("bars_1d")).metadata["dagster/column_schema"].columns] == [
        *("symbol", "ts", "open", "high", "low", "close", "volume", "vwap", "trades", "ingested_at", "month"),
    ]
