"""A reader's connection that answers with Arrow: large results for people who calculate.

The driver is ADBC: values go from the wire into columns without an object of each, however many there are, and a null
is a null. What a run reads and writes goes through `StoreConnection`.

Add here: how such a query is sent. Keep out: the queries (reading).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.store.connection import Role, describe, libpq_url, missing_parameters, session_statements
from market_data_pipeline.store.errors import failure, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    import pyarrow as pa


class ArrowReader:
    """A connection that acts as the reader; statements run in a transaction that ends with the connection.

    Parameters are `$1`, `$2`, …; lists are arrays.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        as_of: the instant that `market_data.clock()` answers with, or None for the real clock.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """

    def __init__(self, url: str, as_of: datetime | None = None) -> None:
        import adbc_driver_manager
        import adbc_driver_postgresql.dbapi as adbc
        from psycopg.conninfo import make_conninfo

        plain = libpq_url(url)
        try:
            self._connection = adbc.connect(make_conninfo(plain, **missing_parameters(plain)))
        except adbc_driver_manager.Error as error:
            hint = "" if "FATAL" in str(error) else " Is it running?"
            raise DatabaseUnavailableError(f"{describe(url)} cannot be used: {sentence(str(error))}.{hint}") from None
        self.closed = False
        try:
            for statement, parameters in session_statements(as_of, Role.READER):
                self.execute(statement, *parameters)
            with self._translated():
                self._connection.commit()
        except BaseException:
            self.close()
            raise

    def execute(self, statement: LiteralString, *parameters: object) -> None:
        """Run a statement whose rows, if any, nobody wants."""
        self.arrow(statement, *parameters)  # one that returns rows is only sent when they are fetched

    def arrow(self, statement: LiteralString, *parameters: object) -> pa.Table:
        """Return a query's rows as an Arrow table; instants are timestamp[us, UTC]."""
        with self._translated(), self._connection.cursor() as cursor:
            cursor.execute(statement, [_plain(value) for value in parameters] or None)
            return cursor.fetch_arrow_table()

    def rows(self, statement: LiteralString, *parameters: object) -> list[dict[str, Any]]:
        """Return a query's rows as dictionaries."""
        rows: list[dict[str, Any]] = self.arrow(statement, *parameters).to_pylist()
        return rows

    def rollback(self) -> None:
        """End the transaction; the next statement begins another."""
        with self._translated():
            self._connection.rollback()

    def close(self) -> None:
        """End the connection. A second time it does nothing."""
        import adbc_driver_manager

        self.closed = True
        with suppress(adbc_driver_manager.Error):  # the server ends the session by itself
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours; a connection that is lost is closed."""
        import adbc_driver_manager

        if self.closed:
            raise DatabaseUnavailableError("The connection to PostgreSQL was lost before.")
        try:
            yield
        except adbc_driver_manager.Error as error:
            # libpq's word for the transaction is "unknown" when the connection is gone.
            status = str(self._connection.adbc_connection.get_option("adbc.postgresql.transaction_status"))
            if status == "unknown":
                self.close()
            raise failure(error.sqlstate, str(error), lost=status == "unknown") from None


def _plain(value: object) -> object:
    """Return a parameter as the driver is given it: instants in UTC, which is the session's zone, but without a zone.

    Around every statement that has an instant with a zone the driver asks for the session's zone, sets it twice and
    has the statement parsed a second time.
    """
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return [_plain(each) for each in value] if isinstance(value, list) else value
