"""Runs on several hosts: dagster-celery's launcher, as `deploy/cluster/dagster.yaml` names it.

The daemon puts a run into Redis, a worker of any host (`runtime.worker`) takes it. Upstream revokes a run's task where
a user terminates it, which ends the process before it can say so, and asks Celery's result backend whether it lives,
which cannot know. Here both are in the database, as for runs of one machine: a run that is to stop is CANCELING there,
which its worker sees, and a run lives as long as it holds its lock (`run_liveness`). Celery keeps no results.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from dagster_celery.launcher import CeleryRunLauncher
from kombu.exceptions import OperationalError

from market_data_pipeline.orchestration.dagster_internals import cannot_launch_yet, worker_health
from market_data_pipeline.orchestration.run_liveness import fail_if_lost, storage_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from market_data_pipeline.orchestration.dagster_internals import CheckRunHealthResult

_SPACE: Final = "market_data.worker"  # of the locks by which workers are known
_NAME: Final = "market-data-worker"  # what the lock's connection is called; the host and its runs follow
_LONGEST_HOST: Final = 30  # characters; PostgreSQL cuts a connection's name at 63 bytes
_SILENT_SECONDS: Final = 45.0  # a worker says something every ten seconds
_LOOK_SECONDS: Final = 5.0  # between two looks at the workers; the queue is read every second

# A peer that is gone is noticed within half a minute, by the daemon and by workers that wait for runs.
TRANSPORT: Final[Mapping[str, Any]] = {
    "socket_connect_timeout": 5,
    "socket_timeout": 15,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "max_retries": 1,  # of the daemon's message: the queue itself tries again
}


class WorkerLauncher(CeleryRunLauncher):
    """Puts runs where workers take them; its configuration is upstream's."""

    def __init__(self, **given: Any) -> None:
        given["config_source"] = {"broker_transport_options": dict(TRANSPORT), **(given.get("config_source") or {})}
        super().__init__(**{**given, "backend": "disabled://"})
        self._slots: tuple[float, int] = (0.0, 0)

    def launch_run(self, context: Any) -> None:
        """Put the run into Redis.

        Raises:
            DagsterUserCodeUnreachableError: Redis cannot be reached; Dagster's queue takes the run back.
        """
        try:
            super().launch_run(context)
        except OperationalError:
            raise cannot_launch_yet(
                "Redis (MARKET_DATA_BROKER_URL) cannot be reached, so no worker can be given the run."
            ) from None

    def terminate(self, run_id: str) -> bool:
        """Request that a run stop: its worker interrupts it, and it ends as CANCELED."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return whether the run's process lives; one that is lost is failed, and its slots are free."""
        return worker_health(is_lost=fail_if_lost(self._instance, run.run_id))

    @property
    def supports_resume_run(self) -> bool:
        """Return False: a lost run is retried as a new one, which fetches only what is missing."""
        return False

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Return what the event of a failure adds: nothing."""
        return None

    def slots(self) -> int:
        """Return how many runs the workers carry that are there now, as they were seen at most five seconds ago."""
        seen, slots = self._slots
        if time.monotonic() - seen > _LOOK_SECONDS:
            slots = running_slots(self._instance)
            self._slots = (time.monotonic(), slots)
        return slots


def running_slots(instance: dg.DagsterInstance) -> int:
    """Return how many runs all workers carry together that have been heard from lately.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: Dagster's storage cannot be reached.
    """
    url = storage_url(instance)
    return sum(workers(url).values()) if url else 0


def workers(url: str) -> dict[str, int]:
    """Return the hosts whose workers have been heard from lately, by name, with how many runs each carries at once.

    Args:
        url: of Dagster's storage.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: it cannot be reached.
    """
    from market_data_pipeline.store.connection import open_connection
    from market_data_pipeline.store.held_lock import members

    with open_connection(url, autocommit=True) as connection:
        found = members(connection, _SPACE)
    counted: dict[str, int] = {}
    for one in found:
        host, _, runs = one.application.removeprefix(_NAME).strip().rpartition(" ")
        if (one.silent_for or 0.0) < _SILENT_SECONDS and runs.isdecimal():
            counted[host] = counted.get(host, 0) + int(runs)
    return counted


def this_host() -> str:
    """Return what this host is called among the workers."""
    return socket.gethostname()[:_LONGEST_HOST]


@contextmanager
def counted_worker(url: str, runs: int) -> Iterator[None]:
    """Let the daemon know for the length of the block that a worker here carries so many runs.

    Args:
        url: of Dagster's storage.
        runs: how many at once.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: it cannot be reached.
    """
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.held_lock import held_lock

    host = this_host()
    lent = engine(url, application_name=f"{_NAME} {host} {runs}", pool_size=1)
    try:
        with held_lock(lent, _SPACE, f"{host} {os.getpid()} {time.time_ns()}"):
            yield
    finally:
        lent.dispose()
