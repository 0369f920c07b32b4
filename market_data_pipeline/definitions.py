"""The code location: everything that Dagster loads (https://docs.dagster.io/deployment/code-locations).

A test or another deployment swaps a part through `build_defs(resource_overrides=…)`, which reads no environment; `defs`
also has the project's own definitions. Nothing here loads a heavy library: every run process starts with this import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.alerts.failed_runs import run_failure_alert_sensor
from market_data_pipeline.orchestration.assets import all_assets
from market_data_pipeline.orchestration.checks.freshness import freshness_check
from market_data_pipeline.orchestration.checks.quality import quality_checks, quality_job
from market_data_pipeline.orchestration.dagster_internals import start_runs_warm
from market_data_pipeline.orchestration.jobs.backup import backup_job, backup_schedule
from market_data_pipeline.orchestration.jobs.prune import prune_job
from market_data_pipeline.orchestration.jobs.reconcile import reconcile_job
from market_data_pipeline.orchestration.jobs.refresh import refresh_job
from market_data_pipeline.orchestration.lake import lake_assets, lake_job
from market_data_pipeline.orchestration.own_definitions import with_own_definitions
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor
from market_data_pipeline.orchestration.schedules import nightly_schedule, tier_schedule
from market_data_pipeline.orchestration.sensors.backfill_requests import backfill_request_sensor
from market_data_pipeline.orchestration.sensors.staleness import staleness_sensor
from market_data_pipeline.orchestration.sensors.universe import universe_sensor
from market_data_pipeline.orchestration.settled import settle_job, settled_records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.ingest.source import Vendor
    from market_data_pipeline.settings import Settings


class _Pipeline(PipelineResource):
    """The pipeline of this project, whose vendor is the sandbox unless the settings name another."""

    def vendor(self, settings: Settings) -> Vendor:
        """Return the source of bars; the sandbox is started first when it is the vendor."""
        from market_data_pipeline.runtime.sandbox import vendor_access

        return vendor_access(settings)


def build_defs(*, resource_overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Return the definitions of the code location, with `resource_overrides` by name (`pipeline`)."""
    refreshes = {tier: refresh_job(tier) for tier in Tier}
    nightly = (quality_job(), reconcile_job, prune_job, lake_job(), settle_job())
    return dg.Definitions(
        assets=[*all_assets(), lake_assets(), settled_records],
        asset_checks=[*(freshness_check(tier) for tier in Tier), quality_checks()],
        jobs=[*refreshes.values(), *nightly, backup_job],
        schedules=[
            *(tier_schedule(tier, job) for tier, job in refreshes.items()),
            *(nightly_schedule(job) for job in nightly),
            backup_schedule,
        ],
        sensors=[
            universe_sensor,
            staleness_sensor([*refreshes.values()]),
            backfill_request_sensor([*refreshes.values()]),
            run_failure_alert_sensor,
        ],
        resources={"pipeline": _Pipeline(), **(resource_overrides or {})},
        # A run is a shard whose symbols run in threads: a process for each step would only cost another second.
        executor=run_executor,
    )


defs = with_own_definitions(build_defs())
start_runs_warm()
