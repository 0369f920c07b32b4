"""The connection of a thread that reads and writes many rows: columns come as arrays, rows go out by binary COPY.

Arrow tables go out in PostgreSQL's binary COPY format (binary_copy). For reading, the server aggregates the columns
into a few values, whose binary form NumPy takes as it is, without an object for each value. Coverage, state and log
rows travel on the same connection, so that they commit with a series' data.
"""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError, TransientError
from market_data_pipeline.store.binary_copy import encoded
from market_data_pipeline.store.connection import LOCK_RECORDS, Role, open_connection
from market_data_pipeline.store.errors import failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Self

    import numpy as np
    import pyarrow as pa

    from market_data_pipeline.domain.series import Series, Timeframe
    from market_data_pipeline.store.source import Source

# A statement waits this long for a table that another connection has locked. Our own transactions hold a row for
# milliseconds; a statement that waits a minute has met an ALTER TABLE or a VACUUM FULL, and can wait for the next run.
_LOCK_TIMEOUT: Final = "60s"
_LOCK_SPACE: Final = 0x4D44  # "MD": our symbols' advisory locks, apart from other programs' in the same database
# A symbol's first year at 5 calls a minute takes 13 minutes alongside eight others, half an hour with the longest
# pauses for 429: a process that holds a symbol for longer than this hangs.
_SYMBOL_LOCK_TIMEOUT: Final = "60min"
# Those who end idle connections wait for half a minute at least. At 5 calls a minute, a symbol waits for longer.
_HEARTBEAT_SECONDS: Final = 10.0
# Each as a number; `text` is aggregated as an array, `instant` in its own binary form.
_NUMBER: Final = {
    "float": "coalesce({}::float8, 'NaN')",
    "bool": "coalesce({}::int, -1)::float8",
    "code": "{}::float8",
}
_TYPES: Final = {"instant": "int64", "float": "float64", "bool": "int32", "code": "int32"}
_PACKED: Final = 4  # the numbers of a line segment
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 UTC


class _NumbersDumper(Dumper):
    """Sends an array of values of one size, none of them null, without creating an object for each."""

    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        import numpy as np

        kind = "i8" if obj.dtype.kind == "M" else obj.dtype.str[1:]
        values = obj.view("int64") - _POSTGRES_EPOCH_US if obj.dtype.kind == "M" else obj
        element = psycopg.adapters.types.get_oid(_ELEMENTS[obj.dtype.str[1:]])
        pairs = np.empty(len(obj), [("length", ">i4"), ("value", f">{kind}")])
        pairs["length"], pairs["value"] = values.itemsize, values
        # Dimensions, no null, element type, length and lower bound.
        return struct.pack(">iiIii", 1, 0, element, len(obj), 1) + pairs.tobytes()


_ELEMENTS: Final = {"f8": "float8", "i4": "int4", "i8": "int8", "M8[us]": "timestamptz"}


class StoreConnection:
    """The connection of one thread. Statements run in a transaction that ends with `commit` or `rollback`.

    Parameters are written `%(name)s`; lists become arrays, instants are aware.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        as_of: what `market_data.clock()` returns, aware; None for the real clock.
        role: the role to act as, where the login may and the role exists.
        source: where the bars to be stored come from; the database refuses those of another than it holds.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: as `open_connection`.
    """

    def __init__(
        self, url: str, as_of: datetime | None = None, role: Role = Role.WRITER, *, source: Source | None = None
    ) -> None:
        name = "market-data refresh" if role is Role.WRITER else "market-data reader"
        named = {"market_data.source": source.setting} if source else {}
        self._connection = open_connection(
            url, role, as_of=as_of, settings={"lock_timeout": _LOCK_TIMEOUT, **named}, application_name=name
        )
        self._in_use = threading.RLock()  # by the thread that works, or by the heartbeat beside it
        self.closed = False
        # What this connection knows of `records`: numbers of series, and months that have partitions.
        self.series_ids: dict[Series, int] = {}
        self.all_moved = False  # to `records`, once and for all
        self.packs = False  # whether there is a table `packed_records`: a reader may be newer than the schema
        self.partitions: set[tuple[Timeframe, int, int]] = set()
        # Texts and whole numbers have the types that the statements are written for, whatever their values are.
        self._connection.adapters.register_dumper(str, StrBinaryDumper)
        self._connection.adapters.register_dumper(int, Int8BinaryDumper)
        self._connection.adapters.register_dumper("numpy.ndarray", _NumbersDumper)
        self._cursor = self._connection.cursor(row_factory=dict_row)
        self._columns = self._connection.cursor()

    @property
    def server_pid(self) -> int | None:
        """The server's process for this connection, None unless it is reached by a socket of this machine."""
        info = self._connection.info
        return info.backend_pid if info.host.startswith("/") else None

    def execute(self, statement: LiteralString, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement and ignore its rows, if any."""
        with self._translated():
            self._begin()
            self._cursor.execute(statement, parameters)

    def rows(self, statement: LiteralString, parameters: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries; instants are aware UTC."""
        with self._translated():
            self._begin()
            return self._cursor.execute(statement, parameters, binary=True).fetchall()

    def columns(
        self, kinds: Mapping[str, str], statement: LiteralString, parameters: Mapping[str, object]
    ) -> dict[str, Any]:
        """Return a query's columns, each as one array with a value for every row, in the query's order.

        | kind | of | array | null is |
        |---|---|---|---|
        | `instant` | timestamptz | int64, microseconds since 1970 UTC | not allowed |
        | `float` | numbers | float64 | NaN |
        | `bool` | boolean | int32: 0 or 1 | -1 |
        | `code` | int4 | int32 | not allowed |
        | `text` | text | list | None |

        Args:
            kinds: the kind of each column to return, by name.
            statement: the query; the server holds all of its rows in memory.
            parameters: its parameters.
        """
        numbers = [name for name, kind in kinds.items() if kind in _NUMBER]
        packs = [numbers[begin : begin + _PACKED] for begin in range(0, len(numbers), _PACKED)]
        apart = [name for name in kinds if name not in numbers]
        selected = [_packed([_NUMBER[kinds[name]].format(name) for name in pack]) for pack in packs]
        selected += [
            f"string_agg(timestamptz_send({name}), '')" if kinds[name] == "instant" else f"array_agg({name})"
            for name in apart
        ]
        with self._translated():
            self._begin()
            row = self._columns.execute(
                f"select {', '.join(selected)} from ({statement}) as found",  # noqa: S608 - names of columns
                parameters,
                binary=True,
            )
            found = row.fetchone() or ()
        values: dict[str, Any] = {}
        for pack, packed in zip(packs, found, strict=False):
            values |= zip(pack, _floats(packed), strict=False)
        values |= zip(apart, found[len(packs) :], strict=True)
        return {name: _column(values[name], kind) for name, kind in kinds.items()}

    def copy(self, relation: str, table: pa.Table) -> None:
        """Append an Arrow table to `market_data.<relation>` by binary COPY; columns are matched by name."""
        from psycopg import sql

        statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(
            sql.Identifier("market_data", relation), sql.SQL(", ").join(map(sql.Identifier, table.column_names))
        )
        with self._translated(), self._cursor.copy(statement) as copy:
            for piece in encoded(table):
                copy.write(piece)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the block's statements without waiting for each answer; an error is raised at its end at the latest.

        Neither rows nor COPY are possible inside.
        """
        with self._translated(), self._connection.pipeline():
            yield

    def read_only_snapshots(self) -> None:
        """Let every transaction from now on be read-only and see the database as of its first statement."""
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True

    def commit(self) -> None:
        """Make everything since the last commit durable and visible."""
        with self._translated():
            self._connection.commit()

    def rollback(self) -> None:
        """Discard everything since the last commit; a lost connection has already done so."""
        if not self._connection.read_only:
            self.series_ids.clear()  # the transaction may have made them
            self.partitions.clear()
        if not self.closed:
            with suppress(DatabaseUnavailableError), self._translated():
                self._connection.rollback()

    @contextmanager
    def symbol_lock(self, symbol: str) -> Iterator[None]:
        """Hold the symbol for this connection alone, waiting while another run has it.

        The server frees the lock when the connection ends, however it ends; until then the connection is never idle for
        long. When the block raises, what it did not commit is rolled back.

        Raises:
            TransientError: another run has held the symbol for an hour; the message says which process.
        """
        self._lock_symbol(symbol)
        try:
            with self._heartbeat():
                yield
        except BaseException:
            self._unlock_symbol(symbol, failed=True)
            raise
        self._unlock_symbol(symbol, failed=False)

    @contextmanager
    def symbol_locks(self, symbols: Sequence[str]) -> Iterator[frozenset[str]]:
        """Hold those of several symbols that no other run has, without waiting; yields which.

        For the rest, see `symbol_lock`.
        """
        every = {"space": _LOCK_SPACE, "symbols": sorted(symbols)}
        of_each = _LOCK.replace("%(symbol)s", "symbol")
        tried = self.rows(
            f"select symbol, pg_try_advisory_lock({of_each}) as held from unnest(%(symbols)s::text[]) as symbol",  # noqa: S608 - the constant above
            every,
        )
        held = [row["symbol"] for row in tried if row["held"]]
        failed = True
        try:
            self.commit()
            with self._heartbeat():
                yield frozenset(held)
            failed = False
        finally:
            self._unlock(
                f"select pg_advisory_unlock({of_each}) from unnest(%(symbols)s::text[]) as symbol",  # noqa: S608 - the constant above
                {**every, "symbols": held},
                failed=failed,
            )

    def close(self) -> None:
        """End the connection; an open transaction is rolled back. A second call does nothing."""
        self.closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Keep the connection from being idle while the block waits for something else."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_HEARTBEAT_SECONDS):
                if self._in_use.acquire(blocking=False):
                    try:
                        if self._connection.info.transaction_status is TransactionStatus.IDLE:
                            self._connection.execute("select 1")
                            self._connection.commit()
                    except psycopg.Error:
                        return  # the next statement says so
                    finally:
                        self._in_use.release()

        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _lock_symbol(self, symbol: str) -> None:
        lock = {"space": _LOCK_SPACE, "symbol": symbol}
        if self.rows(f"select pg_try_advisory_lock({_LOCK}) as held", lock)[0]["held"]:
            return
        try:
            self.execute("select set_config('lock_timeout', %(timeout)s, true)", {"timeout": _SYMBOL_LOCK_TIMEOUT})
            self.execute(f"select pg_advisory_lock({_LOCK})", lock)
            self.commit()
        except DatabaseUnavailableError:
            raise
        except TransientError as error:
            self.rollback()
            self.execute("select set_config('role', 'none', true)")  # only the same login sees who is connected
            holders = self.rows(_HOLDERS, lock)
            self.rollback()
            who = holders[0]["who"] if holders else "a process that has ended since"
            raise TransientError(f"{symbol} is being refreshed by another run, {who}: {error}") from None

    def _unlock_symbol(self, symbol: str, *, failed: bool) -> None:
        lock = {"space": _LOCK_SPACE, "symbol": symbol}
        self._unlock(f"select pg_advisory_unlock({_LOCK})", lock, failed=failed)

    def _unlock(self, statement: LiteralString, locks: Mapping[str, object], *, failed: bool) -> None:
        if self.closed:
            return
        try:
            if failed:
                self.rollback()
            self.execute(statement, locks)
            self.commit()
        except PipelineError:
            self.close()  # with it the server frees the lock
            if not failed:
                raise

    def _begin(self) -> None:
        """Begin a snapshot, unless it has begun or statements need not see the same instant."""
        if self._connection.read_only and self._connection.info.transaction_status is TransactionStatus.IDLE:
            self._connection.execute(LOCK_RECORDS)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours; a connection that is lost is closed."""
        if self.closed:
            raise DatabaseUnavailableError("The connection to PostgreSQL was lost earlier.")
        try:
            with self._in_use:
                yield
        except psycopg.Error as error:
            # In a pipeline the server's last word may be read before the end of the connection, which follows it.
            ended = error.diag.severity_nonlocalized in ("FATAL", "PANIC")
            lost = ended or self._connection.info.transaction_status is TransactionStatus.UNKNOWN
            if lost:
                self.close()
            raise failure(error.sqlstate, error.diag.message_primary or str(error), lost=lost) from None


def _packed(numbers: list[str]) -> LiteralString:
    """Return the aggregate of up to four numbers of a row: 32 bytes for each row.

    PostgreSQL calls a function for each number that it sends, and for each array that it aggregates. A line segment is
    four numbers that it sends at once, which takes half the time.
    """
    first, second, third, fourth = [*numbers, *["0"] * (_PACKED - len(numbers))]
    return f"string_agg(lseg_send(lseg(point({first}, {second}), point({third}, {fourth}))), '')"


def _floats(packed: bytes | None) -> np.ndarray:
    """Return the numbers of `_packed`, one below the other."""
    import numpy as np

    return np.frombuffer(packed or b"", ">f8").reshape(-1, _PACKED).T


def _column(values: Any, kind: str) -> Any:
    """Return what a column's numbers, bytes or list are for its kind."""
    import numpy as np

    if kind == "instant":
        return np.frombuffer(values or b"", ">i8").astype("int64") + _POSTGRES_EPOCH_US
    return values.astype(_TYPES[kind]) if kind in _TYPES else values or []


_LOCK: Final = "%(space)s::int, hashtext(%(symbol)s)"
_HOLDERS: Final = """
select
    format('process %%s of %%s since %%s', a.pid, a.application_name, date_trunc('second', a.backend_start)) as who
from pg_locks as l
inner join pg_stat_activity as a using (pid)
where
    l.locktype = 'advisory'
    and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid::bigint = %(space)s
    and l.objid::bigint = hashtext(%(symbol)s)::bigint & 4294967295
"""
