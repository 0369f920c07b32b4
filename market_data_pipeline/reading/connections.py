"""The connections that readers keep open between calls, since opening one takes longer than reading a year of day bars.

A connection is used by one thread at a time. After a fork the child opens its own; one that the server has ended is
replaced at the next call. What was idle is closed when the process ends.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.reading.current_settings import forget_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection

    Key = tuple[str, datetime | None]

T = TypeVar("T")

# One serves a notebook; the others are for threads that read at the same time. Each takes a place on the server.
_MOST_IDLE: Final = 4


class _Idle:
    """Connections that nothing uses, the most recently used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[Key, StoreConnection]] = []

    def take(self, key: Key) -> StoreConnection | None:
        """Return a connection and keep it no longer; None when there is none to that database."""
        with self._lock:
            for position in reversed(range(len(self._kept))):
                if self._kept[position][0] == key:
                    return self._kept.pop(position)[1]
        return None

    def put(self, key: Key, connection: StoreConnection) -> None:
        """Keep a connection, and close the one that was idle for longest when there are too many."""
        with self._lock:
            self._kept.append((key, connection))
            surplus = [self._kept.pop(0)[1] for _ in range(len(self._kept) - _MOST_IDLE)]
        for each in surplus:
            each.close()

    def forget(self, key: Key) -> None:
        """Close those to a database."""
        while connection := self.take(key):
            connection.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, connection in kept:
            connection.close()


_idle = _Idle()
_of_the_parent: list[object] = []  # kept, since psycopg warns of a connection that is collected while open


def close_connections() -> None:
    """End the connections that the readers of this process keep open between calls; the next call opens one again.

    Example:
        >>> from market_data_pipeline.reading import close_connections
        >>> close_connections()
    """
    _idle.close()


def _forget_after_fork() -> None:
    """Leave the parent's connections alone: closing one here would end it there."""
    global _idle
    _of_the_parent.append(_idle)
    _idle = _Idle()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_connections)


@contextmanager
def snapshot(settings: Settings, look: Callable[[StoreConnection], T]) -> Iterator[tuple[StoreConnection, T]]:
    """Yield a connection inside a read-only snapshot; the embedded server is started and migrated first if necessary.

    Args:
        settings: name the database.
        look: reads something first, which is yielded too; it is called again when the server has ended the connection
            since the last call.

    Raises:
        ConfigurationError: the settings are wrong, or the database was never migrated.
        DatabaseUnavailableError: the database cannot be reached.
    """
    key, idle = (settings.reader_url, settings.as_of), _idle
    connection, seen = _looked(idle.take(key), look) or _looked_anew(settings, idle, key, look)
    try:
        yield connection, seen
    finally:
        if idle is not _idle:  # this is a child that was forked meanwhile
            _of_the_parent.append(connection)
        else:
            connection.rollback()
            if not connection.closed:
                idle.put(key, connection)


def _looked(warm: StoreConnection | None, look: Callable[[StoreConnection], T]) -> tuple[StoreConnection, T] | None:
    """Return a connection with what `look` has read, None when the server no longer answers on it."""
    if warm is None:
        return None
    try:
        return warm, look(warm)
    except DatabaseUnavailableError:
        warm.close()
        return None
    except BaseException:
        warm.close()
        raise


def _looked_anew(
    settings: Settings, idle: _Idle, key: Key, look: Callable[[StoreConnection], T]
) -> tuple[StoreConnection, T]:
    idle.forget(key)  # they are as old
    try:
        return _opened(settings, look)
    except (DatabaseUnavailableError, ConfigurationError):
        forget_settings()
        if settings.reads_elsewhere or not settings.embedded_database:
            raise
    from market_data_pipeline.runtime.database import migrate_database

    migrate_database(settings)
    return _opened(settings, look)


def _opened(settings: Settings, look: Callable[[StoreConnection], T]) -> tuple[StoreConnection, T]:
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection

    connection = StoreConnection(settings.reader_url, settings.as_of, Role.READER)
    try:
        connection.read_only_snapshots()
        return connection, look(connection)
    except BaseException:
        connection.close()
        raise
