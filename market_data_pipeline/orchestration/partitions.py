"""The assets' partitions, one per series in two dimensions, and which of them a run refreshes.

Partitions (https://docs.dagster.io/guides/build/partitions-and-backfills). A run's tags select a range of them, and its
run config (https://docs.dagster.io/guides/operate/configuration/run-configuration) narrows it; without either the run
is for the whole tier. How runs get their tags is in runs.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import dagster as dg
from pydantic import Field

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Series, Tier, Timeframe, canonical_symbol, parse_timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.store.universe import TrackedSymbol


TIMEFRAMES: Final = tuple(timeframe.value for timeframe in Timeframe)

# Dagster's names for "from this partition to that one"; each dimension of a two-dimensional key has its own range.
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"


def bars_key(tier: Tier) -> dg.AssetKey:
    """Return the key of a tier's bars."""
    return dg.AssetKey([tier.value, "bars"])


def features_key(tier: Tier) -> dg.AssetKey:
    """Return the key of a tier's features."""
    return dg.AssetKey([tier.value, "features"])


@cache
def symbol_partitions(tier: Tier) -> dg.DynamicPartitionsDefinition:
    """Return the dimension of a tier's symbols; Dagster's storage holds the symbols themselves."""
    return dg.DynamicPartitionsDefinition(name=f"{tier}_symbols")


@cache
def series_partitions(tier: Tier) -> dg.MultiPartitionsDefinition:
    """Return a tier's partitions: its symbols by all timeframes, with keys like `AAPL|5m`."""
    timeframes = dg.StaticPartitionsDefinition(list(TIMEFRAMES))
    return dg.MultiPartitionsDefinition({"symbol": symbol_partitions(tier), "timeframe": timeframes})


def partition_key(series: Series) -> dg.MultiPartitionKey:
    """Return Dagster's key of a series, equal to the text `AAPL|5m`."""
    return dg.MultiPartitionKey({"symbol": series.symbol, "timeframe": series.timeframe.value})


def symbols_of(instance: dg.DagsterInstance, tier: Tier) -> Sequence[str]:
    """Return a tier's symbols as Dagster knows them, in the order of its partition ranges."""
    return instance.get_dynamic_partitions(f"{tier}_symbols")


def range_tags(symbols: Sequence[str]) -> dict[str, str]:
    """Return the run tags that select all timeframes of `symbols`, which must be contiguous in `symbols_of`."""
    return {RANGE_START: f"{symbols[0]}|{TIMEFRAMES[0]}", RANGE_END: f"{symbols[-1]}|{TIMEFRAMES[-1]}"}


def all_materialized(instance: dg.DagsterInstance) -> bool:
    """Return whether every partition of every asset has been materialized at least once."""
    for tier in Tier:
        expected = {f"{symbol}|{timeframe}" for symbol in symbols_of(instance, tier) for timeframe in TIMEFRAMES}
        if any(expected - instance.get_materialized_partitions(key(tier)) for key in (bars_key, features_key)):
            return False
    return True


class PartitionChange(NamedTuple):
    """The change that makes a tier's partitions equal to the universe."""

    tier: Tier
    added: list[str]
    removed: list[str]


def partition_changes(instance: dg.DagsterInstance, tracked: Iterable[TrackedSymbol]) -> list[PartitionChange]:
    """Return the changes after which Dagster knows exactly the active symbols; empty when there are none."""
    active: dict[Tier, list[str]] = {tier: [] for tier in Tier}
    for entry in tracked:
        if entry.active:
            active[entry.tier].append(entry.symbol)
    changes = []
    for tier, symbols in active.items():
        known = symbols_of(instance, tier)
        before, now = set(known), set(symbols)
        added = [symbol for symbol in symbols if symbol not in before]
        removed = [symbol for symbol in known if symbol not in now]
        if added or removed:
            changes.append(PartitionChange(tier, added, removed))
    return changes


def sync_partitions(instance: dg.DagsterInstance, engine: Engine) -> list[PartitionChange]:
    """Make the partitions of all tiers equal to the `symbols` table, and return what changed.

    A partition that is removed keeps its history and shows it again when the symbol comes back.
    """
    from market_data_pipeline.store.universe import tracked

    changes = partition_changes(instance, tracked(engine))
    for tier, added, removed in changes:
        instance.add_dynamic_partitions(f"{tier}_symbols", added)
        for symbol in removed:
            instance.delete_dynamic_partition(f"{tier}_symbols", symbol)
    return changes


class RefreshConfig(dg.Config):
    """The run config of a refresh; every field is optional."""

    symbols: list[str] = Field(default=[], description="Only these symbols of the tier. Empty: all.")
    timeframes: list[str] = Field(default=[], description=f"Only these of {', '.join(Timeframe)}. Empty: all.")
    history_days: int | None = Field(
        default=None, ge=1, description="Calendar days of history to hold. Default: MARKET_DATA_HISTORY_DAYS."
    )
    full_refresh: bool = Field(
        default=False, description="Fetch everything again and compare, instead of only what is missing."
    )
    source: str = Field(
        default="rest",
        pattern="^(rest|files)$",
        description="Where the bars of settled days come from: `rest`, the API, or `files`, the vendor's flat files.",
    )


def selected(
    tier: Tier,
    config: RefreshConfig,
    partition_keys: Iterable[str] | None,
    tier_symbols: Callable[[], Sequence[str]],
    *,
    is_shard: bool = False,
) -> list[SymbolRequest]:
    """Return the series that a run refreshes, by symbol, in the order of its partitions.

    Args:
        tier: the tier of the job.
        config: narrows what the tags select.
        partition_keys: the keys that the run's tags select; None when it has none.
        tier_symbols: looks up the tier's symbols; called only when they are needed.
        is_shard: the config's symbols are a shard of the tier, of which some may have left it since.

    Raises:
        UsageError: the config names a symbol that the run does not select, or an unknown timeframe.
    """
    from market_data_pipeline.ingest.outcome import SymbolRequest

    chosen: dict[str, Sequence[Timeframe]]
    if partition_keys is None:
        chosen = {symbol: tuple(Timeframe) for symbol in tier_symbols()}
    else:
        chosen = _by_symbol(partition_keys)
    if named := [canonical_symbol(symbol) for symbol in config.symbols]:
        unknown = [symbol for symbol in named if symbol not in chosen]
        if unknown and not is_shard:
            raise UsageError(
                f"{', '.join(unknown)}: not among the {len(chosen)} symbols of this {tier} run; "
                "`market-data universe list` shows each symbol's tier."
            )
        kept = set(named)
        chosen = {symbol: chosen[symbol] for symbol in chosen if symbol in kept}
    allowed = {parse_timeframe(name) for name in config.timeframes} or set(Timeframe)
    return [
        SymbolRequest(symbol, tier, wanted)
        for symbol, timeframes in chosen.items()
        if (wanted := tuple(timeframe for timeframe in Timeframe if timeframe in allowed and timeframe in timeframes))
    ]


def _by_symbol(keys: Iterable[str]) -> dict[str, Sequence[Timeframe]]:
    grouped: dict[str, list[Timeframe]] = {}
    for key in keys:
        series = Series.from_partition_key(key)
        grouped.setdefault(series.symbol, []).append(series.timeframe)
    return {**grouped}
