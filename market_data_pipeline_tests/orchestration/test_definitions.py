"""The names and times that users, dashboards and scripts rely on, and what it costs to load them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.bars import COLUMNS
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline_tests.orchestration.conftest import REPOSITORY

PACKAGE = REPOSITORY / "market_data_pipeline"
# Every run is a process that begins with this import; Great Expectations alone would add seconds to it.
HEAVY = (
    "pandas", "numpy", "exchange_calendars", "great_expectations", "apprise", "sqlalchemy", "requests", "pyarrow",
    "fastapi", "talib",
)  # fmt: skip


Python = Callable[[str], str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Return a function that runs code in a fresh process and returns its output; what is compiled is kept."""
    folder = tmp_path_factory.mktemp("fresh")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(REPOSITORY)}

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=folder, check=True, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.stdout

    return run


def test_the_published_names_and_times_stay(snapshot: SnapshotAssertion) -> None:
    definitions = build_defs()
    graph = definitions.resolve_asset_graph()
    repository = definitions.get_repository_def()
    assert {
        "assets": {
            key.to_user_string(): {
                "partitions": describe(graph.get(key).partitions_def),
                "freshness": str(graph.get(key).freshness_policy),
                "pools": sorted(graph.get(key).pools or ()),
                "group": graph.get(key).group_name,
                "owners": list(graph.get(key).owners),
                "kinds": sorted(graph.get(key).kinds),
                "tags": dict(graph.get(key).tags),
            }
            for key in sorted(graph.get_all_asset_keys())
        },
        "checks": sorted(f"{key.asset_key.to_user_string()}: {key.name}" for key in graph.asset_check_keys),
        "jobs": {
            job.name: dict(job.tags)
            for job in sorted(repository.get_all_jobs(), key=lambda job: job.name)
            if not job.name.startswith("__")
        },
        "schedules": {
            schedule.name: (schedule.cron_schedule, schedule.execution_timezone, schedule.default_status.value)
            for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name)
        },
        "sensors": {
            sensor.name: (sensor.minimum_interval_seconds, sensor.default_status.value)
            for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name)
        },
    } == snapshot


def describe(partitions: Any) -> dict[str, Any]:
    return partitions and {
        dimension.name: getattr(dimension.partitions_def, "name", None) or dimension.partitions_def.get_partition_keys()
        for dimension in partitions.partitions_defs
    }


def test_a_refresh_is_one_step_without_checks_of_its_own() -> None:
    for tier in Tier:
        job = build_defs().resolve_job_def(f"{tier}_refresh")
        assert [node.name for node in job.nodes] == [f"{tier}_series"]


def test_the_catalog_shows_the_columns_of_the_tables() -> None:
    graph = build_defs().resolve_asset_graph()

    def columns(key: dg.AssetKey) -> list[str]:
        return [column.name for column in graph.get(key).metadata["dagster/column_schema"].columns]

    assert columns(bars_key(Tier.CRITICAL)) == ["symbol", "timeframe", *COLUMNS, "ingested_at"]
    assert columns(features_key(Tier.CRITICAL)) == [
        "symbol",
        "timeframe",
        "ts",
        *FEATURE_NAMES,
        "features_computed_at",
    ]


def test_the_instance_limits_the_pool_as_promised(instance: dg.DagsterInstance) -> None:
    pool = instance.get_concurrency_config().pool_config
    assert pool.default_pool_limit == 3
    assert pool.pool_granularity is not None
    assert pool.pool_granularity.value == "op"
    assert instance.run_retries_retry_on_asset_or_op_failure is False
    assert instance.freshness_enabled


def test_the_workspace_names_the_module_that_runs_and_schedules_are_recorded_under() -> None:
    from market_data_pipeline.orchestration.dagster_internals import LOCATION

    (location,) = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())["load_from"]
    assert location["python_module"] == {"module_name": LOCATION, "location_name": LOCATION}


def test_the_location_loads_in_a_fresh_process_without_environment_or_heavy_libraries(python: Python) -> None:
    code = f"""
import sys
import market_data_pipeline.definitions as location
location.defs.get_repository_def()
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""
    assert python(code).split() == []


def test_loading_the_location_costs_at_most_twice_what_importing_dagster_does(python: Python) -> None:
    timed = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    both = [timed.format("dagster"), timed.format("market_data_pipeline.definitions")]
    # Of the processor, and the least of some: the first may compile, and other load on the machine costs caches.
    rounds: list[list[float]] = []
    dagster, location = 1.0, math.inf
    while len(rounds) < 2 or (location / dagster > 2.0 and len(rounds) < 8):
        rounds.append([float(python(code)) for code in both])
        dagster, location = (min(column) for column in zip(*rounds, strict=True))
    assert location / dagster <= 2.0


def test_the_code_locations_module_stays_small() -> None:
    assert len((PACKAGE / "definitions.py").read_text().splitlines()) < 80
