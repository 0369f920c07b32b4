"""How a tier is cut into runs, and how runs get into the queue."""

from __future__ import annotations

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
from market_data_pipeline.orchestration.partitions import partition_changes, series_partitions, symbols_of
from market_data_pipeline.orchestration.runs import (
    shards,
    submit_refresh,
    tier_run_requests,
    unfinished_tier_run,
    wait_for_runs,
)
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.orchestration.conftest import NOW


@laws
@given(st.integers(0, 300), st.integers(1, 60))
def test_shards_hold_every_symbol_once_in_order_and_none_is_too_large(count: int, largest: int) -> None:
    symbols = [f"S{number}" for number in range(count)]
    pieces = shards(symbols, largest)
    assert [symbol for piece in pieces for symbol in piece] == symbols
    assert all(1 <= len(piece) <= largest for piece in pieces)
    if pieces:
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_a_shard_selects_all_series_of_its_symbols_and_no_other(registered: dg.DagsterInstance) -> None:
    first, second = tier_run_requests(symbols_of(registered, Tier.CRITICAL), Tier.CRITICAL, 2)
    selected = []
    with dg.partition_loading_context(dynamic_partitions_store=registered):
        for request in (first, second):
            bounds = [request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")]
            selected.append(series_partitions(Tier.CRITICAL).get_partition_keys_in_range(dg.PartitionKeyRange(*bounds)))
    assert [set(keys) for keys in selected] == [
        {f"{symbol}|{timeframe}" for symbol in symbols for timeframe in Timeframe}
        for symbols in (("AAPL",), ("MSFT", "NVDA"))
    ]


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


def test_no_run_is_larger_than_its_tier_allows() -> None:
    for tier in Tier:
        symbols = [f"S{number}" for number in range(1000)]
        assert len(tier_run_requests(symbols, tier)) == -(-1000 // TIER_OBJECTIVES[tier].max_shard_symbols)
