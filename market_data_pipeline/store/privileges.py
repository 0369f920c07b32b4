"""Grant the privileges of the roles in `sql/0012_privileges.sql`, or return the SQL that an administrator must run.

Roles belong to the whole server, so the login that migrates may not be allowed to create them; the pipeline then works
with the rights of its own login.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from market_data_pipeline.store.connection import Role, libpq_url, open_connection

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

_APPLY: Final = "select market_data.apply_privileges(coalesce(%s::text, current_user::text))"
_ALL_GRANTED: Final = """
select count(*) = cardinality(%(roles)s::text[])
from pg_catalog.pg_roles as r
where
    r.rolname = any(%(roles)s::text[])
    and pg_has_role(
        coalesce(%(login)s::name, current_user),
        r.oid,
        case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    )
    and has_schema_privilege(r.oid, to_regnamespace('market_data')::oid, 'usage')
"""


def login_of(url: str) -> str | None:
    """Return the login that a database URL names; None when it leaves that to libpq."""
    user = conninfo_to_dict(libpq_url(url)).get("user")
    return None if user is None else str(user)


def grant_privileges(connection: psycopg.Connection[Any], login: str | None, *, again: bool) -> str | None:
    """Create the roles, grant them to `login` and grant their privileges; return SQL for an administrator, or None.

    Args:
        connection: the owner's, in autocommit.
        login: the pipeline's; the connection's own when None.
        again: grant even if everything is granted, because there may be new relations.
    """
    names = {"roles": [role.value for role in Role], "login": login}
    if not again:
        try:
            granted = connection.execute(_ALL_GRANTED, names).fetchone()
        except psycopg.errors.UndefinedObject:  # this server does not have the pipeline's login
            granted = None
        if granted and granted[0]:
            return None
    try:
        row = connection.execute(_APPLY, (login,)).fetchone()
    except psycopg.errors.InsufficientPrivilege:  # not the owner's connection
        return f"select market_data.apply_privileges('{login or connection.info.user}')"
    return None if row is None else row[0]


def missing_privileges(settings: Settings) -> str | None:
    """Return the SQL that an administrator must run before the audit log is protected; None if it is.

    Raises:
        DatabaseUnavailableError: the server cannot be reached.
    """
    with open_connection(settings.owner_url, autocommit=True) as connection:
        return grant_privileges(connection, login_of(settings.database_url), again=False)
