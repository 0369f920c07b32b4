"""Who is connected to a database of the test server: its clients' processes, and their end.

The process of a connection that was closed ends in its own time, so an exact number has to be waited for.
"""

from __future__ import annotations

from typing import Final

import psycopg

from market_data_pipeline.store.connection import libpq_url

_LOOKING: Final = "a test that looks"  # the name of the connections from here, which do not count
# An autovacuum worker is no client, and only the server's own role may end it.
_CLIENTS: Final = """
from pg_stat_activity
where datname = coalesce(%(database)s, current_database()) and backend_type = 'client backend'
    and application_name <> %(looking)s and application_name = coalesce(%(named)s, application_name)
"""


def clients(url: str, *, database: str | None = None, named: str | None = None) -> set[int]:
    """Return the processes of clients in the database of `url`, or another of its server; only those `named` so."""
    return _ask(url, f"select pid {_CLIENTS}", database, named)


def end_clients(url: str, *, database: str | None = None, named: str | None = None) -> set[int]:
    """End the same, and return them once they have ended."""
    return _ask(url, f"select pid, pg_terminate_backend(pid, 60000) {_CLIENTS}", database, named)


def _ask(url: str, statement: str, database: str | None, named: str | None) -> set[int]:
    values = {"database": database, "named": named, "looking": _LOOKING}
    with psycopg.connect(libpq_url(url), autocommit=True, application_name=_LOOKING) as connection:
        return {pid for pid, *_ in connection.execute(statement.encode(), values)}
