"""How old the last good backup is, and whether the next one is late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.reports.models import LastBackup

if TYPE_CHECKING:
    from datetime import datetime

# The real clock, in a replay too: a backup is of what is stored, whatever time that speaks of.
_LAST: Final = sa.text("""
    select
        taken_at, finished_at, location, bytes, next_due_at, clock_timestamp() > next_due_at as late,
        extract(epoch from clock_timestamp() - taken_at)::double precision as age_seconds
    from market_data.backups
    order by id desc
    limit 1
""")


def last_backup(connection: sa.Connection) -> LastBackup | None:
    """Return the last finished backup; None when there is none."""
    row = connection.execute(_LAST).mappings().first()
    return None if row is None else LastBackup(**{**row, "late": bool(row["late"])})


def backup_is_late(last: LastBackup | None) -> list[str]:
    """Return a sentence if the next scheduled backup has not come."""
    if last is None or not last.late:
        return []
    assert last.next_due_at is not None  # noqa: S101 - late by it
    return [
        f"The last backup was made at {_minute(last.finished_at)}, and the next one was due by "
        f"{_minute(last.next_due_at)}: `market-data history` shows why it failed, `market-data backup` makes one now."
    ]


def _minute(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"
