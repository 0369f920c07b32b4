"""Granting what the roles of `sql/0012_privileges.sql` may do, and saying what only an administrator can do.

Roles belong to the server, so whoever migrates may not be allowed to make them; the pipeline then works with the rights
of its login. Keep out: acting as a role (roles), and what each may do (the migration).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from market_data_pipeline.store.connection import Role, libpq_url, open_connection

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

_APPLY: Final = "select market_data.apply_privileges(coalesce(%s::text, current_user::text))"
_WHOLE: Final = """
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
    """Return the login that a database URL names; None when it leaves it to libpq."""
    user = conninfo_to_dict(libpq_url(url)).get("user")
    return None if user is None else str(user)


def grant_privileges(connection: psycopg.Connection[Any], login: str | None, *, anew: bool) -> str | None:
    """Make the roles, give them to `login` and grant what they may do; return the SQL that an administrator has to run.

    Args:
        connection: of the owner, in autocommit.
        login: the pipeline's; the connection's own when None.
        anew: grant also where all is granted, because there may be new relations.
    """
    names = {"roles": [role.value for role in Role], "login": login}
    if not anew:
        try:
            whole = connection.execute(_WHOLE, names).fetchone()
        except psycopg.errors.UndefinedObject:  # the pipeline's login is not known to this server
            whole = None
        if whole and whole[0]:
            return None
    try:
        row = connection.execute(_APPLY, (login,)).fetchone()
    except psycopg.errors.InsufficientPrivilege:  # not the owner's connection
        return f"select market_data.apply_privileges('{login or connection.info.user}')"
    return None if row is None else row[0]


def lacking_privileges(settings: Settings) -> str | None:
    """Return the SQL that an administrator has to run before the database guards the audit trail; None if it does.

    Raises:
        DatabaseUnavailableError: the server cannot be reached.
    """
    with open_connection(settings.owner_url, autocommit=True) as connection:
        return grant_privileges(connection, login_of(settings.database_url), anew=False)
