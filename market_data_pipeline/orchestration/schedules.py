"""When jobs start by themselves.

The tiers' times come from `domain.objectives`. Add here: the time of a new job, with its reason.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import symbols_of
from market_data_pipeline.orchestration.runs import tier_run_requests, unfinished_tier_run

if TYPE_CHECKING:
    from market_data_pipeline.domain.objectives import TierObjective
    from market_data_pipeline.orchestration.jobs.refresh import AssetJob


# Job -> cron, New York. Days settle at 11:00, so `reconcile` then finds final day bars; `quality` reads what the
# nightly low_priority refresh (00:30) stored; `prune` runs when nobody looks at yesterday's logs.
NIGHTLY: Final = {"quality": "15 2 * * *", "prune": "45 3 * * *", "reconcile": "20 11 * * *"}


def tier_schedule(tier: Tier, job: AssetJob) -> dg.ScheduleDefinition:
    """Return a tier's schedule: one run per shard, unless the tier's last refresh is still going on.

    A refresh that outlasts its cadence would find its successor waiting for the same series and learn nothing from it.
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
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        time.sleep(seconds_until_start(objective, context.scheduled_execution_time, datetime.now(UTC)))
        if busy := unfinished_tier_run(context.instance, tier):
            return dg.SkipReason(f"Run {busy} of the {tier.value} tier has not finished.")
        if not (symbols := symbols_of(context.instance, tier)):
            return dg.SkipReason(f"No symbol is in the {tier.value} tier; `market-data universe add` puts one there.")
        return tier_run_requests(symbols, tier)

    return schedule


def seconds_until_start(objective: TierObjective, scheduled: datetime, now: datetime) -> float:
    """Return for how long a tick has to wait so that its tier starts behind those that fell due at the same instant.

    A cron has no seconds. Ticks are evaluated in threads of their own; one that is late already does not wait.
    """
    left = scheduled + objective.starts_after - now
    return min(max(left, timedelta(0)), objective.starts_after).total_seconds()


def nightly_schedule(job: dg.JobDefinition | AssetJob) -> dg.ScheduleDefinition:
    """Return the schedule of a nightly job."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=NIGHTLY[job.name],
        execution_timezone=EXCHANGE_ZONE_NAME,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=job.description,
    )
