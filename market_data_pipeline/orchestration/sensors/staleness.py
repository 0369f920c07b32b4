"""What Dagster keeps an eye on: the universe, late series, and series that somebody asked for.

Each tick is a few small queries, with a deadline for them all together (deadline). What goes wrong fails the tick,
which Dagster shows and repeats; only the staleness sensor skips while the database is away, having told people. Add
here: a sensor. Keep out: SQL (queries, backfill_requests), deciding (healing) and alerts.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.alerts.database_loss import notice_return, tell_back, tell_lost
from market_data_pipeline.orchestration.alerts.failed_runs import tell_runs
from market_data_pipeline.orchestration.alerts.thresholds import tell_crossings
from market_data_pipeline.orchestration.checks.freshness import evaluation, freshness_table, spoken
from market_data_pipeline.orchestration.jobs.refresh import job_name, run_tags
from market_data_pipeline.orchestration.partitions import partition_changes, symbol_partitions
from market_data_pipeline.orchestration.provenance import REASON_TAG, TRIGGER_TAG
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import fail_lost_runs
from market_data_pipeline.orchestration.runs import NARROW_TAG, UNFINISHED, narrowed, unfinished_tier_run
from market_data_pipeline.orchestration.sensors.deadline import bound
from market_data_pipeline.orchestration.sensors.memory import Memory
from market_data_pipeline.orchestration.sensors.tier_changes import carried_over, first_of
from market_data_pipeline.reports.freshness import tier_freshness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.orchestration.jobs.refresh import AssetJob
    from market_data_pipeline.reports.freshness import TierFreshness

# The shortest RPO is an hour: a minute to notice is enough, and each tick writes its verdicts to the event log.
_STALENESS_SECONDS: Final = 60
# Somebody waits for the answer, and the daemon looks at sensors every 5 s anyway.
_REQUESTS_SECONDS: Final = 10
# `market-data universe add` registers partitions itself; this is for changes made elsewhere.
_UNIVERSE_SECONDS: Final = 30

# A healing run is a shard of late series; more wait for the next one.
_HEALED_AT_ONCE: Final = 50


@dg.sensor(
    minimum_interval_seconds=_UNIVERSE_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the symbol partitions of every tier equal to the `symbols` table.",
)
def universe_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
    """Register symbols that came, drop those that left; one that moved shows in its new tier what is held of it."""
    changes = first_of(partition_changes(context.instance, pipeline.tracked(bound)))
    if not changes:
        return dg.SkipReason("The partitions are those of the `symbols` table.")
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    for tier, added, removed in changes:
        if added:
            requests.append(symbol_partitions(tier).build_add_request(added))
        if removed:
            requests.append(symbol_partitions(tier).build_delete_request(removed))
    with pipeline.database() as engine:
        bound(engine)
        held = carried_over(context.instance, engine, changes)
    return dg.SensorResult(dynamic_partitions_requests=requests, asset_events=held)


def staleness_sensor(jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """Return the sensor that says how stale each tier is, and heals what its schedule leaves behind."""

    @dg.sensor(
        name="staleness_sensor",
        jobs=jobs,
        minimum_interval_seconds=_STALENESS_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes the `series_freshness` verdict of each tier; starts a run for series beyond their RPO.",
    )
    def sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
        now = datetime.now(UTC)  # waits are real time, also in a replay, where the database's clock stands still
        memory = Memory.from_cursor(context.cursor)
        try:
            with pipeline.database() as engine:
                bound(engine)
                standing = tier_freshness(engine)
                notice_return(memory, engine, now)
                tell_back(memory, pipeline.settings(), now)
                tell_crossings(engine, pipeline.settings(), standing)
                for run_id in fail_lost_runs(context.instance, engine):
                    context.log.warning(f"Run {run_id} was lost.")
                tell_runs(context.instance, engine, pipeline.settings())
                tables = {tier: freshness_table(engine, tier) for tier in _news(standing, memory, now)}
        except DatabaseUnavailableError as error:
            tell_lost(memory, pipeline.settings(), error, now)
            # A tick that fails keeps no cursor, and people would be told again at each.
            return dg.SensorResult(skip_reason=str(error), cursor=memory.to_cursor())
        memory.forget_healed(late.series for of_tier in standing.values() for late in of_tier.late_series)
        requests = [
            request
            for tier, of_tier in standing.items()
            if (request := _healing_run(context.instance, tier, of_tier, memory, now))
        ]
        events = [evaluation(tier, standing[tier], table) for tier, table in tables.items()]
        return dg.SensorResult(run_requests=requests, asset_events=events, cursor=memory.to_cursor())

    return sensor


def _news(standing: Mapping[Tier, TierFreshness], memory: Memory, now: datetime) -> list[Tier]:
    """Return the tiers whose verdict is to be written, and take it as said."""
    verdicts = {tier: f"{of.late}/{of.stale}/{of.missing}/{of.series}" for tier, of in standing.items() if of.series}
    return [tier for tier, verdict in verdicts.items() if memory.is_news(tier, verdict, now)]


def _healing_run(
    instance: dg.DagsterInstance, tier: Tier, standing: TierFreshness, memory: Memory, now: datetime
) -> dg.RunRequest | None:
    """Return a run for the tier's late series that may be tried now; none while any run of the tier is unfinished."""
    due = memory.due((late.series for late in standing.late_series), now)
    if not due or unfinished_tier_run(instance, tier) or _unfinished_healing(instance, tier):
        return None
    symbols = list(dict.fromkeys(series.symbol for series in due))[:_HEALED_AT_ONCE]
    tried = [series for series in due if series.symbol in set(symbols)]
    memory.note(tried, now)
    return dg.RunRequest(
        run_key=f"staleness:{tier}:{now.isoformat()}",
        job_name=job_name(tier),
        run_config=narrowed(tier, symbols=symbols, timeframes=sorted({series.timeframe for series in tried})),
        tags={
            **run_tags(tier),
            TRIGGER_TAG: "staleness",
            NARROW_TAG: "late series",
            REASON_TAG: f"{standing.late} series are more than {spoken(TIER_OBJECTIVES[tier].rpo)} behind",
        },
    )


def _unfinished_healing(instance: dg.DagsterInstance, tier: Tier) -> bool:
    filters = dg.RunsFilter(job_name=job_name(tier), tags={TRIGGER_TAG: "staleness"}, statuses=list(UNFINISHED))
    return bool(instance.get_run_records(filters, limit=1))


def backfill_request_sensor(jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """Return the sensor that turns rows of `backfill_requests` into runs and follows them to their end."""

    @dg.sensor(
        name="backfill_request_sensor",
        jobs=jobs,
        minimum_interval_seconds=_REQUESTS_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Turns queued rows of `market_data.backfill_requests` into runs, one per symbol.",
    )
    def sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
        from market_data_pipeline.orchestration.sensors.backfill_requests import follow_requests

        with pipeline.database() as engine:
            bound(engine)
            runs = follow_requests(context.instance, engine)
        return dg.SensorResult(run_requests=runs) if runs else dg.SkipReason("Nobody asked for a series.")

    return sensor
