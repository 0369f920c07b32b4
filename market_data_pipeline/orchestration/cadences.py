"""What Dagster's daemon evaluates and when, by name: known without importing Dagster, for the reports on it.

Add here: the name of a new schedule or sensor. The times of the tiers come from `domain.objectives`.
"""

from __future__ import annotations

from typing import Final

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES

# Job -> cron, New York. Days settle at 11:00, so `reconcile` then finds final day bars; `quality` reads what the
# nightly low_priority refresh (00:30) stored; `prune` runs when no one reads yesterday's logs, and `backup` after it.
# `settle` holds tables for moments when few read them.
# What `reconcile` changes, `lake` copies in the hour after it.
NIGHTLY: Final = {
    "quality": "15 2 * * *",
    "prune": "45 3 * * *",
    "backup": "30 4 * * *",
    "settle": "30 5 * * *",
    "reconcile": "20 11 * * *",
    "lake": "30 12 * * *",
}

# Seconds after which Dagster ends a run that a schedule or the staleness sensor started. What it committed stays, and
# the next run goes on: an ordinary refresh takes seconds, one after a weekend on the slowest plan half an hour. All
# symbols are reverified by one run: in 12 hours the slowest plan, 5 calls a minute, answers 3,600 requests. The first
# copy of a large history may take as long.
MAX_RUNTIME_TAG: Final = "dagster/max_runtime"
MAX_RUNTIME: Final = 2 * 3600
LONG_MAX_RUNTIME: Final = 12 * 3600
LONG_JOBS: Final = ("reconcile", "lake", "settle")

# Schedule -> cron and its time zone.
SCHEDULES: Final = {
    **{f"{tier}_schedule": (one.cron, one.cron_timezone) for tier, one in TIER_OBJECTIVES.items()},
    **{f"{job}_schedule": (cron, EXCHANGE_ZONE_NAME) for job, cron in NIGHTLY.items()},
}
SENSORS: Final = ("universe_sensor", "staleness_sensor", "backfill_request_sensor", "run_failure_alert_sensor")
