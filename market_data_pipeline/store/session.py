"""What a connection for bars begins with, whichever driver makes it: libpq's parameters, settings, role.

Add here: what every session needs, in words that both drivers send. Keep out: the connections (bulk, arrow).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, LiteralString

from market_data_pipeline.store.database import CONNECT_TIMEOUT_SECONDS, connection_parameters, libpq_url
from market_data_pipeline.store.roles import ACT_AS_NUMBERED, Role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

# A statement waits so long for a table that somebody else has locked. Our own transactions hold a row for
# milliseconds; whoever waits a minute meets an ALTER TABLE or a VACUUM FULL, and the next run is as good.
_LOCK_TIMEOUT: Final = "60s"
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
