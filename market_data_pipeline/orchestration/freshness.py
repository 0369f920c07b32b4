"""A tier's light in the Dagster UI: has it been refreshed lately?

Dagster looks only at the asset's LAST materialization, so one fresh symbol turns the light green. The truth per series
is in `series_state` and shown by the `series_freshness` check (checks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES

if TYPE_CHECKING:
    from market_data_pipeline.domain.series import Tier


def freshness_policy(tier: Tier) -> dg.FreshnessPolicy:
    """Return the policy of a tier's assets; the windows and their reasons are in `domain.objectives`."""
    objective = TIER_OBJECTIVES[tier]
    return dg.FreshnessPolicy.time_window(fail_window=objective.fail_after, warn_window=objective.warn_after)
