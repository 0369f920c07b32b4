"""How many connections to PostgreSQL everything that runs needs together, checked when it starts.

Counted while all of it worked: the code server, the daemon and the UI keep 2 to 5 each for Dagster's storage, the read
API up to 10, each of three refreshes 3 (its shard, its lock, its events), and `up` itself 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.store.connection import open_connection, server_of

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

NEEDED: Final = 40  # 25 in a quiet hour; the rest for a moment in which everything is asked at once
# Others' connections are counted, ours are not: a second start must not warn because of what the first one left.
_FREE: Final = """
select
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
    - (select count(*) from pg_stat_activity where backend_type = 'client backend' and usename <> current_user) as free,
    current_setting('max_connections')::integer as allowed
"""


def too_few_connections(settings: Settings) -> str | None:
    """Return a sentence on each server that does not allow enough connections; None when all do."""
    servers = {server_of(url): url for url in (settings.dagster_postgres_url, settings.database_url)}
    for url in servers.values():
        with open_connection(url, autocommit=True) as connection:
            [free, allowed] = connection.execute(_FREE).fetchone() or (0, 0)
        if free < NEEDED:
            return (
                f"PostgreSQL allows {allowed} connections, of which {max(free, 0)} are left for this project; it needs "
                f"up to {NEEDED}. Raise max_connections, or requests and runs may fail."
            )
    return None
