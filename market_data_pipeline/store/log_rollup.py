"""The audit log's rows that say "unchanged", summed up by day once they are old (`sql/0055_ingest_log_days.sql`).

What changed, failed, was warned of or was late stays in `ingest_log` for good, and so does each series' newest row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from market_data_pipeline.store.copy import StoreConnection

# Rows of one transaction, about: 0.6 s of processor time, in which no one waits, as nothing else changes old rows.
BATCH: Final = 10_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows of a symbol and day (UTC) that may be summed up; their ids lie in [first_id, last_id]."""

    day: date
    symbol: str
    rows: int
    first_id: int
    last_id: int


# Days before the last one that was summed up are done, but for rows that were a series' newest then.
_FIRST_DAY: Final = """
    select coalesce(
        (select max(day) from market_data.ingest_log_days),
        (select (min(finished_at) at time zone 'UTC')::date from market_data.ingest_log)
    ) as day
"""
_OF_DAY: Final = """
    select symbol, count(*) as rows, min(id) as first_id, max(id) as last_id
    from market_data.ingest_log
    where
        finished_at >= %(begins)s and finished_at < %(ends)s
        and status = 'unchanged' and warning is null and outside_rpo_since is null and coalesce(days_refused, 0) = 0
    group by symbol
    order by symbol
"""


def waiting(connection: StoreConnection, now: datetime, kept_days: int) -> Iterator[Waiting]:
    """Yield what may be summed up of each day that ended `kept_days` days before `now`, the oldest day first.

    Each series' newest row is counted too, and stays. A day is read when it is reached.
    """
    (first,) = connection.rows(_FIRST_DAY)
    last = (now.astimezone(UTC) - timedelta(days=kept_days)).date()
    day: date | None = first["day"]
    connection.commit()
    while day is not None and day < last:
        begins = datetime.combine(day, time(), UTC)
        found = connection.rows(_OF_DAY, {"begins": begins, "ends": begins + timedelta(days=1)})
        connection.commit()
        yield from (Waiting(day, **row) for row in found)
        day += timedelta(days=1)


_ROLL_UP: Final = """
    select market_data.roll_up_ingest_log(
        %(day)s, %(symbols)s, %(timeframes)s, %(first_id)s::bigint, %(last_id)s::bigint
    ) as taken
"""


def roll_up(connection: StoreConnection, now: datetime, kept_days: int) -> Iterator[int]:
    """Sum up what waits for it, and yield after each commit how many rows it took out of the log.

    Raises:
        TransientError: the database was lost; what was committed stays, and the next time goes on with the rest.
    """
    batch: list[Waiting] = []
    for each in waiting(connection, now, kept_days):
        if batch and (each.day != batch[0].day or sum(one.rows for one in batch) + each.rows > BATCH):
            yield _committed(connection, batch)
            batch = []
        batch.append(each)
    if batch:
        yield _committed(connection, batch)


def _committed(connection: StoreConnection, batch: list[Waiting]) -> int:
    (row,) = connection.rows(
        _ROLL_UP,
        {
            "day": batch[0].day,
            "symbols": [one.symbol for one in batch],
            "timeframes": list(Timeframe),
            "first_id": min(one.first_id for one in batch),
            "last_id": max(one.last_id for one in batch),
        },
    )
    connection.commit()
    return int(row["taken"])
