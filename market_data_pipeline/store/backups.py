"""The backups that were made of a database: `market_data.backups`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.store.connection import open_connection

if TYPE_CHECKING:
    from datetime import datetime, timedelta

_EXISTS: Final = "select to_regclass('market_data.backups') is not null"
_RECORD: Final = """
insert into market_data.backups (taken_at, finished_at, location, bytes, next_due_at)
values (%s, now(), %s, %s, now() + %s)
"""


def record_backup(url: str, *, taken_at: datetime, location: str, size: int, next_within: timedelta | None) -> None:
    """Record a finished backup; nothing where the schema is older than the table, as before an upgrade.

    Args:
        url: of the database.
        taken_at: the instant of its snapshot.
        location: where it is.
        size: bytes of its files.
        next_within: the time from now within which the next one is due; None when none is scheduled.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    with open_connection(url) as connection:
        exists = connection.execute(_EXISTS).fetchone()
        if exists and exists[0]:
            connection.execute(_RECORD, (taken_at, location, size, next_within))
