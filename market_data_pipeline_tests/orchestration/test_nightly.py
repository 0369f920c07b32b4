"""The nightly jobs: what prune keeps, what quality finds, what reconcile reopens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import typer.testing

from market_data_pipeline.cli.main import app
from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.dagster_retention import old_events, old_runs, prune_events, prune_runs
from market_data_pipeline.orchestration.jobs.reconcile import Difference, differences
from market_data_pipeline.orchestration.partitions import bars_key, features_key, series_partitions
from market_data_pipeline_tests.orchestration.conftest import NOW, StandIn

BARS = bars_key(Tier.CRITICAL)


@pytest.fixture
def dagster_storage(dagster_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(dagster_url)
    yield engine
    engine.dispose()


def refresh(instance: dg.DagsterInstance, url: str, *, failing: list[str] | None = None) -> dg.ExecuteInProcessResult:
    definitions = build_defs(resource_overrides={"pipeline": StandIn(url=url, failing=failing or [])})
    return definitions.resolve_job_def("critical_refresh").execute_in_process(
        instance=instance,
        tags={
            "dagster/asset_partition_range_start": "AAPL|5m",
            "dagster/asset_partition_range_end": "NVDA|1d",
        },
        raise_on_error=False,
    )


def events(storage: sa.Engine) -> dict[str, int]:
    with storage.connect() as connection:
        rows = connection.execute(sa.text("select dagster_event_type, count(*) from event_logs group by 1"))
        return {row[0] or "log line": row[1] for row in rows}


def age(storage: sa.Engine, by: timedelta) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    values = {"new": now - timedelta(days=1), "noon": now.replace(hour=12), "by": by}
    with storage.begin() as connection:
        for table, column in (("event_logs", "timestamp"), ("asset_check_executions", "evaluation_event_timestamp")):
            # All that is new happened on one day, at noon: a test around midnight does not see two.
            moved = f"case when {column} > :new then cast(:noon as timestamp) else {column} end"
            connection.execute(sa.text(f"update {table} set {column} = {moved} - :by"), values)


def partition_states(instance: dg.DagsterInstance) -> dict[dg.AssetKey, dict[str, str]]:
    """Return what Dagster shows for each partition of the critical tier."""
    partitions = series_partitions(Tier.CRITICAL)
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        keys = partitions.get_partition_keys()
        found = {
            key: instance.get_status_by_partition(key, keys, partitions) or {}
            for key in (bars_key(Tier.CRITICAL), features_key(Tier.CRITICAL))
        }
    return {key: {part: state.value for part, state in states.items() if state} for key, states in found.items()}


def test_pruning_keeps_runs_failures_and_what_dagster_shows_of_every_partition(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    refresh(registered, database_url)
    failed_run = refresh(registered, database_url, failing=["MSFT"])
    shown, before = partition_states(registered), events(dagster_storage)
    materialized = registered.get_materialized_partitions(BARS)
    age(dagster_storage, timedelta(days=20))

    deleted = prune_events(dagster_storage, kept_days=14)

    after = events(dagster_storage)
    assert after.keys() >= {"PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "STEP_FAILURE"}
    assert after["ASSET_OBSERVATION"] == before["ASSET_OBSERVATION"] == 2
    assert not after.keys() & {"log line", "ENGINE_EVENT", "RESOURCE_INIT_SUCCESS"}
    # Of two assets' 15 series the second run materialized 10 again, on the same day.
    assert (before["ASSET_MATERIALIZATION"], after["ASSET_MATERIALIZATION"]) == (50, 30)
    # All were planned twice; the last plans for MSFT's 5 series were never fulfilled.
    assert after["ASSET_MATERIALIZATION_PLANNED"] == 10
    assert sum(before.values()) - sum(after.values()) == sum(deleted.values())
    assert {run.run_id for run in registered.get_runs()} >= {failed_run.run_id}
    assert partition_states(registered) == shown
    assert {state for states in shown.values() for state in states.values()} >= {"FAILED", "MATERIALIZED"}
    assert registered.get_materialized_partitions(BARS) == materialized
    newest = registered.get_latest_materialization_event(BARS)
    assert newest is not None
    assert newest.run_id == failed_run.run_id


def test_pruning_keeps_a_partitions_last_materialization_of_every_day(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    for _ in range(2):
        for _ in range(2):
            refresh(registered, database_url)
        age(dagster_storage, timedelta(days=20))
    assert prune_events(dagster_storage, kept_days=14)["superseded materializations"] == 2 * 30
    assert events(dagster_storage)["ASSET_MATERIALIZATION"] == 2 * 30


def test_pruning_leaves_recent_events_and_the_last_verdict_of_a_day(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    refresh(registered, database_url)
    assert sum(prune_events(dagster_storage, kept_days=14).values()) == 0

    for _ in range(3):
        registered.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=features_key(Tier.STANDARD), check_name="series_freshness", passed=True)
        )
    age(dagster_storage, timedelta(days=20))
    assert prune_events(dagster_storage, kept_days=14)["repeated verdicts"] == 2
    key = dg.AssetCheckKey(features_key(Tier.STANDARD), "series_freshness")
    assert key in registered.event_log_storage.get_latest_asset_check_execution_by_key([key])


def age_runs(storage: sa.Engine, by: timedelta) -> None:
    with storage.begin() as connection:
        connection.execute(sa.text("update runs set update_timestamp = update_timestamp - :by"), {"by": by})


def test_old_runs_go_whole_and_every_partition_still_shows_what_it_did(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    old = [refresh(registered, database_url, failing=["MSFT"]).run_id for _ in range(2)]
    failed = refresh(registered, database_url, failing=["MSFT"]).run_id
    for run_id in old:
        assert (Path(".market-data/compute-logs") / run_id).exists()
    shown, materialized = partition_states(registered), registered.get_materialized_partitions(BARS)
    assert {state for states in shown.values() for state in states.values()} >= {"FAILED", "MATERIALIZED"}
    age_runs(dagster_storage, timedelta(days=91))

    assert old_runs(dagster_storage, 90) == 2
    assert prune_runs(registered, dagster_storage, 90) == 2

    assert [run.run_id for run in registered.get_runs()] == [failed]  # it is what the partitions show
    for run_id in old:
        assert registered.all_logs(run_id) == []
        assert not (Path(".market-data/compute-logs") / run_id).exists()
    with dagster_storage.connect() as connection:
        verdicts = connection.execute(sa.text("select distinct run_id from asset_check_executions")).scalars().all()
    assert not set(verdicts) & set(old)
    assert partition_states(registered) == shown
    assert registered.get_materialized_partitions(BARS) == materialized
    # Dagster's cache of what it shows is made again from what is left.
    registered.event_log_storage.wipe_asset_cached_status(BARS)
    assert partition_states(registered) == shown


def test_a_run_that_has_not_finished_or_is_recent_is_never_deleted(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    for _ in range(2):
        refresh(registered, database_url)
    assert prune_runs(registered, dagster_storage, 90) == 0
    age_runs(dagster_storage, timedelta(days=91))
    with dagster_storage.begin() as connection:
        connection.execute(sa.text("update runs set status = 'STARTED'"))
    assert prune_runs(registered, dagster_storage, 90) == 0
    assert len(registered.get_runs()) == 2


def test_a_preview_counts_what_pruning_deletes(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    for _ in range(2):
        refresh(registered, database_url)
    age(dagster_storage, timedelta(days=20))
    preview = old_events(dagster_storage, 14)
    assert preview == prune_events(dagster_storage, 14)
    assert sum(preview.values()) > 0


def test_the_prune_job_cleans_the_storage_it_runs_on(
    registered: dg.DagsterInstance, dagster_storage: sa.Engine, database: sa.Engine, database_url: str
) -> None:
    old = refresh(registered, database_url)
    files = Path(".market-data/compute-logs") / old.run_id
    assert files.exists()
    age(dagster_storage, timedelta(days=20))
    assert (
        build_defs(resource_overrides={"pipeline": StandIn(url=database_url)})
        .resolve_job_def("prune")
        .execute_in_process(instance=registered)
        .success
    )
    assert events(dagster_storage)["ENGINE_EVENT"] < 5  # those of the prune run itself
    assert not files.exists()


def test_the_quality_job_finds_bad_values_and_says_which(
    registered: dg.DagsterInstance, database: sa.Engine, database_url: str
) -> None:
    with database.begin() as connection:
        connection.execute(
            sa.text("""
                insert into market_data.bars
                (symbol, timeframe, ts, open, high, low, close, volume, ingested_at) values
                ('AAPL', '5m', :ts, 10, 11, 9, 10, 100, :now),
                ('AAPL', '15m', :ts, 10, 9, 9, 10, 100, :now),
                ('AMD', '1h', :ts, 10, 11, 9, 10, 100, :now)
            """),
            {"ts": NOW - timedelta(hours=3, minutes=30), "now": NOW},
        )
        connection.execute(
            sa.text("""
                insert into market_data.features (symbol, timeframe, ts, features_computed_at)
                select symbol, timeframe, ts, ingested_at from market_data.bars where symbol = 'AAPL'
            """)
        )
    definitions = build_defs(resource_overrides={"pipeline": StandIn(url=database_url)})
    result = definitions.resolve_job_def("quality").execute_in_process(instance=registered)
    assert result.success
    evaluations = {
        (evaluation.asset_key.to_user_string(), evaluation.check_name): evaluation
        for evaluation in result.get_asset_check_evaluations()
    }
    failed = {key for key, evaluation in evaluations.items() if not evaluation.passed}
    assert failed == {
        ("critical/bars", "prices_are_consistent"),
        ("critical/bars", "coverage_counts_its_bars"),  # nothing else of a series was stored
        ("critical/bars", "state_agrees_with_the_bars"),
        ("critical/bars", "resampled_bars_equal_their_minutes"),
        ("standard/bars", "state_agrees_with_the_bars"),
        ("standard/features", "every_bar_has_features"),
    }
    found = evaluations["critical/bars", "prices_are_consistent"]
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert found.description == "1 have an open or close outside low and high."
    assert found.metadata["bad_rows"].value == 1
    assert str(found.metadata["severity"].value).startswith("error: ")
    (row,) = found.metadata["sample"].records
    assert (row.data["symbol"], row.data["timeframe"], row.data["high"]) == ("AAPL", "15m", 9.0)
    assert row.data["ts"] == "2026-03-11 12:00:00+00:00"
    sound = evaluations["low_priority/bars", "vwap_lies_within_the_bar"]
    assert sound.severity is dg.AssetCheckSeverity.WARN
    assert len(evaluations) == 3 * 22


def test_the_quality_job_says_in_one_sentence_that_the_database_is_gone(
    registered: dg.DagsterInstance, database_url: str
) -> None:
    gone = "postgresql://market_data:secret@localhost:1/market_data"
    definitions = build_defs(resource_overrides={"pipeline": Gone(url=gone)})
    result = definitions.resolve_job_def("quality").execute_in_process(instance=registered, raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description.startswith("DatabaseUnavailableError: PostgreSQL at localhost:1 ")
    assert "secret" not in said.description


class Gone(StandIn):
    """A pipeline whose database cannot be reached."""


DAY = date(2026, 3, 6)
BAR = {"open": 10.0, "high": 12.0, "low": 9.5, "close": 11.0, "volume": 1e6}


def test_equal_day_bars_do_not_differ_though_rounded_differently() -> None:
    assert differences(DAY, {"AAPL": BAR}, {"AAPL": {**BAR, "volume": 1e6 + 1e-4}}) == []


def test_a_corrected_day_bar_differs_in_its_first_column() -> None:
    found = differences(DAY, {"AAPL": BAR, "MSFT": BAR}, {"AAPL": {**BAR, "close": 11.5, "volume": 2e6}, "MSFT": BAR})
    assert found == [Difference(DAY, "AAPL", "close", 11.0, 11.5)]


def test_a_day_that_is_no_longer_empty_differs() -> None:
    assert differences(DAY, {"AAPL": None, "KO": None}, {"AAPL": BAR}) == [Difference(DAY, "AAPL", "", None, 11.0)]


def test_other_symbols_of_the_market_make_no_difference() -> None:
    assert differences(DAY, {"AAPL": BAR}, {"AAPL": BAR, "ZZZ": BAR}) == []


def test_the_command_previews_what_it_would_remove_and_then_removes_it(
    registered: dg.DagsterInstance,
    dagster_storage: sa.Engine,
    database: sa.Engine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    refresh(registered, database_url)
    age(dagster_storage, timedelta(days=20))
    before = sum(events(dagster_storage).values())
    command = typer.testing.CliRunner()
    shown = json.loads(command.invoke(app, ["prune", "--dry-run", "--json"]).stdout)
    assert shown["dry_run"]
    assert shown["removed"]["mechanics"] > 0
    assert sum(events(dagster_storage).values()) == before
    done = json.loads(command.invoke(app, ["prune", "--json"]).stdout)
    assert done["removed"] == shown["removed"]
    assert sum(events(dagster_storage).values()) < before
