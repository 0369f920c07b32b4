"""One writer's connection: Arrow in, Arrow out, and the statements that commit with them.

Bars and features go in and out as binary COPY through ADBC. The ledger's rows travel on the same connection, so that
a series' data and its audit row are one transaction.

Add here: how statements are sent and how the driver's errors are read. Keep out: the statements themselves (one
module per family of relations).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.failures import DatabaseUnavailableError, PipelineError, TransientError
from market_data_pipeline.store.database import CONNECT_TIMEOUT_SECONDS, describe, libpq_url
from market_data_pipeline.store.errors import failure, sentence
from market_data_pipeline.store.roles import ACT_AS_ADBC, Role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    import pyarrow as pa

SCHEMA: Final = "market_data"

_LOCK_SPACE: Final = 0x4D44  # "MD": our symbols' advisory locks, apart from anybody else's in the same database
# A statement waits so long for a table that somebody else has locked. Our own transactions hold a row for
# milliseconds; whoever waits a minute meets an ALTER TABLE or a VACUUM FULL, and the next run is as good.
_LOCK_TIMEOUT: Final = "60s"
# A symbol's first year at 5 calls a minute takes 13 minutes beside eight others, half an hour with the longest pauses
# for 429: who holds a symbol for longer than this hangs.
_SYMBOL_LOCK_TIMEOUT: Final = "60min"
# So that neither side keeps a connection, and with it a symbol's lock, to a machine that is gone: a minute and a half.
# Without it the server would find out after two hours.
_LIBPQ: Final[dict[str, str | int]] = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "market-data refresh",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,
}
_SESSION: Final = {
    "timezone": "UTC",
    "lock_timeout": _LOCK_TIMEOUT,
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    "client_connection_check_interval": "10s",  # also while a statement runs or waits; PostgreSQL 14 and later
}


class Bulk:
    """A connection of one thread. Statements run in a transaction that ends with `commit` or `rollback`.

    Args:
        url: any URL that `DATABASE_URL` may hold.
        as_of: the instant that `market_data.clock()` answers with, or None for the real clock.
        role: as whom the session acts, where the login may and the role has been made.
        like: an open connection with the same `url`: what the driver asks a server about its types, which takes 40 ms,
            is not asked again.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """

    def __init__(
        self, url: str, as_of: datetime | None = None, role: Role = Role.WRITER, *, like: Bulk | None = None
    ) -> None:
        import adbc_driver_manager
        import adbc_driver_postgresql.dbapi as adbc

        try:
            clone = like._clone() if like is not None else None
            self._connection = clone or adbc.connect(_conninfo(url))
        except adbc_driver_manager.Error as error:
            hint = "" if "FATAL" in str(error) else " Is it running?"
            raise DatabaseUnavailableError(f"{describe(url)} cannot be used: {sentence(str(error))}.{hint}") from None
        self.closed = False
        try:
            self.execute(_SET_KNOWN, list(_SESSION), list(_SESSION.values()))
            if as_of is not None:
                self.execute("select set_config('market_data.as_of', $1, false)", as_of.isoformat())
            self.execute(ACT_AS_ADBC, role.value)
            self.commit()
        except BaseException:
            self.close()
            raise

    def _clone(self) -> Any:
        """Return a new connection of the driver, None when this one cannot serve any more."""
        import adbc_driver_manager

        try:
            return None if self.closed else self._connection.adbc_clone()
        except adbc_driver_manager.Error:  # closed just now, or the server is gone: a new one tells
            return None

    def execute(self, statement: LiteralString, *parameters: object) -> None:
        """Run a statement whose rows, if any, nobody wants. Parameters are `$1`, `$2`, …; lists are arrays."""
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

    def copy(self, relation: str, table: pa.Table) -> None:
        """Append an Arrow table to `market_data.<relation>` by binary COPY; its columns go by name."""
        with self._translated(), self._connection.cursor() as cursor:
            cursor.adbc_ingest(relation, table, mode="append", db_schema_name=SCHEMA)

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
        import adbc_driver_manager

        self.closed = True
        with suppress(adbc_driver_manager.Error):  # the server ends the session by itself
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
        import adbc_driver_manager

        if self.closed:
            raise DatabaseUnavailableError("The connection to PostgreSQL was lost before.")
        try:
            yield
        except adbc_driver_manager.Error as error:
            lost = self._status() == "unknown"
            if lost:
                self.close()
            raise failure(error.sqlstate, str(error), lost=lost) from None

    def _status(self) -> str:
        """Return libpq's word for the transaction; "unknown" when the connection is gone."""
        return str(self._connection.adbc_connection.get_option("adbc.postgresql.transaction_status"))


_SET_KNOWN: Final = """
select set_config(s.name, wanted.value, false)
from pg_settings as s
inner join unnest($1::text[], $2::text[]) as wanted (name, value) on lower(wanted.name) = lower(s.name)
"""
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


def _plain(value: object) -> object:
    """Return a parameter as the driver is given it: instants in UTC, which is the session's zone, but without a zone.

    Around every statement that has an instant with a zone the driver asks for the session's zone, sets it twice and
    has the statement parsed a second time.
    """
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _conninfo(url: str) -> str:
    """Return what libpq connects with: the URL, and whatever of `_LIBPQ` it does not say itself."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    plain = libpq_url(url)
    describe(plain)  # names a URL that cannot be read without showing it
    given = conninfo_to_dict(plain)
    return make_conninfo(plain, **{name: value for name, value in _LIBPQ.items() if name not in given})
