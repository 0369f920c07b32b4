"""Runs whose process is gone, stopped, or never began: real processes, killed at many moments."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration import run_liveness
from market_data_pipeline.orchestration.dagster_internals import load_location
from market_data_pipeline.orchestration.run_liveness import RunProcess, fail_lost_runs, register
from market_data_pipeline.orchestration.runs import unfinished_tier_run
from market_data_pipeline.process_identity import is_alive
from market_data_pipeline.store import held_lock
from market_data_pipeline_tests.orchestration.conftest import StandIn
from market_data_pipeline_tests.server_clients import clients, end_clients
from market_data_pipeline_tests.waiting import PATIENCE, until

CHILDREN = multiprocessing.get_context("forkserver")
PULSE = 0.02  # seconds between two signs of life of the runs below


def started_run(instance: dg.DagsterInstance, job: str = "critical_refresh") -> str:
    run = instance.create_run_for_job(load_location().resolve_job_def(job))
    instance.report_dagster_event(dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job), run_id=run.run_id)
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def environment() -> dict[str, str]:
    """Return what a forked child needs of this test's environment; it inherits that of the first test."""
    return {name: os.environ[name] for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL", "PGTZ")}


def work(variables: dict[str, str], run_id: str, at_work: Any) -> None:
    """What a run's process does, without the work."""
    os.environ.update(variables)
    held_lock._HEARTBEAT_SECONDS = PULSE  # type: ignore[misc]
    with dg.DagsterInstance.get() as instance:
        lock = register(instance, run_id)
        at_work.set()
        signal.pause()
        lock.close()


@contextmanager
def working(run_id: str) -> Iterator[BaseProcess]:
    """Yield a process that works on a run."""
    CHILDREN.set_forkserver_preload(["market_data_pipeline.runtime.preloaded"])
    at_work = CHILDREN.Event()
    process = CHILDREN.Process(target=work, args=(environment(), run_id, at_work), daemon=True)
    process.start()
    assert at_work.wait(PATIENCE)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_a_run_that_works_is_left_alone(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_liveness, "_SUSPECT_FOR", timedelta(0))
    run_id = started_run(instance)
    with working(run_id):
        assert [fail_lost_runs(instance) for _ in range(3)] == [[], [], []]
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_run_whose_process_died_is_marked_as_failed_at_once_and_leaves_its_pool(instance: dg.DagsterInstance) -> None:
    run_id = started_run(instance)
    slots = instance.event_log_storage
    slots.set_concurrency_slots("polygon", 3)
    slots.claim_concurrency_slot("polygon", run_id, "critical_series")
    with working(run_id) as process:
        process.kill()
        process.join()
        assert fail_lost_runs(instance) == [run_id]
    assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE
    assert slots.get_concurrency_info("polygon").active_slot_count == 0
    assert fail_lost_runs(instance) == []


def test_a_run_whose_process_is_stopped_is_failed_and_its_process_ended(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_liveness, "_SILENT_SECONDS", 50 * PULSE)
    monkeypatch.setattr(run_liveness, "_SUSPECT_FOR", timedelta(seconds=PULSE))
    run_id = started_run(instance)
    with working(run_id) as process:
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        lost: list[str] = []
        looks = 0

        def failed() -> bool:
            nonlocal looks
            looks += 1
            lost.extend(fail_lost_runs(instance))
            return bool(lost)

        until(failed)
        assert looks > 1, "one look cannot tell a stopped process from one that has just woken up"
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE


def test_a_run_that_lost_its_connection_takes_its_lock_again(
    instance: dg.DagsterInstance, dagster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_liveness, "_SUSPECT_FOR", timedelta(0))
    run_id = started_run(instance)
    with working(run_id):
        # as idle_session_timeout, or a restart of the server, would
        assert end_clients(dagster_url, named="market-data-run")
        assert fail_lost_runs(instance) == []
        until(lambda: clients(dagster_url, named="market-data-run"))
        assert fail_lost_runs(instance) == []
    assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_the_process_of_a_run_that_was_ended_otherwise_is_ended_too(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_liveness, "ENDED_SINCE", timedelta(0))
    run_id = started_run(instance)
    with working(run_id) as process:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_failed(run, "Exceeded maximum runtime of 7200 seconds.")
        assert fail_lost_runs(instance) == []
        process.join(30)
        assert process.exitcode == -signal.SIGKILL


def test_a_process_that_is_not_only_for_its_run_is_never_ended(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_liveness, "_SUSPECT_FOR", timedelta(0))
    run_id = started_run(instance)
    lock = register(instance, run_id)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    process = RunProcess.of_run(run)
    assert process is not None
    assert (process.pid, process.own) == (os.getpid(), False)
    assert [fail_lost_runs(instance) for _ in range(2)] == [[], []]
    lock.close()  # the notebook goes on, the run does not
    until(lambda: fail_lost_runs(instance) == [run_id])
    assert is_alive(psutil.Process())


def test_a_run_on_another_host_is_judged_by_its_lock(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = started_run(instance)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(run_liveness, "pid_namespace", lambda: "another machine")
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere")
        lock = register(instance, run_id)
    assert fail_lost_runs(instance, starting=True) == []
    lock.close()
    monkeypatch.setattr(run_liveness, "_SUSPECT_FOR", timedelta(0))
    until(lambda: fail_lost_runs(instance) == [run_id])


def test_a_run_has_time_to_note_its_process_and_to_reach_the_queue(instance: dg.DagsterInstance) -> None:
    started_run(instance)
    instance.create_run_for_job(load_location().resolve_job_def("critical_refresh"))
    assert fail_lost_runs(instance) == []


def test_what_a_killed_service_left_is_lost_when_the_next_one_starts(instance: dg.DagsterInstance) -> None:
    job = load_location().resolve_job_def("quality")
    starting, canceling = (instance.create_run_for_job(job) for _ in range(2))
    for run, kind in ((starting, dg.DagsterEventType.RUN_STARTING), (canceling, dg.DagsterEventType.RUN_CANCELING)):
        instance.report_dagster_event(dg.DagsterEvent(kind.value, job.name), run_id=run.run_id)
    started = started_run(instance)
    assert set(fail_lost_runs(instance, starting=True)) == {starting.run_id, canceling.run_id, started}
    assert status(instance, started) is status(instance, starting.run_id) is dg.DagsterRunStatus.FAILURE
    assert status(instance, canceling.run_id) is dg.DagsterRunStatus.CANCELED


def execute(variables: dict[str, str], url: str, run_id: str, moment: str) -> None:
    """Execute a run as the code server's child does, and die just before its first event of the type `moment`."""
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.execution.api import execute_run

    os.environ.update(variables)
    os.chdir(variables["DAGSTER_HOME"])
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        store = instance.event_log_storage.store_event

        def store_until(event: dg.EventLogEntry) -> None:
            if event.dagster_event_type and event.dagster_event_type.value == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            store(event)

        instance.event_log_storage.store_event = store_until  # type: ignore[method-assign]
        definitions = build_defs(resource_overrides={"pipeline": StandIn(url=url)})
        execute_run(InMemoryJob(definitions.resolve_job_def(run.job_name)), run, instance)


@pytest.mark.parametrize(
    ("job", "moment"),
    [
        ("critical_refresh", "PIPELINE_START"),  # its process never took its lock
        ("critical_refresh", "ENGINE_EVENT"),  # between its start and its lock
        ("critical_refresh", "STEP_START"),
        ("critical_refresh", "PIPELINE_SUCCESS"),  # the work is done, the end is not stored
        ("quality", "STEP_START"),
        ("reconcile", "STEP_START"),
        ("prune", "STEP_SUCCESS"),
    ],
)
def test_a_run_killed_at_any_moment_never_blocks_the_next_one(
    registered: dg.DagsterInstance,
    database: sa.Engine,
    database_url: str,
    job: str,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_liveness, "_REGISTERED_WITHIN", timedelta(0))
    CHILDREN.set_forkserver_preload(["market_data_pipeline.runtime.preloaded"])
    run = registered.create_run_for_job(load_location().resolve_job_def(job))
    launched = dg.DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, job)
    registered.report_dagster_event(launched, run_id=run.run_id)
    process = CHILDREN.Process(target=execute, args=(environment(), database_url, run.run_id, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if moment == "PIPELINE_START":  # while the service runs on, Dagster's start timeout (3 minutes) is for these
        assert status(registered, run.run_id) is dg.DagsterRunStatus.STARTING
        assert fail_lost_runs(registered, starting=True) == [run.run_id]
    else:
        assert status(registered, run.run_id) is dg.DagsterRunStatus.STARTED
        assert fail_lost_runs(registered) == [run.run_id]
    assert status(registered, run.run_id) is dg.DagsterRunStatus.FAILURE
    assert unfinished_tier_run(registered, Tier.CRITICAL) is None
