"""The assets: each tier's bars and features, one partition per series, materialized together by one step.

Assets (https://docs.dagster.io/guides/build/assets). A failing series never stops the others: each commits and
materializes on its own, and at the end the step fails with one `dg.Failure` that names the failed ones, so that exactly
their partitions show as failed. The assets are therefore `skippable` (the step returns no output; it logs events), and
one step materializes both (they commit together). The work itself is in ingest.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.checks.freshness import evaluation, freshness_policy, read_freshness
from market_data_pipeline.orchestration.jobs.refresh import op_name
from market_data_pipeline.orchestration.metadata import (
    BAR_COLUMNS,
    FEATURE_COLUMNS,
    failure,
    stopped,
    summary,
    warned,
)
from market_data_pipeline.orchestration.partition_events import PartitionEvents
from market_data_pipeline.orchestration.partitions import (
    RefreshConfig,
    bars_key,
    features_key,
    selected,
    series_partitions,
)
from market_data_pipeline.orchestration.provenance import SHARD_TAG, of_run
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.runs import is_last_of_tier

if TYPE_CHECKING:
    from market_data_pipeline.ingest.outcome import SeriesOutcome

POOL: Final = "polygon"  # its limit is in dagster.yaml

# A batch of events costs 20 ms however small it is, and the UI refreshes a run about once a second.
_FLUSH_SECONDS: Final = 1.0


def all_assets() -> list[dg.AssetsDefinition]:
    """Return the assets of all tiers, with links to this file in the UI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # code references and backfill policies, in 1.13
        assets = dg.with_source_code_references([tier_assets(tier) for tier in Tier])
        return [asset for asset in assets if isinstance(asset, dg.AssetsDefinition)]


def tier_assets(tier: Tier) -> dg.AssetsDefinition:
    """Return the pair `<tier>/bars` and `<tier>/features`."""
    objective = TIER_OBJECTIVES[tier]
    common: dict[str, Any] = {
        "skippable": True,
        "partitions_def": series_partitions(tier),
        "group_name": tier.value,
        "owners": ["team:market-data"],
        "freshness_policy": freshness_policy(tier),
        "tags": {"tier": tier.value},
    }
    bars = dg.AssetSpec(
        bars_key(tier),
        description=f"Raw OHLCV bars in `market_data.bars`, one partition per series. {objective.description}",
        kinds={"python", "postgres"},
        metadata={"dagster/column_schema": BAR_COLUMNS, "dagster/table_name": "market_data.bars"},
        **common,
    )
    features = dg.AssetSpec(
        features_key(tier),
        deps=[bars.key],
        description=f"The 17 features of every bar in `market_data.features`. {objective.description}",
        kinds={"python", "postgres", "pandas"},
        metadata={"dagster/column_schema": FEATURE_COLUMNS, "dagster/table_name": "market_data.features"},
        **common,
    )

    @dg.multi_asset(
        specs=[bars, features],
        name=op_name(tier),
        pool=POOL,
        # Beta in 1.13. Without it a backfill from the UI starts one run per series, 2 s each.
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def series(
        context: dg.AssetExecutionContext, config: RefreshConfig, pipeline: PipelineResource
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        yield from ()  # events are logged per partition; an output would materialize all partitions alike
        refresh_tier(context, tier, config, pipeline)

    return series


def refresh_tier(
    context: dg.AssetExecutionContext, tier: Tier, config: RefreshConfig, pipeline: PipelineResource
) -> None:
    """Refresh the series that the run selects, and log each as it commits (`partition_events` says which).

    Raises:
        dg.Failure: at least one series failed, or the whole run had to stop.
    """
    from market_data_pipeline.store.audit_log import append_run

    partitioned = context.has_partition_key or context.has_partition_key_range
    outcomes: list[SeriesOutcome] = []
    stop: PipelineError | None = None
    events: PartitionEvents | None = None
    try:
        requests = selected(
            tier,
            config,
            context.partition_keys if partitioned else None,
            lambda: pipeline.symbols(tier),
            is_shard=SHARD_TAG in context.run.tags,
        )
        series = sum(len(request.timeframes) for request in requests)
        context.log.info(f"Refreshing {series} series of {len(requests)} symbols.")
        with pipeline.database() as engine:
            own_assets = pipeline.settings().definitions_module is not None
            events = PartitionEvents(context, tier, requests, planned=partitioned, own_assets=own_assets)
            append_run(engine, context.run.run_id, context.job_name, **of_run(context.run)._asdict())
            running = pipeline.refresh(
                requests,
                run_id=context.run.run_id,
                history_days=config.history_days,
                full=config.full_refresh,
                by_file=config.source == "files",
            )
            for batch in _batches(running):
                events.log(batch)
                outcomes += batch
    except PipelineError as error:
        stop = error
    if events is not None:
        events.close(outcomes)
    if outcomes:
        context.log_event(summary(tier, outcomes))
        for warning in warned(outcomes):
            context.log.warning(warning)
    if stop is not None:
        raise stopped(stop) from stop
    # Once per tick: by the shard that ends last. Should two end together, the staleness sensor writes it.
    if is_last_of_tier(context.instance, tier, context.run.run_id):
        context.log_event(evaluation(tier, *read_freshness(pipeline, tier)))
    if failed := failure(outcomes):
        raise failed


def _batches(outcomes: Iterator["SeriesOutcome"]) -> Iterator[list["SeriesOutcome"]]:
    """Yield the outcomes of each second together, and the rest at the end."""
    batch: list[SeriesOutcome] = []
    began = time.monotonic()
    try:
        for outcome in outcomes:
            batch.append(outcome)
            if time.monotonic() - began >= _FLUSH_SECONDS:
                yield batch
                batch, began = [], time.monotonic()
    except PipelineError:
        yield batch
        raise
    yield batch
