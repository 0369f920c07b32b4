"""How every connection to PostgreSQL is opened, for psycopg connections, pools and SQLAlchemy engines alike.

libpq's parameters come from the URL first, then from the caller, then from here. What the connection needs of the
server's settings is in `connection_settings`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.store.connection_settings import Role as Role
from market_data_pipeline.store.connection_settings import configure, configure_async
from market_data_pipeline.store.errors import said

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import sqlalchemy as sa
    from sqlalchemy.engine.interfaces import ExceptionContext


# `connect_timeout` is in seconds; a server that is up answers in milliseconds, also across a continent. The keepalives
# are the client's half of those in `connection_settings`.
_PARAMETERS: Final[dict[str, str | int]] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,  # ms
}
# Whatever the URL and the environment say: a database in SQL_ASCII would answer with bytes.
_ENCODING: Final = {"client_encoding": "UTF8"}


def with_keepalives(url: str) -> str:
    """Return a URL that says how long a connection may wait for a machine that is gone; what it says already stays.

    For connections that others open, by libpq or SQLAlchemy.
    """
    given = parse_qs(urlsplit(url).query)
    missing = urlencode({name: value for name, value in _PARAMETERS.items() if name not in given})
    return f"{url}{'&' if '?' in url else '?'}{missing}" if missing else url


def conninfo(url: str, **parameters: str | int) -> str:
    """Return libpq's connection string for `url`, with `parameters` and the defaults for what it does not set.

    Raises:
        ConfigurationError: libpq does not understand the URL.
    """
    plain = libpq_url(url)
    given = connection_parameters(plain)
    missing = {name: value for name, value in {**_PARAMETERS, **parameters}.items() if name not in given}
    return make_conninfo(plain, **missing, **_ENCODING)


def open_connection(
    url: str,
    role: Role | None = None,
    *,
    autocommit: bool = False,
    as_of: datetime | None = None,
    settings: Mapping[str, str] | None = None,
    **parameters: str | int,
) -> psycopg.Connection[Any]:
    """Return a psycopg connection that is set up as `connection_settings` says.

    Args:
        url: everything that libpq understands, with or without an SQLAlchemy driver.
        role: the role to act as, where the login may and the role exists; None for the login's own rights.
        autocommit: whether each statement is its own transaction.
        as_of: what `market_data.clock()` returns, aware; None for the real clock.
        settings: further settings of PostgreSQL.
        parameters: of libpq, for what the URL leaves open.

    Raises:
        ConfigurationError: libpq does not understand the URL, or a pooler in transaction mode is in front.
        DatabaseBusyError: the server has no connection free.
        DatabaseUnavailableError: the server cannot be reached or refuses; the message names it, never a password.
    """
    with _named(url):
        connection = psycopg.connect(conninfo(url, **parameters), autocommit=autocommit)
        try:
            configure(connection, role, as_of=as_of, settings=settings)
        except BaseException:
            connection.close()
            raise
    return connection


async def open_async_connection(
    url: str, role: Role | None = None, **parameters: str | int
) -> psycopg.AsyncConnection[Any]:
    """Return an asynchronous connection in autocommit; arguments and errors are those of `open_connection`."""
    with _named(url):
        connection = await psycopg.AsyncConnection.connect(conninfo(url, **parameters), autocommit=True)
        try:
            await configure_async(connection, role)
        except BaseException:
            await connection.close()
            raise
    return connection


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn what the driver raises while a connection is opened into a sentence that names the server."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        failure = DatabaseBusyError if _NO_CONNECTION_FREE.search(str(error)) else DatabaseUnavailableError
        raise failure(f"{describe(url)} cannot be used: {_one_line(error)}") from None


# libpq passes on no SQLSTATE of a refused connection. A server that speaks another language is called unavailable.
_NO_CONNECTION_FREE: Final = re.compile(
    "too many (clients|connections)|remaining connection slots are reserved|no more connections allowed"
)


def engine(
    url: str,
    *,
    as_of: datetime | None = None,
    role: Role = Role.WRITER,
    application_name: str = "market-data",
    pool_size: int = 5,
    max_overflow: int = 10,
    settings: Mapping[str, str] | None = None,
) -> sa.Engine:
    """Return an engine on psycopg 3, each connection set up by `open_connection`; it connects at its first use.

    Args:
        url: `postgresql://…`, with or without a driver; everything that libpq understands.
        as_of: what `market_data.clock()` returns, aware; None for the real clock.
        role: the role to act as, where the login may and the role exists.
        application_name: shown in pg_stat_activity, unless the URL names another.
        pool_size: connections kept open.
        max_overflow: further ones opened under load.
        settings: further settings of PostgreSQL for each connection, such as `statement_timeout`.

    Raises:
        ConfigurationError: at once, when libpq does not understand the URL.
        DatabaseUnavailableError, DatabaseBusyError: later, from any call that needs a connection, when none can be
            opened.
    """
    import sqlalchemy as sa  # here, because readers do without it

    complete = conninfo(url, application_name=application_name)
    made = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: open_connection(complete, role, as_of=as_of, settings=settings),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=True,  # 0.1 ms a checkout, and a restarted server goes unnoticed
        hide_parameters=True,
    )
    sa.event.listen(made, "handle_error", _name_lost_connection)
    return made


class Inherited(NamedTuple):
    """What the server gives a connection of this login that sets nothing itself."""

    login: str
    database: str
    read_only: bool
    schema: str | None  # where a table without a schema is created


def inherited_settings(url: str) -> Inherited:
    """Return the defaults that another program's connections have; raises as `open_connection` does."""
    with open_connection(url) as connection:
        connection.execute(
            "select set_config('search_path', reset_val, true) from pg_catalog.pg_settings where name = 'search_path'"
        )
        row = connection.execute(
            "select quote_ident(session_user), quote_ident(current_database()), reset_val = 'on', current_schema()"
            " from pg_catalog.pg_settings where name = 'default_transaction_read_only'"
        ).fetchone()
    assert row is not None  # noqa: S101 - a query without a condition has a row
    return Inherited(*row)


def libpq_url(url: str) -> str:
    """Return `url` without an SQLAlchemy driver, as libpq expects it."""
    return re.sub(r"^postgres(?:ql)?(?:\+\w+)?://", "postgresql://", url)


def describe(url: str) -> str:
    """Return which server and database `url` means, for a message: no password, no parameters."""
    parameters = connection_parameters(libpq_url(url))
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "the local socket").split(",")
    ports = str(parameters.get("port", 5432)).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    where = " or ".join(host if host[:1] == "/" else f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
    return f"PostgreSQL at {where} (database {parameters.get('dbname', '?')}, user {parameters.get('user', '?')})"


def server_of(url: str) -> tuple[str, str]:
    """Return the host and port that `url` means, to tell whether two databases are lost together."""
    parameters = connection_parameters(libpq_url(url))
    return parameters.get("host") or parameters.get("hostaddr") or "", str(parameters.get("port", 5432))


def connection_parameters(url: str) -> dict[str, Any]:
    """Return the parameters of a libpq URL, by libpq's names.

    Raises:
        ConfigurationError: it cannot be read; the message shows nothing of it.
    """
    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # libpq's message would show the part of the URL that it cannot read, which may be the password.
        raise ConfigurationError(
            "DATABASE_URL is not a URL that PostgreSQL understands; write @ : / ? # % in the password as "
            "%40 %3A %2F %3F %23 %25, for example DATABASE_URL=postgresql://user:password@localhost:5432/market_data."
        ) from None


def _one_line(error: BaseException) -> str:
    text = re.sub(r"^connection failed: ", "", " ".join(str(error).split()))
    return re.sub(r"\.? Is the server running [^?]*\?", ". Is it running?", text)


def _name_lost_connection(context: ExceptionContext) -> None:
    """Turn a connection lost during a statement into `DatabaseUnavailableError`."""
    if context.is_disconnect and not context.is_pre_ping:
        raise DatabaseUnavailableError(
            f"The connection to PostgreSQL was lost ({said(str(context.original_exception))}). Is it running?"
        ) from context.original_exception


_NOT_MIGRATED: Final = {"42P01", "42703", "3F000"}  # undefined table, column, schema
# Out of connections or memory, a lock or a statement that took longer than the connection's settings allow.
_BUSY: Final = ("53", "55P03", "57014")


# The first statement of a snapshot. To one taken before, the sorted copy of a partition is empty once it is swapped in:
# what locks the tables first waits for the swap, or the swap for it.
LOCK_RECORDS: Final[LiteralString] = (
    "lock table only market_data.records_5m, only market_data.records_15m, only market_data.records_1h, "
    "only market_data.records_4h, only market_data.records_1d in access share mode"
)


@contextmanager
def snapshot(source: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection inside one read-only, repeatable-read transaction: all reads see the same instant.

    Raises:
        DatabaseUnavailableError: the database cannot be reached or has no market data schema.
        DatabaseBusyError: no connection was free, or a statement took longer than the connection's settings allow.
    """
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with unavailable_when_lost(), source.connect().execution_options(**options) as connection, connection.begin():
        connection.exec_driver_sql(LOCK_RECORDS)
        yield connection


def drop_database(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a database and end its connections.

    Not by `with (force)`: that is refused while an autovacuum worker is connected, which only the server's own role may
    end; the plain statement makes it leave.
    """
    ours = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and usesysid is not null"
    connection.execute(ours, (name,))
    connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)))


@contextmanager
def unavailable_when_lost() -> Iterator[None]:
    """Turn what psycopg or SQLAlchemy raises for an unusable database into our errors; see `snapshot`."""
    import sqlalchemy as sa

    try:
        yield
    except sa.exc.TimeoutError as error:
        raise DatabaseBusyError("All connections of this process to PostgreSQL are in use.") from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        failure = _failure(error.orig if isinstance(error, sa.exc.DBAPIError) else error)
        if failure is None:
            raise
        raise failure from error


def _failure(error: BaseException | None) -> DatabaseBusyError | DatabaseUnavailableError | None:
    """Return what an error of psycopg means for the caller; None when it is not about the database's being usable."""
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate in _NOT_MIGRATED:
        return DatabaseUnavailableError("The schema is missing or old; run market-data migrate.")
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return None
    if sqlstate.startswith(_BUSY):
        return DatabaseBusyError(f"PostgreSQL took too long: {type(error).__name__}.")
    return DatabaseUnavailableError(f"PostgreSQL did not answer: {type(error).__name__}.")
