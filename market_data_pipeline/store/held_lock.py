"""An advisory lock that a process holds for as long as it works, whatever happens to one connection.

PostgreSQL frees such a lock when its connection ends, which is how others find that a process is gone. But a connection
also ends while its process lives: an administrator ends idle ones, a server restarts, a network drops it. A thread here
watches the connection, keeps it from being idle, and takes the lock again on a new one: within milliseconds of the
loss when the server accepts connections, else as soon as it does. A process that finds the lock free should
therefore check again later before it takes the holder for gone.
"""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait as wait_for_any
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import sqlalchemy as sa

from market_data_pipeline.domain.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

_HEARTBEAT_SECONDS: Final = 10.0  # those who end idle connections wait for half a minute at least
_RETRY_SECONDS: Final = 0.5
_LEAVE_SECONDS: Final = 5.0  # a server that is up frees the lock in milliseconds; one that is not has none to free
# One attempt; it waits where the server has not noticed yet that the last connection is gone, and still keeps the lock.
_WAIT: Final = "5s"

_LOCK: Final = sa.text("select pg_advisory_lock(hashtext(:space), hashtext(:key))")
# The two numbers of such a lock are the halves of what `pg_locks` shows; there they are without a sign.
_HOLDERS: Final = """
select
    wanted.key, a.application_name, coalesce(host(a.client_addr), ''),
    cast(extract(epoch from clock_timestamp() - a.state_change) as double precision)
from unnest(%(keys)s::text[]) as wanted (key)
inner join pg_locks as l
    on l.classid::bigint = hashtext(%(space)s)::bigint & 4294967295
    and l.objid::bigint = hashtext(wanted.key)::bigint & 4294967295
inner join pg_stat_activity as a on l.pid = a.pid
where
    l.locktype = 'advisory' and l.granted and l.objsubid = 2
    and l.database = (select oid from pg_database where datname = current_database())
"""

_MEMBERS: Final = """
select
    a.application_name, coalesce(host(a.client_addr), ''),
    cast(extract(epoch from clock_timestamp() - a.state_change) as double precision)
from pg_locks as l
inner join pg_stat_activity as a on l.pid = a.pid
where
    l.classid::bigint = hashtext(%(space)s)::bigint & 4294967295
    and l.locktype = 'advisory' and l.granted and l.objsubid = 2
    and l.database = (select oid from pg_database where datname = current_database())
"""


class LockIsHeldError(Exception):
    """Another process holds the lock."""


class Holder(NamedTuple):
    """Who holds a lock.

    Attributes:
        application: the name that the holder's connection has.
        address: where it comes from; empty for a socket of the server's machine.
        silent_for: seconds since its last statement; None where the login may not see it.
    """

    application: str
    address: str
    silent_for: float | None


def holders(connection: psycopg.Connection[Any], space: str, keys: Sequence[str]) -> dict[str, Holder]:
    """Return who holds the locks `keys` of `space`; those that no one holds are left out."""
    rows = connection.execute(_HOLDERS, {"space": space, "keys": list(keys)}).fetchall()
    return {key: Holder(*who) for key, *who in rows}


def members(connection: psycopg.Connection[Any], space: str) -> list[Holder]:
    """Return who holds locks of `space`, whatever their keys are: one for each lock."""
    return [Holder(*row) for row in connection.execute(_MEMBERS, {"space": space}).fetchall()]


@contextmanager
def held_lock(engine: sa.Engine, space: str, key: str, *, attempts: int | None = None) -> Iterator[None]:
    """Hold the lock `key` of `space` while the block runs, waiting for it first.

    Args:
        engine: lends the connection.
        space: of the lock's name.
        key: of the lock's name.
        attempts: how many times to wait for it, five seconds each; None for as long as it takes.

    Raises:
        LockIsHeldError: another process still holds it.
        DatabaseUnavailableError, DatabaseBusyError: there is no connection for it at the beginning. Afterwards, a lost
            connection is replaced.
    """
    holder = _Holder(engine, {"space": space, "key": key})
    holder.take(attempts)
    thread = threading.Thread(target=holder.keep, name="held-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        holder.stop()
        thread.join(_LEAVE_SECONDS)


class _Holder:
    def __init__(self, engine: sa.Engine, lock: dict[str, str]) -> None:
        self._engine = engine
        self._lock = lock
        self._connection: sa.Connection | None = None
        self._stopped = threading.Event()
        self._wake, self._woken = socket.socketpair()  # ends the wait for the server at once

    def take(self, attempts: int | None = None) -> None:
        """Open a connection and wait for the lock on it, until it is held or `stop` is called; see `held_lock`."""
        while not self._stopped.is_set():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                connection.execute(sa.text("select set_config('lock_timeout', :wait, false)"), {"wait": _WAIT})
                connection.execute(_LOCK, self._lock)
            except BaseException as error:
                _end(connection)
                if not _is_lock_timeout(error):
                    raise
                if attempts is not None and (attempts := attempts - 1) <= 0:
                    raise LockIsHeldError from None
            else:
                self._connection = connection
                return

    def keep(self) -> None:
        """Watch the connection and replace it when it is lost; after `stop`, free the lock and return."""
        wait = 0.0
        while not self._stopped.wait(wait):
            lost, wait = self._connection, 0.0
            try:
                if lost is None:
                    self.take()
                    log.warning("The lock of %s is held again, on a new connection.", self._lock["key"])
                else:
                    self._watch(lost)
            except (PipelineError, sa.exc.SQLAlchemyError, psycopg.Error, OSError) as error:
                if lost is None:
                    wait = _RETRY_SECONDS
                else:
                    log.warning("The connection that holds the lock of %s was lost: %s", self._lock["key"], error)
                    self._connection = None
                    _end(lost)
        if self._connection is not None:
            _end(self._connection)
        self._wake.close()
        self._woken.close()

    def stop(self) -> None:
        """Make `keep` return."""
        self._stopped.set()
        with suppress(OSError):  # it has returned
            self._wake.send(b"x")

    def _watch(self, connection: sa.Connection) -> None:
        """Wait until the server sends something, as it does at the connection's end, or until a heartbeat is due."""
        at_server = connection.connection.driver_connection
        assert at_server is not None  # noqa: S101 - it has not been closed
        wait_for_any([at_server.fileno(), self._woken], _HEARTBEAT_SECONDS)
        if not self._stopped.is_set():
            connection.exec_driver_sql("select 1")


def _end(connection: sa.Connection) -> None:
    """End a connection, and with it its locks, even if the server is gone."""
    with suppress(PipelineError, sa.exc.SQLAlchemyError, psycopg.Error):
        connection.invalidate()
        connection.close()


def _is_lock_timeout(error: BaseException) -> bool:
    return isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) == "55P03"
