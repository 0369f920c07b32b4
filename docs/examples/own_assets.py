"""Assets of a project's own, downstream of bars and features: a model's predictions, and a ranking of each day.

Copy this file into the project's folder, write `MARKET_DATA_DEFINITIONS_MODULE=own_assets.py` into `.env` and restart
`market-data up`. docs/own-assets.md explains each part.
"""

from datetime import timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd

from market_data_pipeline.own_assets import MarketData, series_asset, upstream

NEW_YORK = "America/New_York"
INPUTS = ["log_return", "volatility_20", "volume_ratio"]


class Results(dg.ConfigurableResource):
    """The folder of the results, a Parquet file per partition."""

    folder: str = "results"

    def file(self, name: str) -> Path:
        """Return the file of a partition."""
        return Path(self.folder, f"{name}.parquet")

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Replace the file of a partition; no reader sees half of it."""
        file = self.file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(file.with_suffix(".draft"))
        file.with_suffix(".draft").replace(file)


def next_return(bars: pd.DataFrame) -> float:
    """Return the log return of the bar after the last one, by least squares over the earlier ones."""
    known = bars[INPUTS].assign(constant=1.0)
    past = known.assign(target=bars["log_return"].shift(-1)).dropna()
    weights, *_ = np.linalg.lstsq(past[known.columns], past["target"], rcond=None)
    return float(known.iloc[-1] @ weights)


@series_asset(
    "predictions",
    timeframes=["1d"],
    deps=["features"],
    # Each symbol as soon as its features were refreshed after a day's end.
    automation_condition=dg.AutomationCondition.on_cron("15 0 * * *", NEW_YORK),
    description="The next day's log return of each symbol, by least squares over the last year.",
)
def predictions(context: dg.AssetExecutionContext, market_data: MarketData, results: Results) -> dg.MaterializeResult:
    """Predict for each symbol of the run, which may be for one partition or for several."""
    start = market_data.now() - timedelta(days=365)
    predicted = {}
    for key, bars in market_data.partitions(context.partition_keys, start=start):
        if len(bars) > 100:
            predicted[key] = next_return(bars)
            newest = bars.tail(1)[["close"]].assign(next_return=predicted[key], predicted_at=market_data.now())
            results.write(f"predictions/{key}", newest)
    return dg.MaterializeResult(
        metadata={
            "predicted": len(predicted),
            "too_short": sorted(set(context.partition_keys) - set(predicted)),
            "next_returns": predicted,
        }
    )


@dg.asset(
    # A day is a partition once it is over; the weekends are none. On a holiday the ranking is empty.
    partitions_def=dg.DailyPartitionsDefinition("2025-01-01", timezone=NEW_YORK, exclusions=["0 0 * * 6", "0 0 * * 0"]),
    deps=upstream("features"),
    # When the least urgent tier has been refreshed, and once more when the vendor's corrections of the day are in.
    automation_condition=dg.AutomationCondition.in_latest_time_window()
    & (
        dg.AutomationCondition.cron_tick_passed("0 1 * * 2-6", NEW_YORK)
        | dg.AutomationCondition.cron_tick_passed("45 11 * * 2-6", NEW_YORK)
    ),
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("every_symbol_is_ranked", asset="ranking")],
    group_name="own",
)
def ranking(context: dg.AssetExecutionContext, market_data: MarketData, results: Results) -> dg.MaterializeResult:
    """All stocks of a day by how unusual their return was: in standard deviations of their last 20 days."""
    stocks = [symbol for symbol in market_data.symbols() if ":" not in symbol]
    missing, rows = {}, 0
    for day in context.partition_keys:
        bars = market_data.cross_section(day, symbols=stocks).set_index("symbol")
        ranked = bars.assign(score=bars["return_1d"] / (bars["volatility_20"] / 252**0.5)).dropna(subset="score")
        ranked = ranked.sort_values("score", ascending=False)[["close", "return_1d", "score"]]
        results.write(f"ranking/{day}", ranked.assign(rank=range(1, len(ranked) + 1), known_at=market_data.now()))
        rows += len(ranked)
        if len(bars) and (absent := sorted(set(stocks) - set(ranked.index))):
            missing[day] = absent
    return dg.MaterializeResult(
        metadata={"dagster/partition_row_count": rows, "best": ranked.head(3)["score"].to_dict()},
        check_results=[
            dg.AssetCheckResult(
                check_name="every_symbol_is_ranked",
                passed=not missing,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"missing": missing},
            )
        ],
    )


defs = dg.Definitions(
    assets=[*predictions, ranking],
    resources={"market_data": MarketData(), "results": Results()},
    sensors=[
        # Evaluates the conditions above. Its runs give way to the refreshes of every tier.
        dg.AutomationConditionSensorDefinition(
            "own_automation",
            target=dg.AssetSelection.groups("own"),
            default_status=dg.DefaultSensorStatus.RUNNING,
            run_tags={"dagster/priority": "-20"},
        )
    ],
)
