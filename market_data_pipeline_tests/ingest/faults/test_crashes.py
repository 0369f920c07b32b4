"""Whatever process dies at whatever moment, the next run ends where an undisturbed one ends, row for row."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread

import psycopg
import pytest

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.sandbox.view import Source
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.ingest.faults.conftest import DAYS, NOON, new_world
from market_data_pipeline_tests.ingest.faults.processes import advisory_locks, kill, sessions, start, wire
from market_data_pipeline_tests.ingest.faults.vendor import Exchange, FaultyVendor, later_page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot, differences
from market_data_pipeline_tests.polygon.faulty_server import Answer, Handler, send
from market_data_pipeline_tests.waiting import until

A_LITTLE = timedelta(minutes=20)
THREE = ("AAPL", "MSFT", "NVDA")


@pytest.fixture(scope="module")
def truth_of_three(postgres_url: str, migrated_template: str, market: Source) -> Snapshot:
    with new_world(postgres_url, migrated_template, market) as world:
        world.refresh(*THREE, history_days=DAYS)
        return world.snapshot()


@pytest.fixture(scope="module")
def truth_a_little_later(postgres_url: str, migrated_template: str, market: Source) -> Snapshot:
    with new_world(postgres_url, migrated_template, market, NOON + A_LITTLE) as world:
        world.refresh("AAPL", history_days=DAYS)
        return world.snapshot()


def audit_rows(world: FaultyWorld) -> int:
    return len(world.query("select 1 from market_data.ingest_log"))


def assert_data_and_audit_rows_agree(world: FaultyWorld) -> None:
    """There is never data without its audit log row, nor the reverse."""
    unequal = world.query(
        """
        with logged as (
            select symbol, timeframe, sum(rows_inserted) as bars, count(*) as runs
            from market_data.ingest_log where status <> 'failed' group by 1, 2
        ),

        held as (
            select symbol, timeframe, count(*) as bars, count(f.ts) as features
            from market_data.bars left join market_data.features as f using (symbol, timeframe, ts) group by 1, 2
        )

        select * from logged full join held using (symbol, timeframe)
        full join market_data.series_state as s using (symbol, timeframe)
        where (logged.bars, held.features, s.bar_count, s.feature_count)
            is distinct from (held.bars, held.bars, held.bars, held.bars)
        """
    )
    assert unequal == []


@pytest.mark.parametrize("rows", [1, 4, 7, 11])
def test_a_run_killed_when_some_series_are_committed_is_finished_by_the_next(
    world: FaultyWorld, truth_of_three: Snapshot, rows: int
) -> None:
    process = start(world, *THREE, history_days=DAYS)
    until(lambda: audit_rows(world) >= rows or not process.is_alive(), every=0.005)
    kill(world, process)
    assert advisory_locks(world) == []
    assert_data_and_audit_rows_agree(world)
    done = {(row["symbol"], row["timeframe"]) for row in world.log()}
    assert len(done) >= rows
    outcomes = world.refresh(*THREE, history_days=DAYS)
    assert world.snapshot() == truth_of_three
    # What had been committed is not done again.
    for outcome in outcomes.values():
        before = (outcome.series.symbol, str(outcome.series.timeframe)) in done
        assert (outcome.status, outcome.counters.rows_fetched) == ("unchanged", 0) if before else outcome.status == "ok"


@pytest.mark.parametrize(
    ("relation", "at_commit"),
    [
        ("reference_checks", True),
        ("records_5m", False),
        ("coverage", False),
        ("series_state", True),
        ("ingest_log", True),
        ("records_1h", False),
        ("records_4h", False),
        ("records_1d", False),
    ],
)
def test_a_run_killed_inside_a_transaction_leaves_all_of_it_or_nothing(
    world: FaultyWorld, truth_a_little_later: Snapshot, relation: str, at_commit: bool
) -> None:
    with wire(world, relation, at_commit=at_commit) as stopped:
        process = start(world, "AAPL", history_days=DAYS)
        until(lambda: stopped() or not process.is_alive(), every=0.005)
        was_alive = process.is_alive()
        process.kill()
        process.join()
    assert was_alive
    until(lambda: not sessions(world))
    assert advisory_locks(world) == []
    assert_data_and_audit_rows_agree(world)
    world.now += A_LITTLE  # the next run fetches the newest bars only, and must not mistake the others for complete
    world.refresh("AAPL", history_days=DAYS)
    assert differences(world.snapshot(), truth_a_little_later) == {}


def test_runs_killed_at_random_moments_on_a_moving_clock_end_in_the_truth(
    world: FaultyWorld, postgres_url: str, migrated_template: str, market: Source
) -> None:
    chance = random.Random(8)
    for _ in range(6):
        process = start(world, "AAPL", "MSFT", history_days=DAYS)
        time.sleep(chance.uniform(0, 0.6))  # any moment will do: this does not wait for anything
        kill(world, process)
        assert_data_and_audit_rows_agree(world)
        world.now += A_LITTLE
    outcomes = world.refresh("AAPL", "MSFT", history_days=DAYS)
    assert not any(outcome.failed for outcome in outcomes.values())
    with new_world(postgres_url, migrated_template, market, world.now) as undisturbed:
        undisturbed.refresh("AAPL", "MSFT", history_days=DAYS)
        assert differences(world.snapshot(), undisturbed.snapshot()) == {}


def test_a_suspended_process_is_waited_for_like_a_slow_one(world: FaultyWorld, truth: Snapshot) -> None:
    """A run that hangs keeps its symbol; a run that waits for the symbol continues as soon as that one is gone."""
    with wire(world, "records_5m") as stopped:
        first = start(world, "AAPL", history_days=DAYS)
        until(stopped)
        os.kill(first.pid or 0, signal.SIGSTOP)
        second = start(world, "AAPL", history_days=DAYS)
        until(lambda: len([lock for lock in advisory_locks(world) if not lock["granted"]]) == 2)
        first.kill()
        first.join()
    second.join(60)
    assert second.exitcode == 0
    assert world.snapshot() == truth
    assert advisory_locks(world) == []


def test_two_processes_at_once_do_the_work_once(world: FaultyWorld, truth_of_three: Snapshot) -> None:
    alone = [start(world, *THREE, history_days=DAYS), start(world, *THREE, history_days=DAYS)]
    for process in alone:
        process.join(120)
        assert process.exitcode == 0
    assert world.snapshot() == truth_of_three
    targets = [seen.target for seen in world.vendor.seen]
    assert len(targets) == len(set(targets))  # nothing was requested twice
    written = world.query("select sum(rows_inserted)::int as n from market_data.ingest_log")
    assert written == world.query("select count(*)::int as n from market_data.bars")
    assert audit_rows(world) == 2 * len(THREE) * len(Timeframe)
    assert world.query("select * from market_data.ingest_log where status = 'failed'") == []
    assert world.query("select * from market_data.bar_revisions") == []


def test_a_vendor_that_dies_in_the_middle_of_a_page_leaves_nothing_of_the_window(
    world: FaultyWorld, truth: Snapshot, market: Source
) -> None:
    def die(exchange: Exchange) -> Answer:
        def answer(handler: Handler) -> None:
            send(200, exchange.body[:5000], {"Content-Length": str(len(exchange.body))})(handler)
            handler.close_connection = True
            world.vendor.__exit__(None, None, None)

        return answer

    world.vendor.inject(die, later_page)
    outcomes = world.refresh("AAPL", history_days=DAYS)
    assert {outcome.error_class for outcome in outcomes.values()} == {"VendorUnreachableError"}
    assert world.snapshot()["bars"] == []
    with FaultyVendor(market, world.clock) as world.vendor:
        world.refresh("AAPL", history_days=DAYS)
    assert world.snapshot() == truth


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedPostgres:
    return EmbeddedPostgres(tmp_path_factory.mktemp("own") / "postgres", durable=False)


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_a_database_server_that_goes_down_under_a_run_costs_the_run_and_nothing_else(
    own_server: EmbeddedPostgres, truth: Snapshot, market: Source, how: str
) -> None:
    own_server.ensure_running()
    url = own_server.owner_url
    world = FaultyWorld("http://127.0.0.1:9", url, NOON)
    try:
        with world.connect() as connection:
            connection.execute("drop schema if exists market_data cascade")
        migrate_database(url, SQL)
        with FaultyVendor(market, world.clock) as world.vendor:
            outcomes: dict[str, object] = {}
            run = Thread(target=lambda: outcomes.update(world.refresh("AAPL", "MSFT", history_days=DAYS)))
            # The connection that holds the wire goes down with the server.
            with suppress(psycopg.OperationalError), wire(world, "records_15m") as stopped:
                run.start()
                until(stopped)
                if how == "killed":
                    postmaster = int((own_server.data_dir / "postmaster.pid").read_text().split()[0])
                    os.kill(postmaster, signal.SIGKILL)
                    until(lambda: not Path(f"/proc/{postmaster}").exists())
                else:
                    own_server.stop()
            run.join()
            own_server.ensure_running()
            assert any(
                getattr(outcome, "error_class", "") == "DatabaseUnavailableError" for outcome in outcomes.values()
            )
            assert len(outcomes) == 2 * len(Timeframe)
            assert_data_and_audit_rows_agree(world)
            with world.connect() as connection:
                connection.execute("drop trigger if exists wire on market_data.records_15m")
            after = world.refresh("AAPL", history_days=DAYS)
            held = world.snapshot()
            assert {key: outcome.error for key, outcome in after.items() if outcome.failed} == {}
        assert {name: [row for row in rows if row[0] == "AAPL"] for name, rows in held.items()} == truth
    finally:
        own_server.stop()
