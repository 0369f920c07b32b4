"""Dagster's run queue as `dagster.yaml` names it: emptied by one daemon at a time, and no faster than runs can start.

Two daemons on one storage would evaluate every schedule and sensor twice and start runs twice; Dagster only warns. A
daemon is the only process that reads how often the queue is to be looked at, when it starts: it then takes a lock of
PostgreSQL and keeps it until its process ends. `dagster-daemon run`, `dagster dev` and `dg dev` are refused that way as
`market-data up` is. A daemon whose instance file names another coordinator takes no lock; `runtime.daemon_watch` finds
it by its heartbeats.

Where workers of several hosts carry the runs, as many leave the queue as those carry that are there: a run that waited
elsewhere could be overtaken by none, and would be failed for not starting.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import click
import dagster as dg

from market_data_pipeline.orchestration.run_liveness import storage_url
from market_data_pipeline.orchestration.serving_daemon import (
    LOCK_KEY,
    LOCK_SPACE,
    connection_name,
    second_daemon,
    serving_daemon,
)

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.dagster_internals import RunQueueConfig

_ATTEMPTS: Final = 1  # five seconds; a server notices within milliseconds that a killed process of its machine is gone


class RunQueue(dg.QueuedRunCoordinator):
    """Dagster's queue, which only one daemon empties."""

    _held: ExitStack | None = None

    @property
    def dequeue_interval_seconds(self) -> int:
        """Return the configured seconds, once this process is the only daemon of its storage.

        Raises:
            ClickException: another daemon serves it.
        """
        if self._held is None:
            self._held = _serve_alone(self._instance)
        return super().dequeue_interval_seconds

    def get_run_queue_config(self) -> RunQueueConfig:
        """Return Dagster's configuration; in a daemon with workers, with as many concurrent runs as those carry."""
        configured = super().get_run_queue_config()
        slots = getattr(self._instance.run_launcher, "slots", None) if self._held is not None else None
        return configured if slots is None else configured._replace(max_concurrent_runs=slots())


def _serve_alone(instance: dg.DagsterInstance) -> ExitStack:
    """Return what holds the lock of the instance's daemon.

    Raises:
        ClickException: another daemon holds it; Dagster's commands print it as one sentence.
    """
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.held_lock import LockIsHeldError, held_lock

    stack = ExitStack()
    if url := storage_url(instance):
        lent = engine(url, application_name=connection_name(), pool_size=1)
        stack.callback(lent.dispose)
        try:
            stack.enter_context(held_lock(lent, LOCK_SPACE, LOCK_KEY, attempts=_ATTEMPTS))
        except LockIsHeldError:
            other = serving_daemon(url)
            raise click.ClickException(second_daemon(str(other) if other else "another process")) from None
    return stack
