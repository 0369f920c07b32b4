"""As whom a session acts: the writer for the pipeline, the reader for the API and reports.

The rights of both are in `sql/0012_privileges.sql`. Acting with fewer rights than the login has keeps a mistake from
reaching the audit trail; a login that has no more (DATABASE_URL of a mere member) keeps everything else from it, too,
since a session can always go back to its login's rights. Keep out: what migrations need, which run as the owner.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


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
