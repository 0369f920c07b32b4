"""What several hosts are configured with, and the launcher without a worker: the queue, Redis that is gone, S3."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
import yaml
from rich.console import Console

from market_data_pipeline.domain.errors import BrokerUnavailableError, ConfigurationError, PipelineError, UsageError
from market_data_pipeline.runtime.worker import check_worker, run_worker
from market_data_pipeline.settings import load_settings
from market_data_pipeline.store.connection import open_connection
from market_data_pipeline_tests.conftest import REPOSITORY
from market_data_pipeline_tests.orchestration.conftest import dagster_home as dagster_home
from market_data_pipeline_tests.orchestration.conftest import dagster_template as dagster_template
from market_data_pipeline_tests.orchestration.conftest import dagster_url as dagster_url

pytest.importorskip("dagster_celery", reason="this environment is older than requirements-dev.lock")
pytestmark = pytest.mark.dagster
FILE = REPOSITORY / "deploy" / "cluster" / "dagster.yaml"


@pytest.fixture
def instance(dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An instance as every host of a cluster has it; nothing listens where Redis should be."""
    monkeypatch.setenv("MARKET_DATA_BROKER_URL", "redis://:a-secret@127.0.0.1:1/0")
    (dagster_home / "dagster.yaml").write_text(FILE.read_text())
    with dg.DagsterInstance.get() as made:
        yield made


def run_in(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    from market_data_pipeline.orchestration.dagster_internals import load_location

    job = load_location().resolve_job_def("prune")
    run_id = instance.create_run_for_job(job).run_id
    event = {
        dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
        dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
    }[status]
    instance.report_dagster_event(dg.DagsterEvent(event.value, job.name), run_id=run_id)
    return run_id


def test_hosts_of_a_cluster_differ_from_one_machine_in_what_the_file_says_and_nothing_else() -> None:
    one = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    several = yaml.safe_load(FILE.read_text())
    assert several.pop("run_launcher")["class"] == "WorkerLauncher"
    assert one["concurrency"].pop("runs")  # the workers limit them
    for differing in (
        ("run_coordinator", "config", "max_user_code_failure_retries"),
        ("concurrency", "pools", "default_limit"),
        ("run_monitoring", "poll_interval_seconds"),
    ):
        for document in (one, several):
            *path, last = differing
            for key in path:
                document = document[key]
            assert document.pop(last)
    assert several == one


def test_as_many_runs_leave_the_queue_as_the_workers_carry_that_are_there(instance: dg.DagsterInstance) -> None:
    from market_data_pipeline.orchestration.worker_launcher import counted_worker, running_slots, this_host, workers

    url = instance.run_storage.postgres_url  # type: ignore[attr-defined]
    queue = instance.run_coordinator
    assert isinstance(queue, dg.QueuedRunCoordinator)
    assert running_slots(instance) == 0
    with counted_worker(url, 3), counted_worker(url, 4):
        assert running_slots(instance) == 7
        assert workers(url) == {this_host(): 7}
        assert queue.dequeue_interval_seconds == 1  # this process is now the daemon
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 7  # type: ignore[union-attr]
    assert running_slots(instance) == 0
    queue._held.close()  # type: ignore[attr-defined]


def test_a_load_is_cut_so_that_every_worker_has_as_much_to_do(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    from market_data_pipeline.orchestration.runs import submit_refresh
    from market_data_pipeline.orchestration.worker_launcher import counted_worker

    monkeypatch.setenv("DATABASE_URL", database_url)
    url = instance.run_storage.postgres_url  # type: ignore[attr-defined]
    instance.add_dynamic_partitions("critical_symbols", [f"S{number}" for number in range(40)])
    instance.add_dynamic_partitions("standard_symbols", [f"T{number}" for number in range(8)])
    with counted_worker(url, 3), counted_worker(url, 3):
        runs = [instance.get_run_by_id(run_id) for run_id in submit_refresh(instance)]
    sizes = [len(step["config"]["symbols"]) for run in runs if run for step in run.run_config["ops"].values()]
    assert sizes == [6, 7, 7, 6, 7, 7, 4, 4]


def test_what_a_worker_lacks_is_said_in_a_sentence(
    dagster_home: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    def refused() -> PipelineError:
        with patch.dict(os.environ), pytest.raises(PipelineError) as caught:  # it passes the settings on to Dagster
            run_worker(load_settings(), Console())
        return caught.value

    lacking = refused()
    assert isinstance(lacking, ConfigurationError)
    assert str(lacking).startswith("MARKET_DATA_BROKER_URL is not set: a worker takes its runs from")
    monkeypatch.setenv("MARKET_DATA_BROKER_URL", "redis://:a-secret@127.0.0.1:1/0")
    other = refused()
    assert isinstance(other, UsageError)
    assert "does not name WorkerLauncher. Set DAGSTER_HOME to the project's deploy/cluster" in str(other)
    (dagster_home / "dagster.yaml").write_text(FILE.read_text())
    unreachable = refused()
    assert isinstance(unreachable, BrokerUnavailableError)
    assert str(unreachable).startswith("Redis at 127.0.0.1:1 cannot be used")
    assert "a-secret" not in str(unreachable)


def test_a_worker_of_this_host_is_found_while_it_is_there(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    from market_data_pipeline.orchestration.worker_launcher import counted_worker, this_host

    monkeypatch.setenv("DATABASE_URL", database_url)
    settings = load_settings()
    with patch.dict(os.environ):
        with counted_worker(settings.dagster_postgres_url, 1):
            check_worker(settings)
        with pytest.raises(PipelineError, match=f"No worker of {this_host()} has been heard from lately."):
            check_worker(settings)


def test_a_run_that_cannot_be_handed_to_redis_goes_back_into_the_queue(instance: dg.DagsterInstance) -> None:
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._core.launcher import LaunchRunContext

    from market_data_pipeline.orchestration.dagster_internals import enqueue, load_location

    run_id = enqueue(instance, load_location().get_repository_def(), dg.RunRequest(job_name="prune"))
    run = instance.get_run_by_id(run_id)
    assert run is not None
    with pytest.raises(DagsterUserCodeUnreachableError, match="Redis") as failure:  # which Dagster's queue waits for
        instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    assert "a-secret" not in str(failure.value)


def test_a_run_that_is_terminated_is_canceling_until_its_worker_has_stopped_it(instance: dg.DagsterInstance) -> None:
    started = run_in(instance, dg.DagsterRunStatus.STARTED)
    assert instance.run_launcher.terminate(started)
    run = instance.get_run_by_id(started)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELING
    assert not instance.run_launcher.terminate(run_in(instance, dg.DagsterRunStatus.SUCCESS))


def test_the_server_gives_up_on_a_connection_of_the_storage_whose_host_is_gone(instance: dg.DagsterInstance) -> None:
    url = instance.run_storage.postgres_url  # type: ignore[attr-defined]
    wanted = {"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"}
    from market_data_pipeline.store.connection_settings import KEEPALIVES

    assert wanted <= KEEPALIVES.keys()
    with open_connection(url) as ours, instance.run_storage.connect() as dagsters:  # type: ignore[attr-defined]
        # On a socket of this machine they are 0 whatever is set; the others show that they were set.
        show = "select current_setting('client_connection_check_interval')"
        assert ours.execute(show).fetchone() == ("10s",)
        assert dagsters.exec_driver_sql(show).scalar_one() == "10s"


def test_the_bucket_that_the_file_shows_for_what_runs_print_is_a_valid_choice() -> None:
    from dagster._config import process_config

    block = "\n".join(re.findall(r"^# ((?:compute_logs:|  ).*)$", FILE.read_text(), re.MULTILINE))
    shown = yaml.safe_load(block)["compute_logs"]
    accepted = getattr(import_module(shown["module"]), shown["class"])
    assert accepted.__name__ == "S3ComputeLogManager"
    done = process_config(accepted.config_type(), shown["config"])
    assert done.success, done.errors
