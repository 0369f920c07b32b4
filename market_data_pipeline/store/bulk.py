"""One writer's connection: Arrow in, Arrow out, and the statements that commit with them.

Bars and features go in and out as binary COPY through ADBC. The ledger's rows travel on the same connection, so that
a series' data and its audit row are one transaction.

Add here: how statements are sent and how the driver's errors are read. Keep out: the statements themselves (one
module per family of relations).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.failures import DatabaseUnavailableError, PipelineError, TransientError
from market_data_pipeline.store.database import libpq_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import Self

    import pyarrow as pa

SCHEMA: Final = "market_data"

# SQLSTATE classes after which the same statement may succeed: connection lost (08), transaction rolled back by the
# server (40), out of connections, memory or disk (53), stopped by an operator or a restart (57), I/O (58).
_TRANSIENT_CLASSES: Final = ("08", "40", "53", "57", "58")
_LOCK_SPACE: Final = 0x4D44  # "MD": our symbols' advisory locks, apart from anybody else's in the same database


class Bulk:
    """A connection of one thread. Statements run in a transaction that ends with `commit` or `rollback`.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        as_of: the instant that `market_data.clock()` answers with, or None for the real clock.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """

    def __init__(self, url: str, as_of: datetime | None = None) -> None:
        import adbc_driver_postgresql.dbapi as adbc

        with _translated():
            self._connection = adbc.connect(libpq_url(url))
            self.execute("select set_config('timezone', 'UTC', false)")
            if as_of is not None:
                self.execute("select set_config('market_data.as_of', $1, false)", as_of.isoformat())
            self.commit()

    def execute(self, statement: LiteralString, *parameters: object) -> None:
        """Run a statement whose rows, if any, nobody wants. Parameters are `$1`, `$2`, …; lists are arrays."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            # A statement that returns rows is only sent when they are fetched.
            cursor.fetchall()

    def arrow(self, statement: LiteralString, *parameters: object) -> pa.Table:
        """Return a query's rows as an Arrow table; instants are timestamp[us, UTC]."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetch_arrow_table()

    def rows(self, statement: LiteralString, *parameters: object) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries."""
        rows: list[dict[str, Any]] = self.arrow(statement, *parameters).to_pylist()
        return rows

    def copy(self, relation: str, table: pa.Table) -> None:
        """Append an Arrow table to `market_data.<relation>` by binary COPY; its columns go by name."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.adbc_ingest(relation, table, mode="append", db_schema_name=SCHEMA)

    def commit(self) -> None:
        """Make everything since the last commit durable and visible."""
        with _translated():
            self._connection.commit()

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        with _translated():
            self._connection.rollback()

    @contextmanager
    def symbol_lock(self, symbol: str) -> Iterator[None]:
        """Hold the symbol for this connection alone, waiting while another run has it.

        The server frees the lock when the connection ends, however it ends.
        """
        self.execute("select pg_advisory_lock($1::int, hashtext($2))", _LOCK_SPACE, symbol)
        self.commit()
        try:
            yield
        finally:
            self.execute("select pg_advisory_unlock($1::int, hashtext($2))", _LOCK_SPACE, symbol)
            self.commit()

    def close(self) -> None:
        """End the connection; an open transaction is rolled back."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours, by their SQLSTATE."""
    import adbc_driver_manager

    try:
        yield
    except adbc_driver_manager.Error as error:
        raise _failure(error.sqlstate, str(error)) from None


def _failure(sqlstate: str | None, text: str) -> PipelineError:
    # The driver appends the statement to its message; what the server said comes first.
    sentence = " ".join(text.split("Query was:")[0].split("\n\n")[0].split())
    if sqlstate == "53100":
        return TransientError(f"The database's disk is full, nothing was stored: {sentence}")
    if sqlstate is None and "existing connection" not in sentence and "connect" in sentence.lower():
        return DatabaseUnavailableError(f"PostgreSQL cannot be reached; is it running? {sentence}")
    if sqlstate is None and ("server closed" in sentence or "no connection" in sentence):
        return DatabaseUnavailableError("PostgreSQL ended the connection; the series is tried again by the next run.")
    if sqlstate is not None and sqlstate[:2] in _TRANSIENT_CLASSES:
        kind = DatabaseUnavailableError if sqlstate[:2] in ("08", "57") else TransientError
        return kind(f"PostgreSQL could not finish (SQLSTATE {sqlstate}): {sentence}")
    return PipelineError(f"PostgreSQL refused a statement (SQLSTATE {sqlstate}): {sentence}")
