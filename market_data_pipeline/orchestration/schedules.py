"""When jobs start automatically (https://docs.dagster.io/guides/automate/schedules).

The tiers' times come from `domain.objectives`, the others' from cadences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.cadences import (
    LONG_JOBS,
    LONG_MAX_RUNTIME,
    MAX_RUNTIME,
    MAX_RUNTIME_TAG,
    NIGHTLY,
)
from market_data_pipeline.orchestration.partitions import symbols_of
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.runs import shard_symbols, taken, tier_run_requests

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.dagster_internals import AssetJob


def tier_schedule(tier: Tier, job: AssetJob) -> dg.ScheduleDefinition:
    """Return a tier's schedule: one run per shard, without the symbols whose last refresh is unfinished.

    A second refresh would only wait for the series that the first one holds, and then find nothing to do. A tick that
    was cut off while it queued its runs goes on with the others.
    """
    objective = TIER_OBJECTIVES[tier]

    @dg.schedule(
        name=f"{tier.value}_schedule",
        job=job,
        cron_schedule=objective.cron,
        execution_timezone=objective.cron_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=objective.description,
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        if not (symbols := symbols_of(context.instance, tier)):
            return dg.SkipReason(f"No symbol is in the {tier.value} tier; `market-data universe add` adds one.")
        held = taken(context.instance, tier, symbols, context.scheduled_execution_time)
        size = shard_symbols(tier, len(symbols), pipeline.settings().shard_symbols)
        missing = tier_run_requests(symbols, tier, size, leave_out=held.symbols, max_runtime=MAX_RUNTIME)
        if not held.own and not missing:
            return dg.SkipReason(f"Run {held.by} of the {tier.value} tier has not finished.")
        return [*held.own, *missing]

    return schedule


def nightly_schedule(job: dg.JobDefinition | AssetJob) -> dg.ScheduleDefinition:
    """Return the schedule of a nightly job."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=NIGHTLY[job.name],
        execution_timezone=EXCHANGE_ZONE_NAME,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=job.description,
        tags={MAX_RUNTIME_TAG: str(LONG_MAX_RUNTIME if job.name in LONG_JOBS else MAX_RUNTIME)},
    )
