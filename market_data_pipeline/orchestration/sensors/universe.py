"""The universe sensor: Dagster's partitions follow the `symbols` table, tier changes included.

Symbols are dynamic partitions (https://docs.dagster.io/guides/build/partitions-and-backfills). A series' rows have no
tier, so nothing is fetched or computed when its symbol changes tier; but Dagster would show its new partitions as never
materialized until the tier's next refresh. So they are materialized from what is held. The old tier's materializations
stay in the event log and show again if the symbol comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.series import Series, Tier
from market_data_pipeline.orchestration.partitions import (
    PartitionChange,
    bars_key,
    features_key,
    partition_changes,
    partition_key,
    symbol_partitions,
)
from market_data_pipeline.orchestration.resources import PipelineResource

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.store.series_state import HeldSeries

# `market-data universe add` registers partitions itself; this is for changes made elsewhere.
_INTERVAL_SECONDS: Final = 30

# Ten events each, 11 ms an event: six seconds of a tick, of which Dagster allows 60. The others follow in the next one.
_SYMBOLS_PER_TICK: Final = 50


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the symbol partitions of every tier equal to the `symbols` table.",
)
def universe_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
    """Register new symbols, drop those that left, and show what is held of those that changed tier."""
    with pipeline.tick_database() as engine:
        changes = _of_this_tick(partition_changes(context.instance, pipeline.tracked(engine)))
        if not changes:
            return dg.SkipReason("The partitions match the `symbols` table.")
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        for tier, added, removed in changes:
            if added:
                requests.append(symbol_partitions(tier).build_add_request(added))
            if removed:
                requests.append(symbol_partitions(tier).build_delete_request(removed))
        events = _carried_over(context.instance, engine, changes)
    return dg.SensorResult(dynamic_partitions_requests=requests, asset_events=events)


def _of_this_tick(changes: Iterable[PartitionChange]) -> list[PartitionChange]:
    """Return as many of the changes as one tick takes: additions of at most `_SYMBOLS_PER_TICK` symbols in all."""
    left = _SYMBOLS_PER_TICK
    taken = []
    for tier, added, removed in changes:
        taken.append(PartitionChange(tier, added[:left], removed))
        left -= len(added[:left])
    return taken


def _carried_over(
    instance: dg.DagsterInstance, engine: Engine, changes: Sequence[PartitionChange]
) -> list[dg.AssetMaterialization]:
    """Return materializations of what is held of symbols new to a tier, for partitions that show nothing yet."""
    from market_data_pipeline.store.series_state import held_series

    events = []
    for tier, added, _ in changes:
        held = held_series(engine, added) if added else []
        keys = (bars_key(tier), features_key(tier))
        shown = {key: instance.get_materialized_partitions(key) for key in keys} if held else {}
        for one in held:
            partition = partition_key(Series(one.symbol, one.timeframe))
            for key, count in zip(keys, (one.bar_count, one.feature_count), strict=True):
                if partition not in shown[key]:
                    events.append(_materialization(key, tier, partition, count, one))
    return events


def _materialization(
    key: dg.AssetKey, tier: Tier, partition: str, count: int, held: HeldSeries
) -> dg.AssetMaterialization:
    instants = {"first_bar": held.first_ts, "last_bar": held.last_ts, "verified_at": held.verified_at}
    return dg.AssetMaterialization(
        key,
        partition=partition,
        description=f"Held from before the symbol came to the {tier} tier; nothing was fetched or computed again.",
        metadata={
            "dagster/partition_row_count": count,
            "status": "carried over",
            **{name: dg.MetadataValue.timestamp(instant) for name, instant in instants.items() if instant is not None},
        },
    )
