"""As whom a session acts: the writer for the pipeline, the reader for the API and reports.

The rights of both are in `sql/0012_privileges.sql`. Acting with fewer rights than the login has keeps a mistake from
reaching the audit trail; a login that has no more (DATABASE_URL of a mere member) keeps everything else from it, too,
since a session can always go back to its login's rights. Keep out: what migrations need, which run as the owner.

What a connection for bars begins with, whichever driver makes it: libpq's parameters, settings, role.

Add here: what every session needs, in words that both drivers send. Keep out: the connections (bulk, arrow).

Connections to PostgreSQL.

Add here: what every connection needs. Keep out: statements (each family of relations has its module) and starting
a server (sandbox.postgres).

One consistent look at the database.

Everything that is read inside `snapshot` belongs to the same instant, and nothing is changed by it.
Keep out: statements.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, LiteralString
from urllib.parse import quote, urlencode

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import ExceptionContext


class Role(StrEnum):
    """The group roles of the market data; their names are the same in all databases of a server."""

    WRITER = "market_data_writer"
    READER = "market_data_reader"


# Nothing happens where the roles were not made, or this database has not granted them anything, or the login is no
# member: then the login's own rights have to do. `{}` is the place of the role's name in the driver's notation.
_ACT_AS: Final = """
select set_config('role', r.rolname, false)
from pg_catalog.pg_roles as r
where
    r.rolname = {}
    and pg_has_role(
        r.oid, case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    )
    and has_schema_privilege(r.oid, to_regnamespace('market_data')::oid, 'usage')
"""

ACT_AS_PSYCOPG: Final = _ACT_AS.format("%s")

ACT_AS_NUMBERED: Final = _ACT_AS.format("$1")

# A statement waits so long for a table that somebody else has locked. Our own transactions hold a row for
# milliseconds; whoever waits a minute meets an ALTER TABLE or a VACUUM FULL, and the next run is as good.
_LOCK_TIMEOUT: Final = "60s"

CONNECT_TIMEOUT_SECONDS: Final = 10  # a server that is up answers in milliseconds, also across a continent


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

_SET_KNOWN: Final = """
select set_config(s.name, wanted.value, false)
from pg_settings as s
inner join unnest($1::text[], $2::text[]) as wanted (name, value) on lower(wanted.name) = lower(s.name)
"""


def session_statements(as_of: datetime | None, role: Role) -> Iterator[tuple[LiteralString, tuple[object, ...]]]:
    """Yield what a session begins with: its settings, the instant of a replay, and as whom it acts."""
    yield _SET_KNOWN, (list(_SESSION), list(_SESSION.values()))
    if as_of is not None:
        yield "select set_config('market_data.as_of', $1, false)", (as_of.isoformat(),)
    yield ACT_AS_NUMBERED, (role.value,)


def missing_parameters(url: str) -> dict[str, str | int]:
    """Return what libpq connects with beside the URL: whatever of `_LIBPQ` it does not say itself."""
    given = connection_parameters(libpq_url(url))
    return {name: value for name, value in _LIBPQ.items() if name not in given}


def engine(
    url: str,
    *,
    as_of: datetime | None = None,
    role: Role = Role.WRITER,
    application_name: str = "market-data",
    pool_size: int = 5,
    max_overflow: int = 10,
) -> sa.Engine:
    """Return an engine on psycopg 3 whose sessions run in UTC; nothing is connected before its first use.

    Args:
        url: `postgresql://…`, with or without a driver; everything that libpq understands.
        as_of: what `market_data.clock()` answers in its sessions, aware; None for the real clock.
        role: as whom they act, where the login may and the role has been made.
        application_name: shown in pg_stat_activity, unless the URL names another.
        pool_size: connections kept open.
        max_overflow: further ones opened under load.

    Raises:
        ConfigurationError: at once, when libpq does not understand the URL.
        DatabaseUnavailableError: later, from whatever needs a connection, when there is none to be had.
    """
    conninfo = libpq_url(url)
    parameters = connection_parameters(conninfo)
    more = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": application_name}
    missing = {name: value for name, value in more.items() if name not in parameters}

    def connect() -> psycopg.Connection[Any]:
        connection = open_connection(conninfo, **missing)
        # Statements instead of the startup parameter `options`, which connection poolers refuse.
        connection.autocommit = True
        connection.execute("select set_config('TimeZone', 'UTC', false)")
        if as_of is not None:
            connection.execute("select set_config('market_data.as_of', %s, false)", (as_of.isoformat(),))
        connection.execute(ACT_AS_PSYCOPG, (role.value,))
        connection.autocommit = False
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


def open_connection(url: str, **parameters: Any) -> psycopg.Connection[Any]:
    """Return a psycopg connection.

    Raises:
        DatabaseUnavailableError: the server cannot be reached or refuses; the sentence names it, never a password.
    """
    try:
        return psycopg.connect(url, **parameters)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"{describe(url)} cannot be used: {_one_line(error)}") from None


def libpq_url(url: str, *, as_of: datetime | None = None) -> str:
    """Return `url` without an SQLAlchemy driver, as libpq, ADBC and dbmate take it.

    With `as_of` its sessions see that instant as `market_data.clock()`, by way of libpq's `options`.
    """
    plain = re.sub(r"^postgres(?:ql)?(?:\+\w+)?://", "postgresql://", url)
    if as_of is None:
        return plain
    joint = "&" if "?" in plain else "?"
    return plain + joint + urlencode({"options": f"-c market_data.as_of={as_of.isoformat()}"}, quote_via=quote)


def describe(url: str) -> str:
    """Return which server and database `url` means, for a sentence: no password, no parameters."""
    parameters = connection_parameters(libpq_url(url))
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    port = "" if host.startswith("/") else f":{parameters.get('port', 5432)}"
    return f"PostgreSQL at {host}{port} (database {parameters.get('dbname', '?')}, user {parameters.get('user', '?')})"


def server_of(url: str) -> tuple[str, str]:
    """Return the host and port that `url` means, to tell whether two databases are lost together."""
    parameters = connection_parameters(libpq_url(url))
    return parameters.get("host") or parameters.get("hostaddr") or "", str(parameters.get("port", 5432))


def connection_parameters(url: str) -> dict[str, Any]:
    """Return what a libpq URL says, by libpq's names.

    Raises:
        ConfigurationError: it cannot be read; the sentence shows nothing of it.
    """
    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # libpq's words would show the part of the URL that it stumbles over, which may be the password.
        raise ConfigurationError(
            "DATABASE_URL is not a URL that PostgreSQL understands; write @ : / ? # % in the password as "
            "%40 %3A %2F %3F %23 %25, for example DATABASE_URL=postgresql://user:password@localhost:5432/market_data."
        ) from None


def _one_line(error: BaseException) -> str:
    text = re.sub(r"^connection failed: ", "", " ".join(str(error).split()))
    return re.sub(r"\.? Is the server running [^?]*\?", ". Is it running?", text)


def _name_lost_connection(context: ExceptionContext) -> None:
    """Turn the loss of a connection in mid-work into the failure that callers know."""
    if context.is_disconnect and not context.is_pre_ping:
        raise DatabaseUnavailableError(
            f"The connection to PostgreSQL was lost: {_one_line(context.original_exception)}"
        ) from context.original_exception


_NOT_MIGRATED: Final = {"42P01", "42703", "3F000"}  # undefined table, column, schema


@contextmanager
def snapshot(source: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection inside one read-only, repeatable-read transaction.

    Raises:
        DatabaseUnavailableError: the database cannot be reached or has no market data schema, or a statement took
            longer than the session allows.
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
