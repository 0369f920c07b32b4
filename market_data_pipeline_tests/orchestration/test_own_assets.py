"""A project's own assets: the documented example beside the pipeline's definitions, on a real instance."""

from __future__ import annotations

import doctest
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from market_data_pipeline import own_assets, read_bars, read_features
from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.own_definitions import with_own_definitions
from market_data_pipeline.orchestration.partitions import sync_partitions
from market_data_pipeline.orchestration.provenance import provenance
from market_data_pipeline.own_assets import asset_keys, upstream
from market_data_pipeline.store.connection import engine as engine_of
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world  # noqa: F401
from market_data_pipeline_tests.orchestration.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "own_assets.py"
PAGE = REPOSITORY / "docs" / "own-assets.md"
# Thursday night: Wednesday's bars are settled, Thursday's day bar has just been served.
NIGHT = datetime(2026, 3, 13, 0, 40, tzinfo=NEW_YORK)
TIERS = {"AAPL": Tier.CRITICAL, "MSFT": Tier.CRITICAL, "KO": Tier.STANDARD}
FEATURES = [dg.AssetKey([tier.value, "features"]) for tier in Tier]
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")  # beta in Dagster 1.13


@pytest.fixture
def world(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """A database with half a year of day bars of three symbols in two tiers, which the environment names."""
    world = make_world(NIGHT)
    with world.connect() as connection:
        for symbol, tier in TIERS.items():
            connection.execute(
                "insert into market_data.symbols values (%s, %s, 'us_equity', true, %s)", (symbol, tier, world.now)
            )
    world.refresh(*TIERS, timeframes=(Timeframe.D1,), history_days=200)
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", world.now.isoformat())
    return world


@pytest.fixture
def registered(world: World, instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """The instance with the partitions of the world's symbols."""
    engine = engine_of(world.database_url, as_of=world.now)
    sync_partitions(instance, engine)
    engine.dispose()
    return instance


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The definitions that Dagster loads in a project with the example in its folder."""
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.setenv("MARKET_DATA_DEFINITIONS_MODULE", EXAMPLE.name)
    return with_own_definitions(build_defs())


def materialize(
    definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, **tags: str
) -> dg.ExecuteInProcessResult:
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance, asset_selection=[key], tags={f"dagster/{name}": value for name, value in tags.items()}
    )


def test_upstream_assets_are_named_without_tiers() -> None:
    graph = build_defs().resolve_asset_graph()
    keys = {key for name in ("bars", "features") for key in asset_keys(name)}
    assert keys == {key for key in graph.get_all_asset_keys() if key.path[0] not in ("lake", "storage")}
    assert {dep.asset_key for dep in upstream("features")} == set(FEATURES)
    said: list[str] = []
    (named,) = doctest.DocTestFinder(recurse=False).find(own_assets.asset_keys)
    doctest.DocTestRunner().run(named, out=said.append)
    assert said == []


def test_predictions_are_made_of_the_features_of_each_series_of_a_run(
    registered: dg.DagsterInstance, example: dg.Definitions, tmp_path: Path
) -> None:
    key = dg.AssetKey(["critical", "predictions"])
    span = {"asset_partition_range_start": "AAPL|1d", "asset_partition_range_end": "MSFT|1d"}
    assert materialize(example, registered, key, **span).success
    assert materialize(example, registered, dg.AssetKey(["standard", "predictions"]), partition="KO|1d").success
    assert registered.get_materialized_partitions(key) == {"AAPL|1d", "MSFT|1d"}
    for symbol in TIERS:
        newest = pd.read_parquet(tmp_path / "results" / "predictions" / f"{symbol}|1d.parquet")
        assert newest.index[-1] == read_bars(symbol, "1d").index[-1]
        features = read_features(symbol, "1d")[["log_return", "volatility_20", "volume_ratio"]].to_numpy()
        inputs = np.column_stack([features, np.ones(len(features))])
        used = ~np.isnan(inputs[:-1]).any(axis=1)
        weights = np.linalg.pinv(inputs[:-1][used]) @ features[1:, 0][used]
        assert newest["next_return"].item() == pytest.approx(inputs[-1] @ weights, rel=1e-6)


def test_a_ranking_takes_every_symbol_of_every_tier_on_its_day(
    registered: dg.DagsterInstance, example: dg.Definitions, tmp_path: Path
) -> None:
    result = materialize(example, registered, dg.AssetKey("ranking"), partition="2026-03-12")
    ranked = pd.read_parquet(tmp_path / "results" / "ranking" / "2026-03-12.parquet")
    assert sorted(ranked.index) == sorted(TIERS)
    assert ranked["rank"].tolist() == [1, 2, 3]
    for symbol, row in ranked.iterrows():
        day = read_features(str(symbol), "1d", start="2026-03-12", end="2026-03-13")
        assert row["score"] == pytest.approx((day["return_1d"] / day["volatility_20"]).item() * np.sqrt(252))
    (check,) = result.get_asset_check_evaluations()
    assert check.passed


def test_the_check_of_a_ranking_names_the_symbols_without_a_bar(
    registered: dg.DagsterInstance, example: dg.Definitions, world: World
) -> None:
    with world.connect() as connection:
        connection.execute("delete from market_data.bars where symbol = 'KO' and ts >= '2026-03-11'")
        connection.execute("delete from market_data.features where symbol = 'KO' and ts >= '2026-03-11'")
    span = {"asset_partition_range_start": "2026-03-09", "asset_partition_range_end": "2026-03-12"}
    (check,) = materialize(example, registered, dg.AssetKey("ranking"), **span).get_asset_check_evaluations()
    assert not check.passed
    assert check.metadata["missing"].value == {"2026-03-11": ["KO"], "2026-03-12": ["KO"]}


def test_conditions_request_what_its_refreshed_features_allow(
    registered: dg.DagsterInstance, example: dg.Definitions
) -> None:
    own = dg.AssetSelection.groups("own")

    def requested(at: datetime, cursor: object) -> tuple[dict[str, set[str]], object]:
        found = dg.evaluate_automation_conditions(
            example, registered, asset_selection=own, evaluation_time=at, cursor=cursor
        )
        parts = {
            key.to_user_string(): {str(one) for one in found.get_requested_partitions(key) if one}
            for key in (*asset_keys("predictions"), dg.AssetKey("ranking"))
        }
        return {name: keys for name, keys in parts.items() if keys}, found.cursor

    def refreshed(tier: Tier, *keys: str) -> None:
        for key in keys:
            registered.report_runless_asset_event(
                dg.AssetMaterialization(dg.AssetKey([tier.value, "features"]), partition=key)
            )

    refreshed(Tier.CRITICAL, "AAPL|1d")
    refreshed(Tier.STANDARD, "KO|1d")
    before, cursor = requested(NIGHT.replace(hour=0, minute=10), None)
    assert before == {}
    refreshed(Tier.CRITICAL, "AAPL|1d", "AAPL|5m", "MSFT|1d")
    after, cursor = requested(NIGHT.replace(hour=0, minute=20), cursor)
    assert after == {"critical/predictions": {"AAPL|1d", "MSFT|1d"}}
    refreshed(Tier.CRITICAL, "AAPL|1d")
    refreshed(Tier.STANDARD, "KO|1d")
    later, cursor = requested(NIGHT.replace(hour=1, minute=1), cursor)
    assert later == {"standard/predictions": {"KO|1d"}, "ranking": {"2026-03-12"}}
    settled, cursor = requested(NIGHT.replace(hour=11, minute=46), cursor)
    assert settled == {"ranking": {"2026-03-12"}}
    saturday, cursor = requested(NIGHT.replace(hour=1, minute=1) + timedelta(days=1), cursor)
    assert saturday == {"ranking": {"2026-03-13"}}
    settled, cursor = requested(NIGHT.replace(hour=11, minute=46) + timedelta(days=1), cursor)
    assert settled == saturday
    sunday, _ = requested(NIGHT.replace(hour=12) + timedelta(days=2), cursor)
    assert sunday == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError in line 1: No module named 'nothing_of_that_name'"),
        ("defs = 1", "TypeError: it has no defs, a dagster.Definitions"),
        (
            "import dagster as dg\ndefs = dg.Definitions([dg.AssetSpec(['critical', 'bars'])])",
            "Duplicate asset key: AssetKey(['critical', 'bars'])",
        ),
        ("raise SystemExit(3)", "SystemExit in line 1: 3."),
    ],
)
def test_own_definitions_that_cannot_be_loaded_leave_the_pipeline_running_and_say_why(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv("MARKET_DATA_DEFINITIONS_MODULE", "mine.py")
    location = with_own_definitions(build_defs()).get_repository_def()
    assert location.assets_defs_by_key.keys() == build_defs().get_repository_def().assets_defs_by_key.keys()
    sensor = location.get_sensor_def("own_definitions_sensor")
    assert sensor.description is not None
    assert sensor.description.startswith("MARKET_DATA_DEFINITIONS_MODULE names ")
    assert reason in sensor.description
    with pytest.raises(dg.Failure), dg.build_sensor_context() as context:
        sensor(context)


def test_the_audit_log_does_not_take_their_runs_for_refreshes() -> None:
    said = provenance({"dagster/sensor_name": "own_automation", "dagster/partition": "AAPL|1d"}, {})
    assert said[1:] == ("own_automation", "a condition or sensor of the project's own assets", "AAPL|1d")


def test_the_page_shows_what_the_example_says() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for part in block.split("    ...\n"):
            assert part.strip("\n") in source
