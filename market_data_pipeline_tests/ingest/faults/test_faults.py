"""Whatever the vendor does: the truth is stored, day by day, or nothing of the day and the reason why."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline_tests.ingest.faults.conftest import DAYS
from market_data_pipeline_tests.ingest.faults.repertoire import REFUSED, SPOILING, SURVIVED, Fault, Refused, Spoiling
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, first_page, later_page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot, differences

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


@pytest.mark.parametrize("spoiling", SPOILING.values(), ids=SPOILING)
def test_a_bad_row_refuses_its_day_says_why_and_leaves_the_other_days(
    world: FaultyWorld, truth: Snapshot, spoiling: Spoiling
) -> None:
    world.vendor.inject(spoiling.make, first_page, ALWAYS)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    held = world.snapshot()
    day = date.fromisoformat(spoiling.day)

    def spoilt(row: tuple[Any, ...]) -> bool:
        return row[1] != "1d" and row[2].astimezone(NEW_YORK).date() == day

    assert held["bars"] == [row for row in truth["bars"] if not spoilt(row)]
    coverage = [(*row[:3], "failed", 0) if row[1] != "1d" and row[2] == day else row for row in truth["coverage"]]
    assert held["coverage"] == coverage
    due = {row[1]: row[10] for row in truth["series_state"]}
    assert {row[1]: row[10] for row in held["series_state"]} == due
    (reason,) = world.query("select reason from market_data.coverage where reason is not null")
    assert spoiling.words in str(reason["reason"])
    (logged,) = [row for row in world.log() if row["timeframe"] == "5m"]
    assert logged["days_refused"] == 1
    assert spoiling.day in str(logged["warning"])
    assert spoiling.words in str(logged["warning"])
    assert sum(int(row["requests"]) for row in world.log()) == len(world.vendor.seen)  # type: ignore[call-overload]

    world.vendor.heal()
    world.refresh("AAPL", history_days=DAYS)
    assert differences(world.snapshot(), truth) == {}


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
