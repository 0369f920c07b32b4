"""Whether a connection pooler stands in front of PostgreSQL, and whether it may.

A pooler in session mode gives each connection a process of the server for as long as it is open: everything works. In
transaction mode the next transaction may be in another process, without the settings, role and locks of the one before,
and notifications never arrive: symbol locks would be left behind on strangers' connections, and the read API would keep
answers that have changed.

A pooler tells its client another process id than the server does, so every connection finds one without a further
request (`connection_settings`); only then is its mode looked into, once for each process of ours.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from psycopg import ConnectionInfo

# A pooler that hands out its connections in turn may give the first client its old process once more by chance; a pool
# in session mode must have room for all looks.
_LOOKS: Final = 3
_in_session_mode: set[tuple[str, int, str, str]] = set()


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server's process is not the one that the connection was opened on."""
    row = connection.execute("select pg_backend_pid()").fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def refuse_transaction_pooling(info: ConnectionInfo) -> None:
    """Look into the mode of the pooler that `info` is connected to.

    Raises:
        ConfigurationError: it does not keep a process of the server for each connection.
    """
    key = (info.host, info.port, info.dbname, info.user)
    if key in _in_session_mode:
        return
    if _shares_processes(make_conninfo(**info.get_parameters(), password=info.password or None)):
        raise ConfigurationError(
            f"The connection pooler at {info.host}:{info.port} is in transaction mode, which loses locks, settings and "
            "notifications between two transactions; name PostgreSQL itself or a pool in session mode (PgBouncer: "
            "pool_mode = session) in DATABASE_URL and MARKET_DATA_OWNER_URL."
        )
    _in_session_mode.add(key)


def _shares_processes(conninfo: str) -> bool:
    """Return whether a process of the server serves another connection while the first one is open and idle.

    The first connection's transaction has ended; each further one keeps its own open. A process that is seen on two of
    them, or another one for the first, tells that connections are not given a process each. Nothing is set or locked.
    """
    with ExitStack() as stack:

        def connect(*, autocommit: bool) -> psycopg.Connection[Any]:
            made = psycopg.connect(conninfo, autocommit=autocommit, prepare_threshold=None)
            stack.callback(made.close)
            return made

        first = connect(autocommit=True)
        own = _process(first)
        for _ in range(_LOOKS):
            if _process(connect(autocommit=False)) == own or _process(first) != own:
                return True
    return False


def _process(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    assert row is not None  # noqa: S101 - a query without a condition has a row
    return int(row[0])
