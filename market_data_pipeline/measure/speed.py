"""Shorter cadences and RPOs for a project in which hours have to pass in minutes.

Keep out: any other import of this package. A process calls `hasten` before its first one.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Final

from market_data_pipeline.domain import objectives
from market_data_pipeline.domain.series import Tier

SPEED: Final = 15
_CRONS: Final = {Tier.CRITICAL: "* * * * *", Tier.STANDARD: "*/4 * * * *", Tier.LOW_PRIORITY: "20 * * * *"}


def hasten() -> None:
    """Divide the cadences and RPOs of the tiers by `SPEED`, before other modules of this process read them."""
    objectives.TIER_OBJECTIVES = MappingProxyType(  # type: ignore[misc]
        {
            tier: replace(
                one,
                rpo=one.rpo / SPEED,
                cadence=one.cadence / SPEED,
                cron=_CRONS[tier],
                cron_timezone="UTC",
                warn_after=one.warn_after / SPEED,
                fail_after=one.fail_after / SPEED,
            )
            for tier, one in objectives.TIER_OBJECTIVES.items()
        }
    )
