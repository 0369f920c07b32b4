"""Dagster's run queue as `dagster.yaml` names it: emptied by one daemon at a time, whoever starts it.

Two daemons on one storage would evaluate every schedule and sensor twice and start runs twice; Dagster only warns. A
daemon is the only process that reads how often the queue is to be looked at, when it starts: it then takes a lock of
PostgreSQL and keeps it until its process ends. `dagster-daemon run`, `dagster dev` and `dg dev` are refused that way as
`market-data up` is. A daemon whose instance file names another coordinator takes no lock; `runtime.daemon_watch` finds
it by its heartbeats.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import dagster as dg

from market_data_pipeline.orchestration.run_liveness import storage_url

if TYPE_CHECKING:
    from market_data_pipeline.store.held_lock import Holder

_SPACE: Final = "market_data.daemon"
_KEY: Final = "runs and ticks"
_NAME: Final = "dagster-daemon"  # what the connection's name begins with; host and process follow
_LONGEST_HOST: Final = 40  # characters; PostgreSQL cuts a connection's name at 63 bytes
_ATTEMPTS: Final = 1  # five seconds; a server notices within milliseconds that a killed process of its machine is gone


class ServingDaemon(NamedTuple):
    """The daemon that serves a storage: its host, as it calls itself, and its process there."""

    host: str
    pid: int

    def __str__(self) -> str:
        here = self.host == _host()
        return f"process {self.pid}" + (" on this machine" if here else f" on {self.host}")


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


def serving_daemon(url: str) -> ServingDaemon | None:
    """Return the daemon that serves the storage at `url`; None when there is none, or one that takes no lock.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: it cannot be reached.
    """
    from market_data_pipeline.store.connection import open_connection
    from market_data_pipeline.store.held_lock import holders

    with open_connection(url, autocommit=True) as connection:
        holder = holders(connection, _SPACE, [_KEY]).get(_KEY)
    return _called(holder) if holder is not None else None


def this_machines(pid: int) -> ServingDaemon:
    """Return how the daemon with this process calls itself."""
    return ServingDaemon(_host(), pid)


def _serve_alone(instance: dg.DagsterInstance) -> ExitStack:
    """Return what holds the lock of the instance's daemon.

    Raises:
        ClickException: another daemon holds it; Dagster's commands print it as one sentence.
    """
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.held_lock import LockIsHeldError, held_lock

    stack = ExitStack()
    if url := storage_url(instance):
        lent = engine(url, application_name=f"{_NAME} {_host()} {os.getpid()}", pool_size=1)
        stack.callback(lent.dispose)
        try:
            stack.enter_context(held_lock(lent, _SPACE, _KEY, attempts=_ATTEMPTS))
        except LockIsHeldError:
            other = serving_daemon(url)
            raise click.ClickException(second_daemon(str(other) if other else "another process")) from None
    return stack


def second_daemon(which: str) -> str:
    """Return the sentence that refuses a second daemon."""
    return (
        f"A Dagster daemon, {which}, already serves this project's Dagster storage, and a second one would evaluate "
        "and start everything twice: use that one, or stop it first (`market-data down` if `market-data up` or "
        "`backfill` started it), or name another database in DAGSTER_POSTGRES_URL."
    )


def _host() -> str:
    return socket.gethostname()[:_LONGEST_HOST]


def _called(holder: Holder) -> ServingDaemon:
    name, _, pid = holder.application.rpartition(" ")
    return ServingDaemon(name.removeprefix(_NAME).strip() or holder.address, int(pid) if pid.isdecimal() else 0)
