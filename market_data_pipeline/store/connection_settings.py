"""What every connection to PostgreSQL needs of the server's settings, and how it is set.

A server, a database or a login may have other defaults: a date style, a time zone, a time limit, read-only. Each of
our connections, whichever driver or pool opens it, therefore begins with the one statement below. It is no startup
parameter, because connection poolers refuse those. `store.connection` has the functions that open connections; dbmate,
which is another program, gets the same values in its URL.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import psycopg

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.store.pooler import refuse_transaction_pooling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime


class Role(StrEnum):
    """The group roles of the market data (`sql/0012_privileges.sql`); their names are the same on all servers.

    Acting with fewer rights than the login has keeps a mistake from reaching the audit log. It is no protection from
    the login itself, which can always return to its own rights: for that, DATABASE_URL must name a plain member.
    """

    WRITER = "market_data_writer"
    READER = "market_data_reader"


# What text means, in a statement and on the wire: psycopg reads and writes dates, intervals, bytes, numbers and arrays
# in these forms.
_FORMATS: Final = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",  # the shortest text that is the same number; 0 and less round
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "search_path": "pg_catalog",  # every statement of ours names the schema
}
# How long things may take, and what a transaction is. 0 means no limit: a caller that wants one passes it, and a
# connection that holds a lock must not be ended for being idle.
_LIMITS: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",  # PostgreSQL 17
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
}
# `synchronous_commit` is left to the server: a crash may lose the last commits, which the next run fetches again.
NEEDED: Final = {**_FORMATS, **_LIMITS}

# Once the other machine is gone, neither side keeps the connection, and with it a symbol's lock, for longer than a
# minute and a half. Without keepalives the server would notice after two hours.
KEEPALIVES: Final = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    "tcp_user_timeout": "90000",  # ms; keepalives do not look at a connection on which the server waits for an answer
    "client_connection_check_interval": "10s",  # also while a statement runs or waits
}

# Nothing is set, and no row returned, when the server's process is not the expected one: it would be set on a process
# that a pooler shares with strangers. A setting that the server's version does not have is skipped. The role stays the
# login's own where the roles were not created, where this database has granted them nothing, and where the login is not
# a member. The last row is there only where no trigger would fire: only a superuser may set that, so it is not among
# the settings above.
_CONFIGURE: Final = """
select set_config(setting.name, setting.value, false)
from unnest(%(names)s::text[], %(values)s::text[]) as setting (name, value)
where
    coalesce(pg_backend_pid() = %(process)s, true)
    and (setting.name like '%%.%%' or current_setting(setting.name, true) is not null)
union all
select set_config('role', r.rolname, false)
from pg_catalog.pg_roles as r
where
    coalesce(pg_backend_pid() = %(process)s, true)
    and r.rolname = %(role)s
    and pg_has_role(
        r.oid, case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    )
    and has_schema_privilege(r.oid, to_regnamespace('market_data')::oid, 'usage')
union all
select 'no trigger fires'
where
    coalesce(pg_backend_pid() = %(process)s, true)
    and current_setting('session_replication_role') = 'replica'
"""
_NO_TRIGGERS: Final = ("no trigger fires",)
_FIRE_TRIGGERS: Final = "set session_replication_role to origin"


def configure(
    connection: psycopg.Connection[Any],
    role: Role | None = None,
    *,
    as_of: datetime | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Set up a new connection.

    Args:
        connection: it has no transaction open.
        role: the role to act as, where it exists and the login may; None for the login's own rights.
        as_of: what `market_data.clock()` returns, aware; None for the real clock.
        settings: further settings, or other values for those that every connection has.

    Raises:
        ConfigurationError: a pooler in transaction mode stands in front of the server, or no trigger would fire.
    """
    autocommit, connection.autocommit = connection.autocommit, True  # so that a rollback does not undo it
    values = _values(role, as_of, settings)
    done = connection.execute(_CONFIGURE, values | {"process": connection.info.backend_pid}).fetchall()
    if not done:
        refuse_transaction_pooling(connection.info)
        done = connection.execute(_CONFIGURE, values | {"process": None}).fetchall()
    if _NO_TRIGGERS in done:
        with _refused_without_triggers(connection.info):
            connection.execute(_FIRE_TRIGGERS)
    connection.autocommit = autocommit


async def configure_async(connection: psycopg.AsyncConnection[Any], role: Role | None = None) -> None:
    """Set up a new asynchronous connection, which is in autocommit; see `configure`."""
    values = _values(role, None, None)
    answer = await connection.execute(_CONFIGURE, values | {"process": connection.info.backend_pid})
    if not (done := await answer.fetchall()):
        await asyncio.to_thread(refuse_transaction_pooling, connection.info)
        done = await (await connection.execute(_CONFIGURE, values | {"process": None})).fetchall()
    if _NO_TRIGGERS in done:
        with _refused_without_triggers(connection.info):
            await connection.execute(_FIRE_TRIGGERS)


@contextmanager
def _refused_without_triggers(info: psycopg.ConnectionInfo) -> Iterator[None]:
    """Turn a refusal to let triggers fire into a sentence.

    Raises:
        ConfigurationError: the login may not set what it was given.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigurationError(
            f"PostgreSQL gives {info.user} session_replication_role=replica in the database {info.dbname}, with which "
            "no trigger fires and the audit log, the read API and the stored values would go wrong; a superuser takes "
            f"that back with `alter role {info.user} reset session_replication_role` (or `alter database` or `alter "
            "system`, wherever it was set)."
        ) from None


def _values(role: Role | None, as_of: datetime | None, more: Mapping[str, str] | None) -> dict[str, object]:
    settings = {**NEEDED, **KEEPALIVES, **(more or {})}
    if as_of is not None:
        settings["market_data.as_of"] = as_of.isoformat()
    return {"names": list(settings), "values": list(settings.values()), "role": role and role.value}
