"""The staleness sensor: the verdict on each tier, alerts, lost runs, and the automatic refresh of late series.

A sensor (https://docs.dagster.io/guides/automate/sensors) with a cursor (memory). Each tick is a few small queries
within one deadline. An error fails the tick, which Dagster shows and repeats; while the database is lost the sensor
skips instead, because a failed tick does not keep the cursor, and each would alert the loss again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.alerts.database_loss import alert_loss, alert_return, detect_restart
from market_data_pipeline.orchestration.alerts.failed_runs import alert_runs
from market_data_pipeline.orchestration.alerts.thresholds import alert_thresholds
from market_data_pipeline.orchestration.cadences import MAX_RUNTIME, MAX_RUNTIME_TAG
from market_data_pipeline.orchestration.checks.freshness import evaluation, in_hours, table_of
from market_data_pipeline.orchestration.jobs.refresh import job_name, run_tags
from market_data_pipeline.orchestration.provenance import REASON_TAG, TRIGGER_TAG
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import fail_lost_runs
from market_data_pipeline.orchestration.runs import NARROW_TAG, UNFINISHED, narrowed, unfinished_tier_run
from market_data_pipeline.orchestration.sensors.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.orchestration.dagster_internals import AssetJob
    from market_data_pipeline.reports.freshness import TierFreshness

# The shortest RPO is an hour: a minute to notice is enough, and each tick writes its verdicts to the event log.
_INTERVAL_SECONDS: Final = 60

# One run is a shard of late series; the others wait for the next.
_SYMBOLS_PER_RUN: Final = 50


def staleness_sensor(jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """Return the sensor; its runs are of the tiers' `jobs`."""

    @dg.sensor(
        name="staleness_sensor",
        jobs=jobs,
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes the `series_freshness` verdict of each tier; starts a run for series beyond their RPO.",
    )
    def sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
        from market_data_pipeline.reports.freshness import tier_freshness

        now = datetime.now(UTC)  # waits are real time, also in a replay, where the database's clock stands still
        memory = Memory.from_cursor(context.cursor)
        try:
            with pipeline.tick_database() as engine:
                tiers = tier_freshness(engine)
                detect_restart(memory, engine, now)
                alert_return(memory, pipeline.settings(), now)
                alert_thresholds(engine, pipeline.settings(), tiers)
                for run_id in fail_lost_runs(context.instance):
                    context.log.warning(f"Run {run_id} was lost.")
                alert_runs(context.instance, engine, pipeline.settings())
                tables = {tier: table_of(engine, tier) for tier in _news(tiers, memory, now)}
        except DatabaseUnavailableError as error:
            alert_loss(memory, pipeline.settings(), error, now)
            return dg.SensorResult(skip_reason=str(error), cursor=memory.to_cursor())
        memory.forget_recovered(late.series for of_tier in tiers.values() for late in of_tier.late_series)
        runs = [run for tier, of_tier in tiers.items() if (run := _run(context.instance, tier, of_tier, memory, now))]
        events = [evaluation(tier, tiers[tier], table) for tier, table in tables.items()]
        return dg.SensorResult(run_requests=runs, asset_events=events, cursor=memory.to_cursor())

    return sensor


def _news(tiers: Mapping[Tier, TierFreshness], memory: Memory, now: datetime) -> list[Tier]:
    """Return the tiers whose verdict has to be written, and record it as written."""
    verdicts = {tier: f"{of.late}/{of.stale}/{of.missing}/{of.series}" for tier, of in tiers.items() if of.series}
    return [tier for tier, verdict in verdicts.items() if memory.is_news(tier, verdict, now)]


def _run(
    instance: dg.DagsterInstance, tier: Tier, freshness: TierFreshness, memory: Memory, now: datetime
) -> dg.RunRequest | None:
    """Return a run for the tier's late series that may be tried now; None while any run of the tier is unfinished."""
    due = memory.due((late.series for late in freshness.late_series), now)
    if not due or unfinished_tier_run(instance, tier) or _is_refreshing_late_series(instance, tier):
        return None
    symbols = list(dict.fromkeys(series.symbol for series in due))[:_SYMBOLS_PER_RUN]
    tried = [series for series in due if series.symbol in set(symbols)]
    memory.record(tried, now)
    return dg.RunRequest(
        run_key=f"staleness:{tier}:{now.isoformat()}",
        job_name=job_name(tier),
        run_config=narrowed(tier, symbols=symbols, timeframes=sorted({series.timeframe for series in tried})),
        tags={
            **run_tags(tier),
            TRIGGER_TAG: "staleness",
            NARROW_TAG: "late series",
            MAX_RUNTIME_TAG: str(MAX_RUNTIME),
            REASON_TAG: f"{freshness.late} series are more than {in_hours(TIER_OBJECTIVES[tier].rpo)} behind",
        },
    )


def _is_refreshing_late_series(instance: dg.DagsterInstance, tier: Tier) -> bool:
    filters = dg.RunsFilter(job_name=job_name(tier), tags={TRIGGER_TAG: "staleness"}, statuses=list(UNFINISHED))
    return bool(instance.get_run_records(filters, limit=1))
