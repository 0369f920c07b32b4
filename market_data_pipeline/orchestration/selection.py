"""Which series a run is for: its partition tags, narrowed by its run config; without either, the whole tier.

Keep out: how runs come to have tags (runs, schedules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from market_data_pipeline.domain.failures import UsageError
from market_data_pipeline.domain.series import Series, Tier, Timeframe, parse_timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from market_data_pipeline.ingest.outcome import SymbolRequest


class RefreshConfig(dg.Config):
    """The run config of a refresh; everything may be left out."""

    symbols: list[str] = Field(default=[], description="Only these symbols of the tier. Empty: all.")
    timeframes: list[str] = Field(default=[], description="Only these timeframes (5m, 15m, 1h, 4h, 1d). Empty: all.")
    history_days: int | None = Field(
        default=None, ge=1, description="Calendar days of history to hold. Default: MARKET_DATA_HISTORY_DAYS."
    )
    full_refresh: bool = Field(
        default=False, description="Ask the vendor for everything again and compare, instead of what is missing."
    )


def selected(
    tier: Tier, config: RefreshConfig, partition_keys: Iterable[str] | None, tier_symbols: Callable[[], Sequence[str]]
) -> list[SymbolRequest]:
    """Return what a run is to refresh, in the order of its partitions.

    Args:
        tier: the tier of the job.
        config: narrows what the tags select.
        partition_keys: the keys that the run's tags select; None when it has none.
        tier_symbols: looks up the tier's symbols; called only when they are needed.

    Raises:
        UsageError: the config names a symbol or timeframe that is not among those.
    """
    from market_data_pipeline.ingest.outcome import SymbolRequest

    chosen: dict[str, Sequence[Timeframe]]
    if partition_keys is None:
        chosen = {symbol: tuple(Timeframe) for symbol in tier_symbols()}
    else:
        chosen = _by_symbol(partition_keys)
    if config.symbols:
        if strangers := [symbol for symbol in config.symbols if symbol not in chosen]:
            raise UsageError(
                f"{', '.join(strangers)}: not among the {len(chosen)} symbols of this {tier} run; "
                "`market-data universe list` shows each symbol's tier."
            )
        chosen = {symbol: chosen[symbol] for symbol in chosen if symbol in set(config.symbols)}
    wanted = {parse_timeframe(name) for name in config.timeframes} or set(Timeframe)
    return [
        SymbolRequest(symbol, tier, kept)
        for symbol, timeframes in chosen.items()
        if (kept := tuple(timeframe for timeframe in Timeframe if timeframe in wanted and timeframe in timeframes))
    ]


def _by_symbol(keys: Iterable[str]) -> dict[str, Sequence[Timeframe]]:
    grouped: dict[str, list[Timeframe]] = {}
    for key in keys:
        series = Series.from_partition_key(key)
        grouped.setdefault(series.symbol, []).append(series.timeframe)
    return {**grouped}
