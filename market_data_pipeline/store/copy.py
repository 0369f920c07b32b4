"""A query's columns as arrays: the server aggregates each, and NumPy takes the binary form as it is.

Add here: another kind of column. Keep out: sending the query (bulk).

A run's connection: bars and features by binary COPY, and the statements that commit with them.

Arrow tables become PostgreSQL's binary COPY format by pgpq and go out through psycopg; numbers come back a column at a
time. The ledger's rows travel on the same connection, so that a series' data and its audit row are one transaction.

Add here: how statements are sent and how the driver's errors are read. Keep out: the statements themselves (one
module per family of relations) and reading large results for people (arrow).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError, TransientError
from market_data_pipeline.priority import server_gives_way
from market_data_pipeline.store.connection import (
    Role,
    libpq_url,
    missing_parameters,
    open_connection,
    session_statements,
)
from market_data_pipeline.store.errors import failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Self

    import numpy as np
    import pyarrow as pa
    from psycopg.abc import AdaptContext


def load_arrays(context: AdaptContext) -> None:
    """Let arrays of numbers and instants come as NumPy's."""
    for name, kind in _ARRAYS.items():
        context.adapters.register_loader(psycopg.adapters.types.get_oid(f"{name}[]"), kind)


def aggregates(kinds: Mapping[str, str]) -> str:
    """Return the select list that makes one array of each column; its kind is one of `StoreConnection.columns`."""
    return ", ".join(_ARRAY_OF[kind].format(name) for name, kind in kinds.items())


def by_name(kinds: Mapping[str, str], arrays: Sequence[Any] | None) -> dict[str, Any]:
    """Return the arrays that the select list gave, by the names of their columns; empty ones where it saw no row."""
    import numpy as np

    if arrays is None or arrays[0] is None:
        return {name: np.empty(0, _EMPTY[kind]) if kind in _EMPTY else [] for name, kind in kinds.items()}
    return dict(zip(kinds, arrays, strict=True))


class _Numbers(Loader):
    """Reads a whole array of values of one size, none of them null, without making an object of each."""

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


_ARRAY_HEADER_BYTES: Final = 20

_POSTGRES_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 UTC

_ARRAYS: Final = {"int4": _Integers, "float8": _Floats, "timestamptz": _Instants}

_ARRAY_OF: Final = {
    "instant": "array_agg({})",
    "float": "array_agg(coalesce({}::float8, 'NaN'))",
    "bool": "array_agg(coalesce({}::int, -1))",
    "text": "array_agg({})",
}

_EMPTY: Final = {"instant": "int64", "float": "float64", "bool": "int32"}

SCHEMA: Final = "market_data"

# Of one piece of a COPY: about 2 MB of features, and so little memory beside the table.
_COPY_ROWS: Final = 8192

_LOCK_SPACE: Final = 0x4D44  # "MD": our symbols' advisory locks, apart from anybody else's in the same database

# A symbol's first year at 5 calls a minute takes 13 minutes beside eight others, half an hour with the longest pauses
# for 429: who holds a symbol for longer than this hangs.
_SYMBOL_LOCK_TIMEOUT: Final = "60min"


class StoreConnection:
    """A connection of one thread. Statements run in a transaction that ends with `commit` or `rollback`.

    Parameters are `$1`, `$2`, …; lists are arrays, instants are aware.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        as_of: the instant that `market_data.clock()` answers with, or None for the real clock.
        role: as whom the session acts, where the login may and the role has been made.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """

    def __init__(self, url: str, as_of: datetime | None = None, role: Role = Role.WRITER) -> None:
        self._connection = open_connection(libpq_url(url), **missing_parameters(url))
        # Texts and whole numbers have the types that the statements are written for, whatever their values are.
        self._connection.adapters.register_dumper(str, StrBinaryDumper)
        self._connection.adapters.register_dumper(int, Int8BinaryDumper)
        self._cursor = psycopg.RawCursor(self._connection, row_factory=dict_row)
        self._columns = psycopg.RawCursor(self._connection)
        load_arrays(self._columns)
        self.closed = False
        try:
            for statement, parameters in session_statements(as_of, role):
                self.execute(statement, *parameters)
            self.commit()
            if role is Role.WRITER and self._connection.info.host.startswith("/"):
                server_gives_way(self._connection.info.backend_pid)
        except BaseException:
            self.close()
            raise

    def execute(self, statement: LiteralString, *parameters: object) -> None:
        """Run a statement whose rows, if any, nobody wants."""
        with self._translated():
            self._cursor.execute(statement, parameters or None)

    def rows(self, statement: LiteralString, *parameters: object) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries; instants are aware UTC."""
        with self._translated():
            return self._cursor.execute(statement, parameters or None, binary=True).fetchall()

    def columns(self, kinds: Mapping[str, str], statement: LiteralString, *parameters: object) -> dict[str, Any]:
        """Return a query's columns, each as one array with a value for every row, in the query's order.

        | kind | of | array | null is |
        |---|---|---|---|
        | `instant` | timestamptz | int64, microseconds since 1970 UTC | not allowed |
        | `float` | numbers | float64 | NaN |
        | `bool` | boolean | int32: 0 or 1 | -1 |
        | `text` | text | list | None |

        Args:
            kinds: what is wanted of the query's columns, by their names.
            statement: the query; the server holds all of its rows in memory.
            parameters: its parameters.
        """
        query = f"select {aggregates(kinds)} from ({statement}) as found"  # noqa: S608 - names of columns
        with self._translated():
            return by_name(kinds, self._columns.execute(query, parameters, binary=True).fetchone())

    def copy(self, relation: str, table: pa.Table) -> None:
        """Append an Arrow table to `market_data.<relation>` by binary COPY; its columns go by name."""
        from pgpq import ArrowToPostgresBinaryEncoder
        from psycopg import sql

        encoder = ArrowToPostgresBinaryEncoder(table.schema)
        statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(
            sql.Identifier(SCHEMA, relation), sql.SQL(", ").join(map(sql.Identifier, table.column_names))
        )
        with self._translated(), self._cursor.copy(statement) as copy:
            copy.write(encoder.write_header())
            for batch in table.to_batches(max_chunksize=_COPY_ROWS):
                copy.write(encoder.write_batch(batch))
            copy.write(encoder.finish())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the block's statements without waiting for one before the next; an error comes at its end at the latest.

        No rows can be had within, and no COPY.
        """
        with self._translated(), self._connection.pipeline():
            yield

    def commit(self) -> None:
        """Make everything since the last commit durable and visible."""
        with self._translated():
            self._connection.commit()

    def rollback(self) -> None:
        """Forget everything since the last commit; a connection that is lost has forgotten it."""
        if not self.closed:
            with suppress(DatabaseUnavailableError), self._translated():
                self._connection.rollback()

    @contextmanager
    def symbol_lock(self, symbol: str) -> Iterator[None]:
        """Hold the symbol for this connection alone, waiting while another run has it.

        The server frees the lock when the connection ends, however it ends. When the block raises, what it did not
        commit is rolled back.

        Raises:
            TransientError: another run has held the symbol for an hour; the sentence says which process.
        """
        self._lock_symbol(symbol)
        try:
            yield
        except BaseException:
            self._unlock_symbol(symbol, failed=True)
            raise
        self._unlock_symbol(symbol, failed=False)

    def close(self) -> None:
        """End the connection; an open transaction is rolled back. A second time it does nothing."""
        self.closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock_symbol(self, symbol: str) -> None:
        if self.rows("select pg_try_advisory_lock($1::int, hashtext($2)) as held", _LOCK_SPACE, symbol)[0]["held"]:
            return
        try:
            self.execute("select set_config('lock_timeout', $1, true)", _SYMBOL_LOCK_TIMEOUT)
            self.execute("select pg_advisory_lock($1::int, hashtext($2))", _LOCK_SPACE, symbol)
            self.commit()
        except DatabaseUnavailableError:
            raise
        except TransientError as error:
            self.rollback()
            self.execute(_AS_LOGIN)  # who else is connected is only shown to the same login
            holders = self.rows(_HOLDERS, _LOCK_SPACE, symbol)
            self.rollback()
            who = holders[0]["who"] if holders else "a process that has ended since"
            raise TransientError(f"{symbol} is being refreshed by another run, {who}: {error}") from None

    def _unlock_symbol(self, symbol: str, *, failed: bool) -> None:
        if self.closed:
            return
        try:
            if failed:
                self.rollback()
            self.execute("select pg_advisory_unlock($1::int, hashtext($2))", _LOCK_SPACE, symbol)
            self.commit()
        except PipelineError:
            self.close()  # the server frees the lock with the session
            if not failed:
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours; a connection that is lost is closed."""
        if self.closed:
            raise DatabaseUnavailableError("The connection to PostgreSQL was lost before.")
        try:
            yield
        except psycopg.Error as error:
            lost = self._connection.info.transaction_status is TransactionStatus.UNKNOWN
            if lost:
                self.close()
            raise failure(error.sqlstate, error.diag.message_primary or str(error), lost=lost) from None


_AS_LOGIN: Final = "select set_config('role', 'none', true)"

_HOLDERS: Final = """
select format('process %s of %s since %s', a.pid, a.application_name, date_trunc('second', a.backend_start)) as who
from pg_locks as l
inner join pg_stat_activity as a using (pid)
where
    l.locktype = 'advisory'
    and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid::bigint = $1
    and l.objid::bigint = hashtext($2)::bigint & 4294967295
"""
