"""Whatever the vendor does: the truth is stored, or nothing of the window and the reason why."""

from __future__ import annotations

import pytest

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline_tests.ingest.faults.conftest import DAYS
from market_data_pipeline_tests.ingest.faults.repertoire import REFUSED, SURVIVED, Fault, Refused
from market_data_pipeline_tests.ingest.faults.vendor import first_page, later_page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot

INTRADAY = {f"AAPL|{timeframe}" for timeframe in Timeframe if timeframe.base is Timeframe.M5}


def test_the_truth_takes_several_pages_and_every_relation(world: FaultyWorld, truth: Snapshot) -> None:
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth
    assert all(truth[relation] for relation in ("bars", "features", "coverage", "series_state"))
    assert [sum(map(page, world.vendor.exchanges)) for page in (first_page, later_page)] == [1, 1]


@pytest.mark.parametrize("fault", SURVIVED.values(), ids=SURVIVED)
def test_a_transient_fault_leaves_the_truth(world: FaultyWorld, truth: Snapshot, fault: Fault) -> None:
    world.read_seconds = fault.read_seconds
    world.vendor.inject(fault.make, fault.applies, fault.times)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    assert world.snapshot() == truth
    # Every request is counted, and no fault cost a second refresh.
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == len(world.vendor.seen)


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_a_persistent_fault_stores_nothing_says_why_and_the_next_run_recovers(
    world: FaultyWorld, truth: Snapshot, refused: Refused
) -> None:
    world.read_seconds = refused.fault.read_seconds
    world.vendor.inject(refused.fault.make, refused.fault.applies, refused.fault.times)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    failed = {key for key, outcome in outcomes.items() if outcome.failed}
    assert failed == (INTRADAY | {"AAPL|1d"} if refused.stops_run else INTRADAY)
    held = world.snapshot()
    for relation in ("bars", "features"):
        assert held[relation] == [row for row in truth[relation] if f"AAPL|{row[1]}" not in failed]
    assert {row[3] for row in held["coverage"] if row[1] == "5m"} <= {"failed"}

    logged = {f"{row['symbol']}|{row['timeframe']}": row for row in world.log()}
    state = {f"{row[0]}|{row[1]}": row for row in held["series_state"]}
    assert len(logged) == len(Timeframe)
    for key in failed:
        assert logged[key]["status"] == "failed"
        assert logged[key]["error_class"] == state[key][11] == outcomes[key].error_class == refused.error_class
        assert refused.words in str(logged[key]["error"])
        assert logged[key]["error"] == state[key][12] == outcomes[key].error
        assert state[key][13] == 1
    assert sum(int(row["requests"]) for row in logged.values()) == len(world.vendor.seen)  # type: ignore[call-overload]

    world.vendor.heal()
    world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth
