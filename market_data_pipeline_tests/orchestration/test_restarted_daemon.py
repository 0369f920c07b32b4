"""A daemon that is killed in the middle of a tick, and its successor: no tick is lost, and nothing is queued twice.

The processes run Dagster's scheduler as its daemon does, up to an instant that is given instead of the clock's, and are
killed where Dagster lets its own tests kill them.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.tags import SCHEDULED_EXECUTION_TIME_TAG
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from market_data_pipeline.settings.project import LOCATION
from market_data_pipeline_tests.orchestration.conftest import UNIVERSE

SCHEDULE = "critical_schedule"


def at(minute: int) -> datetime:
    """Return an instant of an hour in which no other schedule is due; of yesterday, for old ticks are removed."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    return yesterday.replace(hour=18, minute=minute, second=0, microsecond=0)


def evaluate(now: datetime, killed_at: str | None = None) -> None:
    """Evaluate all ticks that are due, in this process; it is killed where Dagster's scheduler has come so far."""
    target = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=LOCATION)))
    flags = {SCHEDULE: {killed_at: signal.SIGKILL}} if killed_at else None
    with dg.DagsterInstance.get() as instance, create_test_daemon_workspace_context(target, instance) as workspace:
        failed = [
            each
            for each in launch_scheduled_runs(workspace, logging.getLogger(), now, {}, debug_crash_flags=flags)  # type: ignore[arg-type]
            if each
        ]
    assert not failed


def test_a_daemon_killed_during_a_tick_and_restarted_loses_no_tick_and_queues_no_run_twice(
    registered: dg.DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("MARKET_DATA_SHARD_SYMBOLS", "1")  # a tick queues as many runs as there are symbols
    evaluate(at(7))
    spawn = multiprocessing.get_context("spawn")
    # The first is killed before it has queued anything, the second when a run was created that it did not queue.
    for minute, place, created in ((16, "TICK_CREATED", 0), (17, "RUN_CREATED", 1)):
        daemon = spawn.Process(target=evaluate, args=(at(minute), place))
        daemon.start()
        daemon.join()
        assert daemon.exitcode == -signal.SIGKILL
        assert registered.get_runs_count() == created
    evaluate(at(18))
    runs = registered.get_runs()
    assert {run.status for run in runs} == {dg.DagsterRunStatus.QUEUED}
    assert sorted(run.tags["market_data/shard"].split()[0] for run in runs) == sorted(next(iter(UNIVERSE.values())))
    assert {run.tags[SCHEDULED_EXECUTION_TIME_TAG] for run in runs} == {at(15).isoformat()}
    assert ticks(registered) == [(at(15), TickStatus.SUCCESS)]


def test_of_the_ticks_that_a_daemon_missed_the_last_one_is_evaluated_which_refreshes_all(
    registered: dg.DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    evaluate(at(7))
    evaluate(at(47))
    (run,) = registered.get_runs()
    assert run.tags["market_data/shard"] == "AAPL to NVDA"
    assert ticks(registered) == [(at(45), TickStatus.SUCCESS)]


def ticks(instance: dg.DagsterInstance) -> list[tuple[datetime, TickStatus]]:
    (state,) = (each for each in instance.all_instigator_state() if each.instigator_name == SCHEDULE)
    found = instance.get_ticks(state.instigator_origin_id, state.selector_id)
    return [(datetime.fromtimestamp(each.timestamp, UTC), each.status) for each in found]
