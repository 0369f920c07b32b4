"""The partitions of `market_data.records`: made ahead, and put in order once their time is over.

Ticks store a bar or two of each series, one after the other: a series' month then lies on as many pages as it has bars.
A partition that has settled is written again by series and time, once (`sql/0051_settled_partitions.sql`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.store.copy import StoreConnection

# Bars of a month that is over are corrected for a few days, then rarely; two weeks are what `reconcile` compares.
SETTLES_AFTER: Final = timedelta(days=14)
# A tick at the end of a month finds the next one's partition, also where nothing else ran for weeks.
MADE_AHEAD: Final = timedelta(days=62)
# How far the order of rows on disk follows the order of series: 1 after a load of series by series, 0 after ticks.
IN_ORDER: Final = 0.99
# For how long readers and writers may wait with the swap for whoever holds the partition.
PATIENCE: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of records.

    Attributes:
        name: of the table.
        ends_at: the start of the next one's first bar, aware UTC.
        order: how far the rows follow the order of series, from 0 to 1, as the server last sampled it; None before.
        settled_at: when it was found or put in order; None before that.
        bytes: on disk, indexes included.
    """

    name: str
    ends_at: datetime
    order: float | None
    settled_at: datetime | None
    bytes: int


_PARTITIONS: Final = r"""
select
    c.relname as name,
    (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz as ends_at,
    abs(s.correlation)::float8 as "order",
    p.settled_at,
    pg_total_relation_size(c.oid) as bytes
from pg_catalog.pg_class as c
inner join pg_catalog.pg_inherits as i on i.inhrelid = c.oid
inner join pg_catalog.pg_class as parent on parent.oid = i.inhparent
left join pg_catalog.pg_stats as s on s.schemaname = 'market_data' and s.tablename = c.relname and s.attname = 'series'
left join market_data.settled_partitions as p on p.partition = c.relname
where c.relnamespace = 'market_data'::regnamespace and c.relkind = 'r' and parent.relname ~ '^records_'
order by ends_at, c.relname
"""


def partitions(connection: StoreConnection) -> list[Partition]:
    """Return the partitions of records, the oldest first."""
    return [Partition(**row) for row in connection.rows(_PARTITIONS)]


def make_ahead(connection: StoreConnection, now: datetime) -> None:
    """Make the partitions of the next weeks, and commit them."""
    for timeframe in Timeframe:
        connection.execute(
            "select market_data.make_partitions(%(timeframe)s, %(first)s::timestamptz, %(last)s::timestamptz)::text",
            {"timeframe": str(timeframe), "first": now, "last": now + MADE_AHEAD},
        )
        connection.commit()


def to_settle(connection: StoreConnection, now: datetime) -> list[Partition]:
    """Return the partitions whose time is over and that are not known to be in order, the newest first."""
    waiting = [
        each for each in partitions(connection) if each.settled_at is None and each.ends_at + SETTLES_AFTER <= now
    ]
    return waiting[::-1]


def settle(connection: StoreConnection, partition: Partition, patience: timedelta = PATIENCE) -> int:
    """Put a partition in order, unless it is already, and commit; return how many rows it has.

    Whoever reads or writes the timeframe waits with it, at most for `patience`.

    Raises:
        TransientError: the partition was in use all the while; nothing has changed.
    """
    in_order = partition.order is not None and partition.order >= IN_ORDER
    statement = _NOTE if in_order else "select market_data.settle_partition(%(name)s) as rows"
    connection.execute(
        "select set_config('lock_timeout', %(patience)s, true)", {"patience": f"{patience.total_seconds():.0f}s"}
    )
    rows = connection.rows(statement.replace("{name}", partition.name), {"name": partition.name})[0]["rows"]
    connection.commit()
    return int(rows)


_NOTE: Final = """
insert into market_data.settled_partitions (partition, settled_at, rows, rewritten)
select %(name)s, market_data.clock(), count(*), false from market_data.{name}
returning rows
"""
