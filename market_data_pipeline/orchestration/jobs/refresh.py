"""The refresh jobs, one per tier (https://docs.dagster.io/guides/build/jobs/asset-jobs), with their names and run tags.

When they run is in schedules; how a refresh is cut into runs is in runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline.orchestration.run_liveness import run_executor

if TYPE_CHECKING:
    from market_data_pipeline.orchestration.dagster_internals import AssetJob

QUALITY_JOB: Final = "quality"

TIER_TAG: Final = "market_data/tier"
PRIORITY_TAG: Final = "dagster/priority"  # the queue starts higher ones first


def job_name(tier: Tier) -> str:
    """Return the name of a tier's refresh job."""
    return f"{tier.value}_refresh"


def op_name(tier: Tier) -> str:
    """Return the name of the step that refreshes a tier, under which its run config stands."""
    return f"{tier.value}_series"


def run_tags(tier: Tier) -> dict[str, str]:
    """Return the tags of every refresh of a tier."""
    return {TIER_TAG: tier.value, PRIORITY_TAG: str(TIER_OBJECTIVES[tier].run_priority)}


def refresh_job(tier: Tier) -> AssetJob:
    """Return the job that refreshes a tier: all of it, or what a run's partition tags and run config narrow it to.

    The tier's checks are not part of it: the step writes the verdict of the freshness check itself.
    """
    return dg.define_asset_job(
        job_name(tier),
        selection=dg.AssetSelection.assets(bars_key(tier), features_key(tier)).without_checks(),
        description=f"Bars and features of the {tier.value} tier. {TIER_OBJECTIVES[tier].description}",
        tags=run_tags(tier),
        executor_def=run_executor,
    )
