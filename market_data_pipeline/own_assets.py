"""What helps to write Dagster assets downstream of bars and features, without knowing about tiers.

`upstream("bars")` names the bars of all symbols as dependencies, `series_asset` makes assets that are partitioned like
ours, and the resource `MarketData` reads what a partition stands for. Everything else is Dagster's own: conditions,
checks, metadata, IO managers. docs/own-assets.md shows how, docs/examples/own_assets.py is a whole example.

Keep out: how own definitions get into the code location (orchestration.own_definitions).
"""

# No `from __future__ import annotations`: Dagster needs the classes of a resource's methods, not their names.

import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.orchestration.partitions import TIMEFRAMES, symbol_partitions
from market_data_pipeline.orchestration.resources import PipelineResource

if TYPE_CHECKING:
    import pandas as pd

GROUP: Final = "own"


def asset_keys(name: str) -> list[dg.AssetKey]:
    """Return the keys of an asset that has one part per tier: `bars`, `features`, or one made by `series_asset`.

    Example:
        >>> from market_data_pipeline.own_assets import asset_keys
        >>> [key.to_user_string() for key in asset_keys("bars")]
        ['critical/bars', 'standard/bars', 'low_priority/bars']
    """
    return [dg.AssetKey([tier.value, name]) for tier in Tier]


def upstream(name: str, partition_mapping: dg.PartitionMapping | None = None) -> list[dg.AssetDep]:
    """Return the dependencies of an asset on `bars`, `features` or an asset made by `series_asset`, of all symbols.

    Args:
        name: of the asset.
        partition_mapping: which series each partition needs; by default all, as a day's cross-section does.
    """
    mapping = partition_mapping or dg.AllPartitionMapping()
    return [dg.AssetDep(key, partition_mapping=mapping) for key in asset_keys(name)]


def series_asset(
    name: str, *, timeframes: Sequence[str] = TIMEFRAMES, deps: Sequence[str] = ("features",), **options: Any
) -> Callable[[Callable[..., Any]], list[dg.AssetsDefinition]]:
    """Decorate a function that computes something of series: it becomes an asset partitioned like bars, `AAPL|1d`.

    It is one asset per tier, as bars are, because the symbols of each are a set of their own; all go into
    `dg.Definitions(assets=[*made])`. A symbol that moves to another tier takes its partitions along. A backfill is one
    run: the function gets several partition keys, and returns None or a `dg.MaterializeResult`.

    Args:
        name: the last part of the keys.
        timeframes: those of the series; by default all.
        deps: names of assets of the same series.
        options: those of `dg.asset`, for example `automation_condition`, `metadata`, `owners`, `pool`.
    """
    frames = dg.StaticPartitionsDefinition(list(timeframes))
    if unknown := set(timeframes) - set(TIMEFRAMES):
        raise dg.DagsterInvalidDefinitionError(f"Unknown timeframes {sorted(unknown)}; known are {TIMEFRAMES}.")

    def decorate(function: Callable[..., Any]) -> list[dg.AssetsDefinition]:
        made = []
        for tier in Tier:
            same = dg.IdentityPartitionMapping()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.BetaWarning)  # backfill policies, in 1.13
                asset = dg.asset(
                    key=dg.AssetKey([tier.value, name]),
                    partitions_def=dg.MultiPartitionsDefinition(
                        {"symbol": symbol_partitions(tier), "timeframe": frames}
                    ),
                    deps=[dg.AssetDep(dg.AssetKey([tier.value, dep]), partition_mapping=same) for dep in deps],
                    backfill_policy=dg.BackfillPolicy.single_run(),
                    **{"group_name": GROUP, **options},
                )(function)
            made.append(asset)
        return made

    return decorate


class MarketData(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A resource that reads bars and features: the database is that of the project's settings."""

    def symbols(self) -> list[str]:
        """Return the symbols that are followed, in alphabetical order."""
        pipeline = PipelineResource()
        with pipeline.database() as engine:
            return sorted(entry.symbol for entry in pipeline.tracked(engine) if entry.active)

    def now(self) -> datetime:
        """Return the present instant; in a replay the one that is replayed."""
        return PipelineResource().settings().clock()

    def read(self, symbols: str | Sequence[str], timeframe: str, **range_and_options: Any) -> "pd.DataFrame":
        """Return bars and features of one or more symbols: `market_data_pipeline.read_records` with its arguments."""
        from market_data_pipeline import read_records

        found: pd.DataFrame = read_records(symbols, timeframe, **range_and_options)
        return found

    def partitions(self, keys: Sequence[str], **range_and_options: Any) -> Iterator[tuple[str, "pd.DataFrame"]]:
        """Yield the bars and features of each partition key, for example those of `context.partition_keys`.

        Args:
            keys: such as `AAPL|1d`.
            range_and_options: as of `read`: `start`, `end`, `as_of`, `adjusted`, `columns`.
        """
        for key in keys:
            series = Series.from_partition_key(key)
            yield key, self.read(series.symbol, series.timeframe.value, **range_and_options)

    def cross_section(
        self, day: str | date, timeframe: str = "1d", symbols: Sequence[str] | None = None, **options: Any
    ) -> "pd.DataFrame":
        """Return bars and features of a day, of all symbols that are followed or of some, with a column `symbol`.

        Args:
            day: a partition of days, `2026-11-30`; bars that start on it where each symbol trades.
            timeframe: of the bars.
            symbols: only these.
            options: as of `read`: `as_of`, `adjusted`, `columns`.
        """
        first = date.fromisoformat(day) if isinstance(day, str) else day
        chosen = list(symbols) if symbols is not None else self.symbols()
        frame = Timeframe(timeframe).value
        return self.read(chosen, frame, start=first, end=first + timedelta(days=1), **options)
