"""`market-data worker`: the runs of one host among several, taken from Redis by Celery, each in a process of its own.

The daemon of another host gives them out (`orchestration.worker_launcher`). Celery's part is to fetch a message when
one of its threads is free; the thread waits for the run's process, which is forked from one that has imported what a
run needs, as the code server does. Another thread looks at the database every two seconds, so that runs stop when a
user terminates them and processes end whose runs were given up while this host could not be reached.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.errors import BrokerUnavailableError, ConfigurationError, PipelineError, UsageError
from market_data_pipeline.settings import process_environment

if TYPE_CHECKING:
    from types import ModuleType

    import dagster as dg
    from celery import Celery
    from rich.console import Console

    from market_data_pipeline.settings import Settings

log = logging.getLogger(__name__)

_INSTALL: Final = (
    "run `pip install 'market-data-pipeline[pipeline,cluster]'`, or `make install CLUSTER=1` in a checkout"
)
_LAUNCHER: Final = "WorkerLauncher"
_WATCH_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 5


def run_worker(settings: Settings, console: Console) -> int:
    """Carry runs until SIGTERM or Ctrl-C; then interrupt those that go on, which are retried elsewhere.

    Returns:
        0 when it was asked to end.

    Raises:
        UsageError, ConfigurationError: the settings do not describe a worker of a cluster.
        PipelineError: Redis or PostgreSQL cannot be reached.
    """
    worker_launcher = _prepared(settings)
    import dagster as dg
    from celery.platforms import SecurityWarning
    from celery.signals import worker_shutting_down

    from market_data_pipeline.orchestration.dagster_internals import warm_runs
    from market_data_pipeline.store.connection import open_connection

    open_connection(settings.dagster_postgres_url).close()  # Dagster would answer with a stack trace
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        launcher = instance.run_launcher
        if not isinstance(launcher, worker_launcher.WorkerLauncher):
            raise UsageError(
                f"The daemon gives no runs to workers: {settings.dagster_home}/dagster.yaml does not name "
                f"{_LAUNCHER}. Set DAGSTER_HOME to the project's deploy/cluster on every host."
            )
        app: Celery = launcher.celery
        _check_broker(app)
        carried = _Carried(instance, warm_runs())
        app.task(carried.carry, name="execute_job", ignore_result=True)
        _configure(app)
        worker_shutting_down.connect(lambda **_: carried.interrupt(), weak=False)
        stack.callback(carried.stop)
        threading.Thread(target=carried.watch, name="watch-runs", daemon=True).start()
        stack.enter_context(worker_launcher.counted_worker(settings.dagster_postgres_url, settings.worker_runs))
        runs = settings.worker_runs
        console.print(f"Worker    {socket.gethostname()} carries up to {runs} runs at once (process {os.getpid()})")
        # Celery warns root that messages could be programs; those that are accepted here are JSON.
        warnings.simplefilter("ignore", SecurityWarning)
        worker = app.Worker(
            pool="threads",
            concurrency=settings.worker_runs,
            hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
            loglevel="WARNING",
            without_mingle=True,
            without_gossip=True,
            quiet=True,
        )
        worker.start()
    return int(worker.exitcode or 0)


def check_worker(settings: Settings) -> None:
    """Return if a worker of this host has been heard from lately.

    Raises:
        PipelineError: none has, or Dagster's storage cannot be reached.
    """
    worker_launcher = _prepared(settings)
    if worker_launcher.this_host() not in worker_launcher.workers(settings.dagster_postgres_url):
        raise PipelineError(f"No worker of {worker_launcher.this_host()} has been heard from lately.")


def _prepared(settings: Settings) -> ModuleType:
    """Return the launcher's module, once the environment is that of a process of Dagster.

    Raises:
        ConfigurationError, UsageError: a setting or a package is missing.
    """
    if settings.broker_url is None:
        raise ConfigurationError(
            "MARKET_DATA_BROKER_URL is not set: a worker takes its runs from the Redis server that it names, for "
            "example MARKET_DATA_BROKER_URL=redis://:password@broker:6379/0. On one machine `market-data up` runs all."
        )
    os.environ.update(process_environment(settings))
    try:
        return import_module("market_data_pipeline.orchestration.worker_launcher")
    except ModuleNotFoundError as error:
        raise UsageError(f"A worker needs {error.name}: {_INSTALL}.") from None


def _check_broker(app: Celery) -> None:
    """Connect to Redis once.

    Raises:
        BrokerUnavailableError: that cannot be done; the message shows no password.
    """
    with app.connection_for_read(connect_timeout=_CONNECT_SECONDS) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=_CONNECT_SECONDS)
            connection.default_channel.client.ping()
        except Exception as error:  # noqa: BLE001 - whatever its client raises, there is no broker
            where = f"{connection.hostname}:{connection.port}"
            raise BrokerUnavailableError(
                f"Redis at {where} cannot be used ({type(error).__name__}): is it running, and are the address and the "
                "password in MARKET_DATA_BROKER_URL right?"
            ) from None


def _configure(app: Celery) -> None:
    app.conf.update(
        # A run is fetched when a thread is free, not before: another host might be free.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # A message is done when the run begins: Dagster, not Celery, retries what is lost.
        task_acks_late=False,
        # Whoever may write to Redis can start runs that the database knows, and nothing else.
        worker_enable_remote_control=False,
        accept_content=["json"],
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )


class _Carried:
    """The runs of this host."""

    def __init__(self, instance: dg.DagsterInstance, processes: Any) -> None:
        self._instance = instance
        self._processes = processes
        self._stopped = threading.Event()
        self._interrupted: set[str] = set()
        self._running: set[str] = set()
        self._ending = False

    def carry(self, execute_job_args_packed: dict[str, Any]) -> None:
        """Execute a run in a process of its own and wait for its end; the task that the launcher sends."""
        import dagster as dg

        from market_data_pipeline.orchestration.dagster_internals import execute_run, launched_run
        from market_data_pipeline.orchestration.run_liveness import fail_if_lost

        run_id = launched_run(execute_job_args_packed)
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return
        if run.status is dg.DagsterRunStatus.CANCELING:
            self._instance.report_run_canceled(run, "It was terminated before a worker took it.")
            return
        if run.status is not dg.DagsterRunStatus.STARTING:  # another worker has it: Redis delivers twice at times
            return
        process = self._processes.Process(target=execute_run, args=(run_id,), name=f"run-{run_id[:8]}")
        self._running.add(run_id)
        try:
            process.start()
            process.join()
        finally:
            self._running.discard(run_id)
        with suppress(PipelineError):
            fail_if_lost(self._instance, run_id)  # its process was killed; the daemon would notice a minute later

    def watch(self) -> None:
        """Until `stop`: interrupt runs that are to stop, and end the processes of runs that were given up."""
        from dagster_postgres.utils import DagsterPostgresException
        from sqlalchemy.exc import SQLAlchemyError

        from market_data_pipeline.orchestration.run_liveness import ENDED_SINCE, end_leftovers, interrupt_cancelled

        while not self._stopped.wait(_WATCH_SECONDS):
            try:
                interrupt_cancelled(self._instance, self._interrupted)
                end_leftovers(self._instance, ENDED_SINCE)
            except (SQLAlchemyError, DagsterPostgresException, PipelineError) as error:
                log.warning("The database cannot be asked which runs are to stop: %s", type(error).__name__)

    def interrupt(self) -> None:
        """Interrupt all runs, because this worker ends; Dagster retries them."""
        from market_data_pipeline.orchestration.run_liveness import interrupt

        for run_id in tuple(self._running):
            with suppress(Exception):
                if (run := self._instance.get_run_by_id(run_id)) is not None:
                    interrupt(run)

    def stop(self) -> None:
        """End `watch`."""
        self._stopped.set()
