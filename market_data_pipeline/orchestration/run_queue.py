"""Dagster's run queue as `dagster.yaml` names it: emptied by one daemon at a time, whoever starts it.

Two daemons on one storage would evaluate every schedule and sensor twice and start runs twice; Dagster only warns. A
daemon is the only process that reads how often the queue is to be looked at, when it starts: it then takes a lock of
PostgreSQL and keeps it until its process ends. `dagster-daemon run`, `dagster dev` and `dg dev` are refused that way as
`market-data up` is. A daemon whose instance file names another coordinator takes no lock; `runtime.daemon_watch` finds
it by its heartbeats.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

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
