"""How every connection to PostgreSQL is set up, for psycopg connections, pools and SQLAlchemy engines alike.

libpq's parameters come from the URL first, then from the caller, then from here. The server's settings for a connection
(UTC, keepalives, the instant of a replay, the role) are sent in one statement, because connection poolers refuse the
startup parameter `options`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from sqlalchemy.engine.interfaces import ExceptionContext


class Role(StrEnum):
    """The group roles of the market data (`sql/0012_privileges.sql`); their names are the same on all servers.

    Acting with fewer rights than the login has keeps a mistake from reaching the audit log. It is no protection from
    the login itself, which can always return to its own rights: for that, DATABASE_URL must name a plain member.
    """

    WRITER = "market_data_writer"
    READER = "market_data_reader"


# The keepalives of client and server: once the other machine is gone, neither side keeps the connection, and with it a
# symbol's lock, for longer than a minute and a half. Without them the server would notice after two hours.
_PARAMETERS: Final[dict[str, str | int]] = {
    "connect_timeout": 10,  # seconds; a server that is up answers in milliseconds, also across a continent
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,  # ms
}
_SETTINGS: Final = {
    "TimeZone": "UTC",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    "client_connection_check_interval": "10s",  # also while a statement runs or waits
}
# The role stays the login's own where the roles were not created, where this database has granted them nothing, and
# where the login is not a member.
_CONFIGURE: Final = """
select set_config(setting.name, setting.value, false)
from unnest(%(names)s::text[], %(values)s::text[]) as setting (name, value)
union all
select set_config('role', r.rolname, false)
from pg_catalog.pg_roles as r
where
    r.rolname = %(role)s
    and pg_has_role(
        r.oid, case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    )
    and has_schema_privilege(r.oid, to_regnamespace('market_data')::oid, 'usage')
"""


def conninfo(url: str, **parameters: str | int) -> str:
    """Return libpq's connection string for `url`, with `parameters` and the defaults for what it does not set.

    Raises:
        ConfigurationError: libpq does not understand the URL.
    """
    plain = libpq_url(url)
    given = connection_parameters(plain)
    missing = {name: value for name, value in {**_PARAMETERS, **parameters}.items() if name not in given}
    return make_conninfo(plain, **missing)


def open_connection(url: str, *, autocommit: bool = False, **parameters: str | int) -> psycopg.Connection[Any]:
    """Return a psycopg connection with the login's own rights and settings; see `conninfo` for `parameters`.

    Raises:
        ConfigurationError: libpq does not understand the URL.
        DatabaseUnavailableError: the server cannot be reached or refuses; the message names it, never a password.
    """
    try:
        return psycopg.connect(conninfo(url, **parameters), autocommit=autocommit)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"{describe(url)} cannot be used: {_one_line(error)}") from None


def configure(
    connection: psycopg.Connection[Any],
    role: Role,
    *,
    as_of: datetime | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Set up a new connection: UTC, keepalives, the replay's instant, further `settings`, and the role to act as."""
    values = {**_SETTINGS, **(settings or {})}
    if as_of is not None:
        values["market_data.as_of"] = as_of.isoformat()
    autocommit, connection.autocommit = connection.autocommit, True  # so that a rollback does not undo it
    connection.execute(_CONFIGURE, {"names": list(values), "values": list(values.values()), "role": role.value})
    connection.autocommit = autocommit


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
    """Return an engine on psycopg 3 whose connections are in UTC; it connects at its first use.

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
        DatabaseUnavailableError: later, from any call that needs a connection, when none can be opened.
    """
    complete = conninfo(url, application_name=application_name)

    def connect() -> psycopg.Connection[Any]:
        connection = open_connection(complete)
        configure(connection, role, as_of=as_of, settings=settings)
        return connection

    made = sa.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=True,  # 0.1 ms a checkout, and a restarted server goes unnoticed
        hide_parameters=True,
    )
    sa.event.listen(made, "handle_error", _name_lost_connection)
    return made


def libpq_url(url: str, *, as_of: datetime | None = None) -> str:
    """Return `url` without an SQLAlchemy driver, as libpq and dbmate expect it.

    With `as_of`, `market_data.clock()` returns that instant on its connections, through libpq's `options`.
    """
    plain = re.sub(r"^postgres(?:ql)?(?:\+\w+)?://", "postgresql://", url)
    if as_of is None:
        return plain
    joint = "&" if "?" in plain else "?"
    return plain + joint + urlencode({"options": f"-c market_data.as_of={as_of.isoformat()}"}, quote_via=quote)


def describe(url: str) -> str:
    """Return which server and database `url` means, for a message: no password, no parameters."""
    parameters = connection_parameters(libpq_url(url))
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    port = "" if host.startswith("/") else f":{parameters.get('port', 5432)}"
    return f"PostgreSQL at {host}{port} (database {parameters.get('dbname', '?')}, user {parameters.get('user', '?')})"


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
            f"The connection to PostgreSQL was lost: {_one_line(context.original_exception)}"
        ) from context.original_exception


_NOT_MIGRATED: Final = {"42P01", "42703", "3F000"}  # undefined table, column, schema


@contextmanager
def snapshot(source: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection inside one read-only, repeatable-read transaction: all reads see the same instant.

    Raises:
        DatabaseUnavailableError: the database cannot be reached or has no market data schema, or a statement took
            longer than the connection's settings allow.
    """
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with unavailable_when_lost(), source.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def unavailable_when_lost() -> Iterator[None]:
    """Turn what SQLAlchemy raises for an unusable database into `DatabaseUnavailableError`."""
    try:
        yield
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", "") in _NOT_MIGRATED:
            raise DatabaseUnavailableError("The schema is missing or old; run market-data migrate.") from error
        raise
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseUnavailableError(f"PostgreSQL did not answer: {type(cause).__name__}.") from error
