"""Prepared statements on connections that are kept open: one round trip each, rows in PostgreSQL's binary format.

psycopg's cursors take Python's global lock for every piece of an answer that arrives, two dozen times for 500 records
with features, and wait for other threads each time. libpq's own `PQexecPrepared` waits without the lock until the
whole answer is there. A statement on its own is also its own snapshot, so no transaction needs to be begun and ended.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format

from market_data_pipeline.store.connection import LOCK_RECORDS, unavailable_when_lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Value = str | int | bool | date | datetime | None
    Rows = list[tuple[Any, ...]]

T = TypeVar("T")

_NAMED: Final = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True)
class Statement:
    """A statement with named parameters, `%(name)s`, and the type of each."""

    sql: str
    types: Mapping[str, str] = field(hash=False, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters in the order of their numbers."""
        return tuple(dict.fromkeys(_NAMED.findall(self.sql)))

    @cached_property
    def numbered(self) -> bytes:
        """The statement with numbered parameters, each cast to its type."""

        def number(found: re.Match[str]) -> str:
            return f"cast(${self.names.index(found[1]) + 1} as {self.types[found[1]]})"

        return _NAMED.sub(number, self.sql).encode()


class PreparedReader:
    """Runs statements on one connection, each prepared at its first use.

    Args:
        connection: in autocommit.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._prepared: dict[Statement, bytes] = {}
        self.facts: dict[Statement, Any] = {}  # what does not change while the connection lasts

    def rows(self, statement: Statement, values: Mapping[str, Value]) -> Rows:
        """Return the rows of `statement`, all read in one snapshot.

        Raises:
            psycopg.Error: the statement failed, or the connection is lost.
        """
        server = self._connection.pgconn
        name = self._prepared.get(statement)
        if name is None:
            name = f"read_{len(self._prepared)}".encode()
            self._check(server.prepare(name, statement.numbered), ExecStatus.COMMAND_OK)
            self._prepared[statement] = name
        given: Any = [_text(values[each]) for each in statement.names]
        found = server.exec_prepared(name, given, None, Format.BINARY)
        self._check(found, ExecStatus.TUPLES_OK)
        loader = Transformer(self._connection)
        loader.set_pgresult(found)
        return loader.load_rows(0, found.ntuples, tuple)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all statements in it see the same instant."""
        self._command(f"begin transaction isolation level repeatable read, read only; {LOCK_RECORDS}".encode())
        try:
            yield
        finally:
            self._command(b"rollback")

    @property
    def is_lost(self) -> bool:
        """Whether the server has closed the connection, as far as the last statement has shown."""
        return self._connection.pgconn.status != ConnStatus.OK

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _command(self, text: bytes) -> None:
        self._check(self._connection.pgconn.exec_(text), ExecStatus.COMMAND_OK)

    def _check(self, result: psycopg.pq.abc.PGresult, expected: ExecStatus) -> None:
        if result.status != expected:
            if self.is_lost:
                raise psycopg.OperationalError(self._connection.pgconn.get_error_message())
            raise errors.error_from_result(result)


class ReaderPool:
    """Connections that are kept open, for as many threads as there are at a time; each is opened when it is needed."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._free: list[PreparedReader] = []
        self._lock = threading.Lock()

    def run(self, work: Callable[[PreparedReader], T]) -> T:
        """Return `work(reader)`; it runs once more on a new connection when a kept one turns out to be lost.

        Raises:
            DatabaseUnavailableError: the database cannot be reached or has no market data schema.
            DatabaseBusyError: the server has no connection free, or a statement took too long.
        """
        with unavailable_when_lost():
            while kept := self._take():
                try:
                    return self._on(kept, work)
                except psycopg.Error:
                    if not kept.is_lost:
                        raise
            return self._on(PreparedReader(self._connect()), work)

    def close(self) -> None:
        """Close the connections that are free."""
        while kept := self._take():
            kept.close()

    def _on(self, reader: PreparedReader, work: Callable[[PreparedReader], T]) -> T:
        try:
            done = work(reader)
        except psycopg.Error:
            reader.close()
            raise
        except BaseException:
            self._keep(reader)
            raise
        self._keep(reader)
        return done

    def _take(self) -> PreparedReader | None:
        with self._lock:
            return self._free.pop() if self._free else None

    def _keep(self, reader: PreparedReader) -> None:
        with self._lock:
            self._free.append(reader)


def _text(value: Value) -> bytes | None:
    """Return a value as PostgreSQL reads it; `connection_settings` sets what its text means."""
    if value is None:
        return None
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return (value.isoformat() if isinstance(value, date) else str(value)).encode()
