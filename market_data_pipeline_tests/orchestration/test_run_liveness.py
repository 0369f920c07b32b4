"""Runs whose process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

import dagster as dg
import sqlalchemy as sa

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.orchestration.run_liveness import alive, fail_lost_runs


def started_run(instance: dg.DagsterInstance) -> str:
    run = instance.create_run_for_job(build_defs().resolve_job_def("critical_refresh"))
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "critical_refresh"), run_id=run.run_id
    )
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_that_works_is_left_alone(instance: dg.DagsterInstance, database: sa.Engine) -> None:
    run_id = started_run(instance)
    with alive(instance, database, run_id):
        assert fail_lost_runs(instance, database) == []
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_run_whose_process_died_is_marked_as_failed_and_leaves_its_pool(
    instance: dg.DagsterInstance, database: sa.Engine
) -> None:
    run_id = started_run(instance)
    slots = instance.event_log_storage
    slots.set_concurrency_slots("polygon", 3)
    slots.claim_concurrency_slot("polygon", run_id, "critical_series")
    assert slots.get_concurrency_info("polygon").active_slot_count == 1
    instance.add_run_tags(run_id, {".dagster/market_data_lock": "held"})  # what a killed process leaves behind
    assert fail_lost_runs(instance, database) == [run_id]
    assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE
    assert slots.get_concurrency_info("polygon").active_slot_count == 0
    assert fail_lost_runs(instance, database) == []


def test_a_run_whose_connection_is_ended_by_an_administrator_takes_its_lock_again_and_is_left_alone(
    instance: dg.DagsterInstance, database: sa.Engine
) -> None:
    run_id = started_run(instance)
    with alive(instance, database, run_id):
        for _ in range(3):
            (holder,) = until(lambda: holders(database))
            with database.connect() as connection:
                connection.execute(sa.text("reset role"))  # as the login, which may end its other connections
                connection.execute(sa.text("select pg_terminate_backend(:pid, 5000)"), {"pid": holder})
            assert fail_lost_runs(instance, database) == []
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED
        until(lambda: holders(database))
    assert holders(database) == []


def holders(database: sa.Engine) -> list[int]:
    with database.connect() as connection:
        return list(
            connection.execute(
                sa.text("""
                    select pid from pg_locks where locktype = 'advisory' and granted and database in
                    (select oid from pg_database where datname = current_database())
                """)
            ).scalars()
        )


def until(condition: Callable[[], list[int]]) -> list[int]:
    patience = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < patience, "waited for a minute"
        time.sleep(0.005)
    return found


def test_a_run_that_is_about_to_end_is_left_alone(instance: dg.DagsterInstance, database: sa.Engine) -> None:
    run_id = started_run(instance)
    with alive(instance, database, run_id):
        pass
    assert fail_lost_runs(instance, database) == []
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_run_that_has_not_begun_its_work_is_left_alone(instance: dg.DagsterInstance, database: sa.Engine) -> None:
    started_run(instance)
    assert fail_lost_runs(instance, database) == []


def test_a_run_that_was_just_created_has_time_to_reach_the_queue(
    instance: dg.DagsterInstance, database: sa.Engine
) -> None:
    instance.create_run_for_job(build_defs().resolve_job_def("critical_refresh"))
    assert fail_lost_runs(instance, database) == []
