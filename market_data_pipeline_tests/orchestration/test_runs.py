"""How a tier is cut into runs, and how runs get into the queue."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.orchestration.dagster_internals import enqueue
from market_data_pipeline.orchestration.partitions import partition_changes, symbols_of
from market_data_pipeline.orchestration.runs import (
    MOST_SHARDS,
    shards,
    submit_refresh,
    tier_run_requests,
    unfinished_tier_run,
    wait_for_runs,
)
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.orchestration.conftest import NOW
from market_data_pipeline_tests.waiting import PATIENCE


@laws
@given(st.integers(0, 300), st.integers(1, 60))
def test_shards_hold_every_symbol_once_in_order_and_none_is_too_large(count: int, largest: int) -> None:
    symbols = [f"S{number}" for number in range(count)]
    pieces = shards(symbols, largest)
    assert [symbol for piece in pieces for symbol in piece] == symbols
    assert all(1 <= len(piece) <= largest for piece in pieces)
    if pieces:
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def symbols_in(request: dg.RunRequest) -> list[str]:
    (step,) = request.run_config["ops"].values()
    named: list[str] = step["config"]["symbols"]
    return named


def test_a_shard_names_its_symbols_and_is_queued_without_an_event_for_each_of_them(
    registered: dg.DagsterInstance,
) -> None:
    requests = tier_run_requests(symbols_of(registered, Tier.CRITICAL), Tier.CRITICAL, 2)
    assert [symbols_in(request) for request in requests] == [["AAPL"], ["MSFT", "NVDA"]]
    repository = build_defs().get_repository_def()
    run_ids = [enqueue(registered, repository, request) for request in requests]
    events = registered.all_logs(run_ids[1], of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    assert len(events) == 2  # one of each asset


def test_a_tier_of_one_shard_is_refreshed_as_it_is_when_the_run_starts(registered: dg.DagsterInstance) -> None:
    (request,) = tier_run_requests(symbols_of(registered, Tier.CRITICAL), Tier.CRITICAL)
    assert request.run_config == {}


def test_critical_runs_leave_the_queue_first(registered: dg.DagsterInstance) -> None:
    priorities = [
        int(tier_run_requests(symbols_of(registered, tier), tier)[0].tags["dagster/priority"]) for tier in Tier
    ]
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == 3


def test_a_submitted_refresh_waits_in_the_queue_for_the_daemon(registered: dg.DagsterInstance) -> None:
    run_ids = submit_refresh(registered, history_days=30)

    runs = [registered.get_run_by_id(run_id) for run_id in run_ids]
    assert [run.job_name for run in runs if run] == ["critical_refresh", "standard_refresh", "low_priority_refresh"]
    for run in runs:
        assert run is not None
        assert run.status is dg.DagsterRunStatus.QUEUED
        assert run.remote_job_origin is not None
        assert run.remote_job_origin.location_name == "market_data_pipeline.definitions"
        assert run.run_config["ops"][f"{run.tags['market_data/tier']}_series"]["config"] == {"history_days": 30}
    assert unfinished_tier_run(registered, Tier.CRITICAL) == run_ids[0]


def test_chosen_symbols_make_one_run_per_tier(registered: dg.DagsterInstance) -> None:
    run_ids = submit_refresh(
        registered, build_defs(), symbols=["NVDA", "F", "AAPL"], timeframes=[Timeframe.H1], full=True
    )
    configs = {}
    for run_id in run_ids:
        run = registered.get_run_by_id(run_id)
        assert run is not None
        configs[run.job_name] = next(iter(run.run_config["ops"].values()))["config"]
    assert configs == {
        "critical_refresh": {"symbols": ["AAPL", "NVDA"], "timeframes": ["1h"], "full_refresh": True},
        "low_priority_refresh": {"symbols": ["F"], "timeframes": ["1h"], "full_refresh": True},
    }
    assert unfinished_tier_run(registered, Tier.CRITICAL) is None  # a run for some symbols holds no schedule up


def test_many_chosen_symbols_are_cut_into_shards(
    registered: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "2")
    run_ids = submit_refresh(registered, build_defs(), symbols=["NVDA", "MSFT", "AAPL"], full=True)
    runs = [run for run_id in run_ids if (run := registered.get_run_by_id(run_id))]
    configs = [run.run_config["ops"]["critical_series"]["config"] for run in runs]
    assert sorted(symbol for config in configs for symbol in config["symbols"]) == ["AAPL", "MSFT", "NVDA"]
    assert sorted(len(config["symbols"]) for config in configs) == [1, 2]
    assert all(config["full_refresh"] for config in configs)


def test_an_untracked_symbol_is_refused_before_anything_is_queued(registered: dg.DagsterInstance) -> None:
    with pytest.raises(UsageError, match="GME: not tracked"):
        submit_refresh(registered, build_defs(), symbols=["AAPL", "GME"])
    assert registered.get_runs_count() == 0


def test_waiting_ends_when_all_runs_have_ended_and_returns_how(registered: dg.DagsterInstance) -> None:
    run_ids = submit_refresh(registered, build_defs(), symbols=["AAPL", "F"])
    seen: list[set[str]] = []

    def cancel_at_the_second_look(statuses: object) -> None:
        seen.append(set(run_ids))
        if len(seen) == 2:
            for run_id in run_ids:
                registered.run_coordinator.cancel_run(run_id)

    ended = wait_for_runs(registered, run_ids, timeout=timedelta(seconds=60), on_look=cancel_at_the_second_look)
    assert ended == dict.fromkeys(run_ids, dg.DagsterRunStatus.CANCELED)


def test_waiting_goes_on_until_the_retry_of_a_run_whose_process_was_lost_has_ended(
    registered: dg.DagsterInstance,
) -> None:
    first, second = submit_refresh(registered, build_defs(), symbols=["AAPL", "F"])
    retries: list[str] = []

    def lose_and_retry(statuses: Mapping[str, dg.DagsterRunStatus]) -> None:
        run = registered.get_run_by_id(first)
        assert run is not None
        if statuses[first] is dg.DagsterRunStatus.QUEUED:
            registered.report_run_failed(run, "Its process is gone.")
            registered.report_run_canceled(registered.get_run_by_id(second))
        elif not retries:  # it has failed, and nothing but its tag says that it is to be tried again
            tags = {"dagster/parent_run_id": first, "dagster/root_run_id": first}
            job = build_defs().resolve_job_def(run.job_name)
            retries.append(registered.create_run_for_job(job, tags=tags).run_id)
        elif statuses[retries[0]] is dg.DagsterRunStatus.NOT_STARTED:
            event = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name)
            registered.report_dagster_event(event, run_id=retries[0])

    ended = wait_for_runs(registered, [first, second], timeout=timedelta(seconds=PATIENCE), on_look=lose_and_retry)
    assert ended == {retries[0]: dg.DagsterRunStatus.SUCCESS, second: dg.DagsterRunStatus.CANCELED}


def test_partitions_follow_the_universe(registered: dg.DagsterInstance, database: sa.Engine) -> None:
    from market_data_pipeline.orchestration.partitions import sync_partitions
    from market_data_pipeline.store.universe import add_symbols, remove_symbols, tracked

    assert partition_changes(registered, tracked(database)) == []
    remove_symbols(database, ["MSFT"])
    add_symbols(database, Tier.CRITICAL, ["F", "SPY"], NOW)
    assert {change.tier: (change.added, change.removed) for change in sync_partitions(registered, database)} == {
        Tier.CRITICAL: (["F", "SPY"], ["MSFT"]),
        Tier.LOW_PRIORITY: ([], ["F"]),
    }
    assert list(symbols_of(registered, Tier.CRITICAL)) == ["AAPL", "NVDA", "F", "SPY"]


def test_a_large_tier_has_larger_shards_rather_than_more_runs() -> None:
    for tier in Tier:
        usual = TIER_OBJECTIVES[tier].shard_symbols
        for count in (1, usual, usual + 1, 10 * usual, 400 * usual):
            symbols = [f"S{number}" for number in range(count)]
            requests = tier_run_requests(symbols, tier)
            assert len(requests) == min(-(-count // usual), MOST_SHARDS)


def test_the_configured_size_of_shards_is_kept(registered: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "1")
    tiers = [run.tags["market_data/tier"] for run in map(registered.get_run_by_id, submit_refresh(registered)) if run]
    assert tiers == ["critical"] * 3 + ["standard"] * 2 + ["low_priority"]
