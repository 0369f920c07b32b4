"""Symbols that moved to another tier: their partitions there show at once what is held of them.

A series' rows know no tier, so nothing is fetched or computed when its symbol moves. Only Dagster would show its new
partitions as never made until the tier's next refresh. The old tier's materializations stay in the event log and show
again if the symbol comes back. Keep out: registering partitions (partitions, sensors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.orchestration.partitions import PartitionChange, bars_key, features_key, partition_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine

# Ten events each, 11 ms an event: six seconds of a tick, of which Dagster allows 60. The others follow in the next one.
_AT_ONCE: Final = 50

_HELD: Final = """
select symbol, timeframe, first_ts, last_ts, bar_count, feature_count, verified_at
from market_data.series_state
where symbol = any(cast(:symbols as text[])) and features_computed_at is not null
order by symbol, timeframe
"""


def first_of(changes: Iterable[PartitionChange]) -> list[PartitionChange]:
    """Return as much of the changes as a tick can take, additions first cut to `_AT_ONCE` symbols in all."""
    left = _AT_ONCE
    taken = []
    for tier, added, removed in changes:
        taken.append(PartitionChange(tier, added[:left], removed))
        left -= len(added[:left])
    return taken


def carried_over(
    instance: dg.DagsterInstance, engine: Engine, changes: Sequence[PartitionChange]
) -> list[dg.AssetMaterialization]:
    """Return the materializations that show what is held of symbols that came to a tier, where it shows nothing yet."""
    import sqlalchemy as sa

    events = []
    for tier, added, _ in changes:
        if not added:
            continue
        with engine.connect() as connection:
            rows = connection.execute(sa.text(_HELD), {"symbols": added}).all()
        shown = (
            {key(tier): instance.get_materialized_partitions(key(tier)) for key in (bars_key, features_key)}
            if rows
            else {}
        )
        for row in rows:
            partition = partition_key(Series(row.symbol, Timeframe(row.timeframe)))
            for key, count in ((bars_key(tier), row.bar_count), (features_key(tier), row.feature_count)):
                if partition not in shown[key]:
                    events.append(_shown(key, tier, partition, count, row))
    return events


def _shown(key: dg.AssetKey, tier: Tier, partition: str, count: int, row: object) -> dg.AssetMaterialization:
    instants = {"first_bar": "first_ts", "last_bar": "last_ts", "verified_at": "verified_at"}
    return dg.AssetMaterialization(
        key,
        partition=partition,
        description=f"Held since before the symbol came to the {tier} tier; nothing was made anew.",
        metadata={
            "dagster/partition_row_count": count,
            "status": "carried over",
            **{
                name: dg.MetadataValue.timestamp(instant)
                for name, column in instants.items()
                if (instant := getattr(row, column)) is not None
            },
        },
    )
