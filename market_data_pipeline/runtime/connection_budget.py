"""How many connections to PostgreSQL everything that runs needs together, checked when it starts.

Counted ten times a second while `up` followed 125 series, four runs worked (a full refresh of each tier and a scheduled
one) and 32 readers asked the API at once: 50. The code server, the daemon, the UI and the runs kept 20 for Dagster's
storage, the runs 16 of their own (two symbols, a lock and the rate limit each), the API 8, `up` and the backfill 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.store.connection import open_connection, server_of

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

NEEDED: Final = 60  # the 50 above; five runs may work at once, and each needs ten
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
