"""The connection of a thread that reads and writes many rows: columns come as arrays, rows go out by binary COPY.

Arrow tables go out in PostgreSQL's binary COPY format (binary_copy). For reading, the server aggregates each column
into one array, whose binary form NumPy takes as it is, without an object for each value. Coverage, state and log rows
travel on the same connection, so that they commit with a series' data.
"""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError, TransientError
from market_data_pipeline.store.binary_copy import encoded
from market_data_pipeline.store.connection import Role, open_connection
from market_data_pipeline.store.errors import failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
_ARRAY_OF: Final = {
    "instant": "array_agg({})",
    "float": "array_agg(coalesce({}::float8, 'NaN'))",
    "bool": "array_agg(coalesce({}::int, -1))",
    "code": "array_agg({})",
    "text": "array_agg({})",
}
_EMPTY: Final = {"instant": "int64", "float": "float64", "bool": "int32", "code": "int32"}
_ARRAY_HEADER_BYTES: Final = 20
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 UTC


class _Numbers(Loader):
    """Reads a whole array of values of one size, none of them null, without creating an object for each."""

    format = Format.BINARY
    kind: str

    def load(self, data: Any) -> np.ndarray:
        import numpy as np

        # Dimensions, flags, element type, length and lower bound; then each value after its length.
        pairs = np.frombuffer(data, [("length", ">i4"), ("value", self.kind)], offset=_ARRAY_HEADER_BYTES)
        return pairs["value"].astype(self.kind.replace(">", "="))


class _Integers(_Numbers):
    kind = ">i4"


class _Floats(_Numbers):
    kind = ">f8"


class _Instants(_Numbers):
    kind = ">i8"

    def load(self, data: Any) -> np.ndarray:
        return super().load(data) + _POSTGRES_EPOCH_US


class _NumbersDumper(Dumper):
    """Sends an array of values of one size, see `_Numbers`."""

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


_ELEMENTS: Final = {"f8": "float8", "i4": "int4", "M8[us]": "timestamptz"}
_LOADERS: Final = {"int4": _Integers, "float8": _Floats, "timestamptz": _Instants}


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
        self.partitions: set[tuple[Timeframe, int, int]] = set()
        # Texts and whole numbers have the types that the statements are written for, whatever their values are.
        self._connection.adapters.register_dumper(str, StrBinaryDumper)
        self._connection.adapters.register_dumper(int, Int8BinaryDumper)
        self._connection.adapters.register_dumper("numpy.ndarray", _NumbersDumper)
        self._cursor = self._connection.cursor(row_factory=dict_row)
        self._columns = self._connection.cursor()
        for array, loader in _LOADERS.items():
            self._columns.adapters.register_loader(psycopg.adapters.types.get_oid(f"{array}[]"), loader)

    @property
    def server_pid(self) -> int | None:
        """The server's process for this connection, None unless it is reached by a socket of this machine."""
        info = self._connection.info
        return info.backend_pid if info.host.startswith("/") else None

    def execute(self, statement: LiteralString, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement and ignore its rows, if any."""
        with self._translated():
            self._cursor.execute(statement, parameters)

    def rows(self, statement: LiteralString, parameters: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries; instants are aware UTC."""
        with self._translated():
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
        import numpy as np

        arrays = ", ".join(_ARRAY_OF[kind].format(name) for name, kind in kinds.items())
        with self._translated():
            row = self._columns.execute(f"select {arrays} from ({statement}) as found", parameters, binary=True)  # noqa: S608 - names of columns
            found = row.fetchone()
        if found is None or found[0] is None:
            return {name: np.empty(0, _EMPTY[kind]) if kind in _EMPTY else [] for name, kind in kinds.items()}
        return dict(zip(kinds, found, strict=True))

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
        if self.closed:
            return
        try:
            if failed:
                self.rollback()
            self.execute(f"select pg_advisory_unlock({_LOCK})", {"space": _LOCK_SPACE, "symbol": symbol})
            self.commit()
        except PipelineError:
            self.close()  # with it the server frees the lock
            if not failed:
                raise

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
