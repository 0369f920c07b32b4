"""How many refreshes the real daemon lets run at once, which comes first, and what a killed one leaves behind.

The tests build on one another. The vendor holds back its answers about a symbol until a test lets them go, so that runs
overlap for as long as the test needs.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from datetime import datetime

import dagster as dg
import psutil
import pytest

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.orchestration.dagster_internals import enqueue, load_location
from market_data_pipeline.orchestration.run_liveness import RunProcess
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import NOON, Project
from market_data_pipeline_tests.end_to_end.unattended import hasten, home, unattended
from market_data_pipeline_tests.ingest.faults.vendor import FaultyVendor
from market_data_pipeline_tests.polygon.faulty_server import Answer, Seen
from market_data_pipeline_tests.waiting import until

UNIVERSE = "tiers:\n  critical: [AAPL]\n  standard: [KO]\n  low_priority: [XOM, CVX, GE, F, PG]\n"


class HoldingVendor(FaultyVendor):
    """Answers requests for a symbol's bars only once the symbol has been let go."""

    def __init__(self) -> None:
        super().__init__(open_source(None), lambda: datetime.fromisoformat(NOON))
        self._free: set[str] = set()
        self._changed = threading.Condition()

    def let_go(self, *symbols: str) -> None:
        """Answer requests for these from now on."""
        with self._changed:
            self._free.update(symbols)
            self._changed.notify_all()

    def next_answer(self, seen: Seen) -> Answer:
        if "/range/" in seen.target:
            symbol = seen.target.split("/")[4]
            with self._changed:
                self._changed.wait_for(lambda: symbol in self._free or self.released.is_set())
        return super().next_answer(seen)


@pytest.fixture(scope="module")
def vendor() -> Iterator[HoldingVendor]:
    with HoldingVendor() as made:
        yield made


@pytest.fixture(scope="module")
def project(make_project: MakeProject, vendor: HoldingVendor) -> Project:
    made = make_project(
        universe=UNIVERSE, POLYGON_BASE_URL=vendor.url, POLYGON_API_KEY=SANDBOX_KEY, POLYGON_PLAN="advanced"
    )
    hasten(made)
    return made


@pytest.fixture(scope="module")
def instance(project: Project) -> Iterator[dg.DagsterInstance]:
    with unattended(project) as made:
        yield made


def refresh(instance: dg.DagsterInstance, *symbols: str) -> dict[str, str]:
    """Queue a refresh of each symbol, in this order; return their run ids by symbol."""
    runs = {symbol: submit_refresh(instance, symbols=[symbol], timeframes=[Timeframe.M5]) for symbol in symbols}
    return {symbol: run_id for symbol, [run_id] in runs.items()}


def waiting(instance: dg.DagsterInstance, runs: dict[str, str]) -> set[str]:
    queued = instance.get_runs(dg.RunsFilter(run_ids=list(runs.values()), statuses=[dg.DagsterRunStatus.QUEUED]))
    return {symbol for symbol, run_id in runs.items() if run_id in {run.run_id for run in queued}}


def busy(instance: dg.DagsterInstance) -> int:
    return instance.event_log_storage.get_concurrency_info("polygon").active_slot_count


def process_of(instance: dg.DagsterInstance, run_id: str) -> psutil.Process:
    """Return the process of a run, as Dagster recorded it."""
    noted = [
        pid.value
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        if (pid := entry.get_dagster_event().engine_event_data.metadata.get("pid"))
    ]
    return psutil.Process(int(str(noted[0])))


def most_at_once(instance: dg.DagsterInstance, runs: dict[str, str]) -> int:
    """Wait until the runs have succeeded, and return the most of their steps that ran at once, by Dagster's record."""
    until(lambda: all(instance.get_run_by_id(run).is_finished for run in runs.values()))  # type: ignore[union-attr]
    assert all(instance.get_run_by_id(run).is_success for run in runs.values())  # type: ignore[union-attr]
    moments = []
    for run in runs.values():
        for step in instance.get_run_step_stats(run):
            assert step.start_time
            assert step.end_time
            moments += [(step.start_time, 1), (step.end_time, -1)]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def test_three_run_at_once_and_the_next_free_slot_is_for_the_critical_tier(
    instance: dg.DagsterInstance, vendor: HoldingVendor
) -> None:
    first = refresh(instance, "XOM", "CVX", "GE")
    until(lambda: busy(instance) == 3)
    behind = refresh(instance, "F", "KO", "AAPL")
    assert waiting(instance, behind) == {"F", "KO", "AAPL"}

    vendor.let_go("XOM")
    until(lambda: len(waiting(instance, behind)) < 3)
    assert waiting(instance, behind) == {"F", "KO"}

    until(lambda: busy(instance) == 3)
    vendor.let_go("AAPL")
    until(lambda: len(waiting(instance, behind)) < 2)
    assert waiting(instance, behind) == {"F"}

    vendor.let_go("CVX", "GE", "KO", "F")
    assert most_at_once(instance, first | behind) == 3


def test_a_limit_set_by_the_command_holds_for_the_runs_that_follow(
    instance: dg.DagsterInstance, project: Project
) -> None:
    done = project.run("dagster", "instance", "concurrency", "set", "polygon", "1", **home(project))
    assert done.code == 0, done.out + done.err
    assert most_at_once(instance, refresh(instance, "XOM", "KO", "AAPL")) == 1


def test_a_killed_run_frees_its_slot_for_the_next_one_and_is_retried(
    instance: dg.DagsterInstance, vendor: HoldingVendor
) -> None:
    instance.event_log_storage.set_concurrency_slots("polygon", 1)
    [killed] = refresh(instance, "PG").values()
    until(lambda: busy(instance) == 1)
    next_one = refresh(instance, "AAPL")
    assert waiting(instance, next_one) == {"AAPL"}

    process_of(instance, killed).send_signal(signal.SIGKILL)
    assert most_at_once(instance, next_one) == 1
    assert instance.get_run_by_id(killed).status is dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]

    vendor.let_go("PG")
    again = dg.RunsFilter(tags={"dagster/parent_run_id": killed})
    until(lambda: [run.is_success for run in instance.get_runs(again)] == [True])


def killed(instance: dg.DagsterInstance, job: str) -> str | None:
    """Kill a run of a job while it works, and return its id; None when it was done by then."""
    run_id = enqueue(instance, load_location().get_repository_def(), dg.RunRequest(job_name=job))

    def run() -> dg.DagsterRun:
        found = instance.get_run_by_id(run_id)
        assert found is not None
        return found

    until(lambda: RunProcess.of_run(run()), every=0.01)
    if (process := RunProcess.of_run(run())) and (running := process.find()):
        running.kill()
    until(lambda: run().is_finished)
    return run_id if run().status is dg.DagsterRunStatus.FAILURE else None


@pytest.mark.parametrize("job", ["prune", "reconcile", "quality"])
def test_a_killed_run_of_every_other_job_is_retried_to_its_end(instance: dg.DagsterInstance, job: str) -> None:
    run_id = next(filter(None, (killed(instance, job) for _ in range(10))))
    again = dg.RunsFilter(tags={"dagster/parent_run_id": run_id})
    until(lambda: [run.is_success for run in instance.get_runs(again)] == [True])
