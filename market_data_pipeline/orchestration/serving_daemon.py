"""Which daemon serves a Dagster storage, according to the lock that it holds there (orchestration.run_queue).

Importing this does not import Dagster, which takes a second.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from market_data_pipeline.store.held_lock import Holder

LOCK_SPACE: Final = "market_data.daemon"
LOCK_KEY: Final = "runs and ticks"
_NAME: Final = "dagster-daemon"  # what the connection's name begins with; host and process follow
_LONGEST_HOST: Final = 40  # characters; PostgreSQL cuts a connection's name at 63 bytes


class ServingDaemon(NamedTuple):
    """The daemon that serves a storage: its host, as it calls itself, and its process there."""

    host: str
    pid: int

    def __str__(self) -> str:
        here = self.host == _host()
        return f"process {self.pid}" + (" on this machine" if here else f" on {self.host}")


def serving_daemon(url: str) -> ServingDaemon | None:
    """Return the daemon that serves the storage at `url`; None when there is none, or one that takes no lock.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: it cannot be reached.
    """
    from market_data_pipeline.store.connection import open_connection
    from market_data_pipeline.store.held_lock import holders

    with open_connection(url, autocommit=True) as connection:
        holder = holders(connection, LOCK_SPACE, [LOCK_KEY]).get(LOCK_KEY)
    return _called(holder) if holder is not None else None


def this_machines(pid: int) -> ServingDaemon:
    """Return how the daemon with this process calls itself."""
    return ServingDaemon(_host(), pid)


def connection_name() -> str:
    """Return what this process, a daemon, calls the connection that holds the lock."""
    return f"{_NAME} {_host()} {os.getpid()}"


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
