"""A refresh as Dagster shows it: what is materialized, what failed, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.ingest.outcome import SeriesOutcome
from market_data_pipeline.orchestration.partition_events import is_due, shown, spacing
from market_data_pipeline.orchestration.partitions import (
    all_materialized,
    bars_key,
    features_key,
    range_tags,
    series_partitions,
)
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline_tests.orchestration.conftest import NOW, StandIn

BARS, FEATURES = bars_key(Tier.CRITICAL), features_key(Tier.CRITICAL)
TIMEFRAMES = ("5m", "15m", "1h", "4h", "1d")


def run(
    instance: dg.DagsterInstance,
    url: str,
    *,
    failing: list[str] | None = None,
    unchanged: tuple[str, ...] = (),
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    pipeline = StandIn(url=url, failing=failing or [], unchanged=list(unchanged))
    definitions = build_defs(resource_overrides={"pipeline": pipeline})
    return definitions.resolve_job_def("critical_refresh").execute_in_process(
        instance=instance,
        tags=tags,
        run_config={"ops": {"critical_series": {"config": config}}} if config else None,
        raise_on_error=False,
    )


def keys(*symbols: str, timeframes: tuple[str, ...] = TIMEFRAMES) -> set[str]:
    return {f"{symbol}|{timeframe}" for symbol in symbols for timeframe in timeframes}


def failed_partitions(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        partitions = series_partitions(Tier.CRITICAL)
        status = instance.get_status_by_partition(key, partitions.get_partition_keys(), partitions)
    return {partition for partition, state in (status or {}).items() if state and state.value == "FAILED"}


@pytest.fixture
def url(database: sa.Engine, database_url: str) -> str:
    return database_url


@pytest.mark.parametrize("tags", [range_tags(["AAPL", "MSFT", "NVDA"]), None], ids=["a shard", "the whole tier"])
def test_a_failing_symbol_leaves_the_others_materialized(
    registered: dg.DagsterInstance, url: str, tags: dict[str, str] | None
) -> None:
    result = run(registered, url, failing=["MSFT"], tags=tags)

    assert not result.success
    for key in (BARS, FEATURES):
        assert registered.get_materialized_partitions(key) == keys("AAPL", "NVDA")
        assert failed_partitions(registered, key) == keys("MSFT")


def materialized_by(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, set[str]]:
    found: dict[dg.AssetKey, set[str]] = {}
    for entry in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        event = entry.get_dagster_event()
        assert event.asset_key is not None
        found.setdefault(event.asset_key, set()).add(str(event.partition))
    return found


def age_events(instance: dg.DagsterInstance, days: int) -> None:
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        connection.execute(
            sa.text("update event_logs set timestamp = timestamp - make_interval(days => :d)"), {"d": days}
        )


def test_a_series_is_materialized_when_it_changed_and_otherwise_once_a_day(
    registered: dg.DagsterInstance, url: str
) -> None:
    quiet = ("AAPL", "MSFT")
    first = run(registered, url, unchanged=quiet)
    assert materialized_by(registered, first) == dict.fromkeys((BARS, FEATURES), keys("AAPL", "MSFT", "NVDA"))
    age_events(registered, 1)
    next_day = run(registered, url, unchanged=quiet)
    assert materialized_by(registered, next_day) == dict.fromkeys((BARS, FEATURES), keys("AAPL", "MSFT", "NVDA"))


def test_a_series_that_did_not_change_is_not_materialized_again_on_the_same_day(
    registered: dg.DagsterInstance, url: str
) -> None:
    partitions, before = sorted(keys("AAPL")), datetime.now(UTC)
    assert shown(registered, Tier.CRITICAL, partitions).newest == {}
    run(registered, url)
    newest = shown(registered, Tier.CRITICAL, partitions).newest
    assert newest.keys() == keys("AAPL")
    assert all(before - timedelta(seconds=1) <= at for at in newest.values())


AT = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("outcome", "hours_ago", "due"),
    [
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok"), None, True),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "unchanged"), None, True),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "unchanged"), 5, False),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "unchanged"), 16, True),  # of the day before
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok"), 3.9, False),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok"), 4, True),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok", Counters(rows_updated=1)), 1, True),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok", rows_filled=1), 1, True),
        (SeriesOutcome(Series("AAPL", Timeframe.M5), Tier.CRITICAL, "ok", warning="A feature raised."), 1, True),
    ],
)
def test_in_a_large_tier_a_series_that_only_grew_is_materialized_every_four_hours(
    outcome: SeriesOutcome, hours_ago: float | None, due: bool
) -> None:
    newest = None if hours_ago is None else AT - timedelta(hours=hours_ago)
    assert is_due(outcome, newest, AT, timedelta(hours=4)) is due


def test_only_large_tiers_without_assets_of_the_projects_own_materialize_less_often(
    registered: dg.DagsterInstance,
) -> None:
    assert spacing(registered, Tier.CRITICAL, own_assets=False) == timedelta(0)
    registered.add_dynamic_partitions("critical_symbols", [f"SYN{number:04}" for number in range(250)])
    assert spacing(registered, Tier.CRITICAL, own_assets=False) == timedelta(hours=4)
    assert spacing(registered, Tier.CRITICAL, own_assets=True) == timedelta(0)


def test_a_run_in_which_nothing_changed_materializes_one_series_for_the_freshness_policy(
    registered: dg.DagsterInstance, url: str
) -> None:
    run(registered, url)
    age_events(registered, -1)  # whatever the time, today's events are then not of a day before
    quiet = run(registered, url, unchanged=("AAPL", "MSFT", "NVDA"))
    found = materialized_by(registered, quiet)
    assert [len(found[key]) for key in (BARS, FEATURES)] == [1, 1]


def test_a_series_that_failed_shows_as_failed_until_it_is_refreshed_even_if_nothing_changed(
    registered: dg.DagsterInstance, url: str
) -> None:
    run(registered, url)
    age_events(registered, -1)
    assert not run(registered, url, failing=["MSFT"], unchanged=("AAPL", "NVDA")).success
    assert failed_partitions(registered, BARS) == keys("MSFT")
    run(registered, url, unchanged=("AAPL", "MSFT", "NVDA"))
    assert failed_partitions(registered, BARS) == set()
    assert failed_partitions(registered, FEATURES) == set()


def test_a_symbol_that_left_its_tier_does_not_fail_the_rest_of_its_shard(
    registered: dg.DagsterInstance, url: str
) -> None:
    shard = {"market_data/shard": "AAPL to NVDA"}
    assert run(registered, url, tags=shard, config={"symbols": ["AAPL", "GONE", "NVDA"]}).success
    assert registered.get_materialized_partitions(BARS) == keys("AAPL", "NVDA")


def test_the_failure_names_the_failed_series_and_their_reasons(registered: dg.DagsterInstance, url: str) -> None:
    result = run(registered, url, failing=["MSFT"])

    failure = result.failure_data_for_node("critical_series")
    assert failure is not None
    assert failure.user_failure_data is not None
    said = failure.user_failure_data.description
    assert said.startswith("5 of 15 series failed; the others are stored.")
    assert "MSFT|5m, MSFT|15m, MSFT|1h, MSFT|4h, MSFT|1d: RateLimitedError: The vendor refused five times." in said
    assert "AAPL" not in said
    metadata = failure.user_failure_data.metadata
    assert (metadata["failed"].value, metadata["committed"].value) == (5, 10)
    assert {record.data["kind"] for record in metadata["failures"].records} == {"transient"}


def test_a_run_without_partition_tags_covers_the_whole_tier(registered: dg.DagsterInstance, url: str) -> None:
    assert run(registered, url).success
    assert registered.get_materialized_partitions(BARS) == keys("AAPL", "MSFT", "NVDA")
    assert failed_partitions(registered, BARS) == set()


def test_a_run_for_one_partition_refreshes_that_series_only(registered: dg.DagsterInstance, url: str) -> None:
    assert run(registered, url, tags={"dagster/partition": "AAPL|5m"}).success
    assert registered.get_materialized_partitions(FEATURES) == {"AAPL|5m"}


def test_run_config_narrows_a_run(registered: dg.DagsterInstance, url: str) -> None:
    config = {"symbols": ["NVDA", "AAPL"], "timeframes": ["1d", "5m"], "history_days": 30, "full_refresh": True}
    assert run(registered, url, config=config).success
    assert registered.get_materialized_partitions(BARS) == keys("AAPL", "NVDA", timeframes=("5m", "1d"))
    event = registered.get_latest_materialization_event(BARS)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["dagster/partition_row_count"].value == 31


def test_run_config_with_a_symbol_of_another_tier_says_so(registered: dg.DagsterInstance, url: str) -> None:
    result = run(registered, url, config={"symbols": ["AMD"]})
    failure = result.failure_data_for_node("critical_series")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description.startswith("UsageError: AMD: not among the 3 symbols")


def test_a_materialization_shows_what_was_fetched_and_how_far_the_series_reaches(
    registered: dg.DagsterInstance, url: str
) -> None:
    run(registered, url, tags={"dagster/partition": "AAPL|5m"})
    event = registered.get_latest_materialization_event(BARS)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["rows_inserted"].value == 11
    assert metadata["requests"].value == 2
    assert metadata["verified_at"].value == NOW.timestamp()
    assert "expected_last_bar" not in metadata


def test_a_run_leaves_one_table_with_a_row_per_symbol_failed_ones_first(
    registered: dg.DagsterInstance, url: str
) -> None:
    run(registered, url, failing=["NVDA"])
    records = registered.fetch_observations(BARS, limit=10).records
    assert len(records) == 1
    observation = records[0].asset_observation
    assert observation is not None
    rows = [record.data for record in observation.metadata["symbols"].records]
    assert [(row["symbol"], row["failed"], row["fetched"]) for row in rows] == [
        ("NVDA", 5, 0),
        ("AAPL", 0, 60),
        ("MSFT", 0, 60),
    ]


def test_a_refresh_writes_the_verdict_of_the_freshness_check(registered: dg.DagsterInstance, url: str) -> None:
    run(registered, url)
    key = dg.AssetCheckKey(FEATURES, "series_freshness")
    record = registered.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event is not None
    evaluation = record.event.dagster_event.event_specific_data
    assert not evaluation.passed  # the stand-in stores nothing, so every series is missing
    assert (evaluation.metadata["late"].value, evaluation.metadata["missing"].value) == (15, 15)
    assert len(evaluation.metadata["worst"].records) == 15


def test_of_a_ticks_shards_only_the_last_one_writes_the_verdict(registered: dg.DagsterInstance, url: str) -> None:
    waiting, _ = submit_refresh(registered, build_defs())[:2]
    key = dg.AssetCheckKey(FEATURES, "series_freshness")
    run(registered, url, config={"symbols": ["AAPL"]})
    assert registered.event_log_storage.get_latest_asset_check_execution_by_key([key]) == {}
    registered.delete_run(waiting)
    last = run(registered, url, config={"symbols": ["MSFT"]})
    record = registered.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.run_id == last.run_id


def test_materializing_both_assets_by_hand_needs_nothing_but_the_partition(
    registered: dg.DagsterInstance, url: str
) -> None:
    # What `dagster asset materialize --select … --partition 'AAPL|5m'` and the UI's button run: checks included.
    definitions = build_defs(resource_overrides={"pipeline": StandIn(url=url)})
    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=registered, asset_selection=[BARS, FEATURES], partition_key="AAPL|5m", raise_on_error=False
    )
    assert result.success
    assert registered.get_materialized_partitions(FEATURES) == {"AAPL|5m"}
    check = dg.AssetCheckKey(FEATURES, "series_freshness")
    record = registered.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
    assert record.run_id == result.run_id
    assert record.event is not None
    assert "quality_checks" in {event.step_key for event in result.all_node_events if event.is_step_skipped}


def test_all_is_materialized_only_when_every_series_of_every_tier_is(registered: dg.DagsterInstance, url: str) -> None:
    definitions = build_defs(resource_overrides={"pipeline": StandIn(url=url)})
    for tier in Tier:
        assert not all_materialized(registered)
        definitions.resolve_job_def(f"{tier}_refresh").execute_in_process(instance=registered)
    assert all_materialized(registered)
