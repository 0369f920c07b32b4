"""Connections to PostgreSQL.

Add here: what every connection needs. Keep out: statements (each family of relations has its module) and starting
a server (sandbox.postgres).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from market_data_pipeline.domain.failures import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.store.roles import ACT_AS_PSYCOPG, Role

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExceptionContext

CONNECT_TIMEOUT_SECONDS: Final = 10  # a server that is up answers in milliseconds, also across a continent


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
