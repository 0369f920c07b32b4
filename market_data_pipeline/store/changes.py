"""What changed in which series since a copy of it was made, as the audit log has it.

A series' position is its last row of `ingest_log` that says `ok`: the last commit that changed its bars or features. A
copy that is at the same position holds the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Series, Timeframe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.store.copy import StoreConnection


class Position(NamedTuple):
    """A row of `ingest_log`: its id, and when the database recorded it in microseconds since 1970 UTC.

    In a database that was restored from a backup, an id may come a second time, the instant does not. Both are 0 for a
    series that was filled without a log.
    """

    log_id: int
    recorded_us: int


NOWHERE: Final = Position(0, 0)


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """A series as the database holds it; instants are aware UTC, None where there is none.

    Attributes:
        series: which one.
        position: its last change.
        revision: commits that changed its bars.
        first_ts: start of the first bar, held or superseded.
        last_ts: start of the last bar, held or superseded.
        settled_until: bars before it are final, but for rare corrections.
        bar_count: bars held.
    """

    series: Series
    position: Position
    revision: int
    first_ts: datetime | None
    last_ts: datetime | None
    settled_until: datetime | None
    bar_count: int


_RECORDED_US: Final = "(extract(epoch from coalesce({0}.recorded_at, {0}.finished_at)) * 1000000)::bigint"
_STORED: Final = f"""
    select
        s.symbol,
        s.timeframe,
        s.revision,
        s.settled_until,
        s.bar_count,
        least(s.first_ts, old.first_ts) as first_ts,
        greatest(s.last_ts, old.last_ts) as last_ts,
        coalesce(newest.id, 0) as log_id,
        coalesce(newest.recorded_us, 0) as recorded_us
    from market_data.series_state as s
    left join lateral (
        select l.id, {_RECORDED_US.format("l")} as recorded_us
        from market_data.ingest_log as l
        where l.symbol = s.symbol and l.timeframe = s.timeframe and l.status = 'ok'
        order by l.id desc
        limit 1
    ) as newest on true
    cross join lateral (
        select min(r.ts) as first_ts, max(r.ts) as last_ts
        from market_data.bar_revisions as r
        where r.symbol = s.symbol and r.timeframe = s.timeframe
    ) as old
    where
        s.timeframe = any(%(timeframes)s::text[])
        and (%(symbols)s::text[] is null or s.symbol = any(%(symbols)s::text[]))
    order by s.symbol
"""  # noqa: S608 - a constant


def stored_series(
    connection: StoreConnection, timeframes: Sequence[Timeframe], symbols: Sequence[str] | None = None
) -> dict[Series, StoredSeries]:
    """Return every series of the timeframes, by symbol; only those of `symbols` where they are named."""
    rows = connection.rows(_STORED, {"timeframes": list(timeframes), "symbols": symbols and list(symbols)})
    found = {}
    for row in rows:
        series = Series(row.pop("symbol"), Timeframe(row.pop("timeframe")))
        found[series] = StoredSeries(series, Position(row.pop("log_id"), row.pop("recorded_us")), **row)
    return found


_CHANGES: Final = f"""
    with held as (
        select *
        from unnest(%(symbols)s::text[], %(log_ids)s::text[]::bigint[], %(recorded)s::text[]::bigint[])
            as held (symbol, id, recorded_us)
    )

    select held.symbol, l.changed_from, l.changed_until
    from held
    inner join market_data.ingest_log as l
        on l.symbol = held.symbol and l.timeframe = %(timeframe)s and l.status = 'ok' and l.id > held.id
    union all
    select held.symbol, null, null
    from held
    where held.id > 0 and not exists (
        select from market_data.ingest_log as l
        where
            l.id = held.id
            and l.symbol = held.symbol
            and l.timeframe = %(timeframe)s
            and {_RECORDED_US.format("l")} = held.recorded_us
    )
"""  # noqa: S608 - a constant


def changes_since(
    connection: StoreConnection, timeframe: Timeframe, held: Mapping[str, Position]
) -> dict[str, list[Interval] | None]:
    """Return, by symbol, the intervals of whole bars in which a series may have changed since a position.

    Symbols without changes are left out. None stands for the whole series: a change does not say where it was, or the
    position is not one of this database.
    """
    rows = connection.rows(
        _CHANGES,
        {
            "timeframe": str(timeframe),
            "symbols": list(held),
            # As texts: psycopg takes the type of a list of numbers from one of them, and may take one too small.
            "log_ids": [str(position.log_id) for position in held.values()],
            "recorded": [str(position.recorded_us) for position in held.values()],
        },
    )
    changes: dict[str, list[Interval] | None] = {}
    for row in rows:
        known = changes.setdefault(row["symbol"], [])
        if row["changed_from"] is None:
            changes[row["symbol"]] = None
        elif known is not None:
            known.append(Interval(row["changed_from"], row["changed_until"]))
    return changes
