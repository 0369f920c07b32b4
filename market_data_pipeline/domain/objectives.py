"""Objectives: how fresh each tier is, what each degree of staleness means, and how fast each failure is recovered from.

Schedules, freshness policies, sensors, API answers, drills and docs/objectives.md all derive from this module. Every
Dagster process imports it, so it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.series import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

# A bar is due this long after the plan serves it: the vendor's clock may differ from ours, and an answer takes time.
DUE_GRACE: Final = timedelta(minutes=2)

# The vendor rebuilds a minute for 15 minutes as late trades arrive; until then a bar is provisional.
SETTLE_AFTER: Final = timedelta(minutes=15)

# Trades reported even later are included overnight; from this time of the NEXT day, New York, a session is settled.
SETTLED_AT: Final = time(11, 0)

# A daily backup is late when the next one has not ended by then: a day of 25 hours, and an hour to make it.
BACKUP_WITHIN: Final = timedelta(hours=26)


@dataclass(frozen=True, slots=True)
class TierObjective:
    """The objective of one tier, and the timing that meets it."""

    rpo: timedelta  # recovery point: the staleness that no series of the tier may exceed
    cadence: timedelta  # the longest time between two scheduled refreshes, clock changes aside
    cron: str
    cron_timezone: str
    description: str
    warn_after: timedelta  # the freshness policy warns this long after the tier's last materialization
    fail_after: timedelta  # and fails
    run_priority: int  # of its runs in Dagster's queue; higher goes first
    shard_symbols: int  # symbols refreshed by one run; more in a large tier (`orchestration.runs`)


# Freshness policies see the end of the tier's last refresh, and refreshes take seconds to minutes. One late or failed
# refresh does not warn; a warning means that two in a row are missing, a failure that the RPO has passed without one. A
# daily tier cannot wait for two: a refresh that is 2 hours late warns, one that is 6 hours late fails.
# Starts: a run takes 2 s to start. Tiers scheduled for the same instant start 15 s apart, so that they do not load side
# by side and the critical one has the vendor's limit to itself for its first requests.
# Shards: a run takes 2 s to start, and what it loses by a crash is refreshed again: a critical run ends within seconds.
# Less urgent tiers have longer and fewer runs.
TIER_OBJECTIVES: Final[Mapping[Tier, TierObjective]] = MappingProxyType(
    {
        Tier.CRITICAL: TierObjective(
            rpo=timedelta(hours=1),
            cadence=timedelta(minutes=15),
            cron="*/15 * * * *",
            cron_timezone="UTC",
            description="For trading: refreshed every 15 minutes, never more than 1 hour behind.",
            warn_after=timedelta(minutes=40),
            fail_after=timedelta(hours=1),
            run_priority=10,
            shard_symbols=25,
        ),
        Tier.STANDARD: TierObjective(
            rpo=timedelta(hours=4),
            cadence=timedelta(hours=1),
            cron="0 * * * *",
            cron_timezone="UTC",
            description="For the trading day: refreshed hourly, never more than 4 hours behind.",
            warn_after=timedelta(hours=2, minutes=30),
            fail_after=timedelta(hours=4),
            run_priority=0,
            shard_symbols=50,
        ),
        # 00:30 New York: the session's day bar ends at 00:00, the slowest intraday plan serves it 15 minutes later and
        # it settles in another 15; end-of-day plans serve the day at 00:00. So ONE refresh fetches all bars of a day.
        # The first bar after it is the next session's 04:00 one: when the next refresh starts, an equity series is 20.5
        # hours behind, and 3.5 hours remain for a second attempt before the RPO. A crypto series, which has no such
        # pause, is 24 hours behind, and 25 when the clocks go back.
        Tier.LOW_PRIORITY: TierObjective(
            rpo=timedelta(hours=24),
            cadence=timedelta(hours=24),
            cron="30 0 * * *",
            cron_timezone=EXCHANGE_ZONE_NAME,
            description="For occasional use: refreshed once a day, half an hour after midnight in New York.",
            warn_after=timedelta(hours=26),
            fail_after=timedelta(hours=30),
            run_priority=-10,
            shard_symbols=100,
        ),
    }
)


class Freshness(StrEnum):
    """The state of a series by its staleness, from best to worst."""

    FRESH = "fresh"
    AGING = "aging"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """The staleness of a state, and what the API does."""

    up_to: timedelta | None  # the greatest staleness, inclusive; None: no limit
    condition: str
    action: str


# For how long a stale answer is still served as a cached one.
CACHE_LIFESPAN: Final = timedelta(hours=24)

FRESHNESS: Final[Mapping[Freshness, FreshnessRule]] = MappingProxyType(
    {
        Freshness.FRESH: FreshnessRule(
            timedelta(hours=1), "staleness up to 1 hour", "Serve the answer with its timestamp."
        ),
        Freshness.AGING: FreshnessRule(
            timedelta(hours=6), "staleness over 1 hour, up to 6 hours", "Serve the answer with a warning."
        ),
        Freshness.STALE: FreshnessRule(
            None,
            "staleness over 6 hours",
            "Serve the answer with a stale warning and the rest of its 24-hour cache lifespan, or that it has passed.",
        ),
        Freshness.MISSING: FreshnessRule(
            None, "never computed", "Answer 404 with an explanation and queue a backfill request."
        ),
    }
)


class Outage(StrEnum):
    """The failures that have a recovery objective and a drill."""

    SCHEDULER_CRASH = "SCHEDULER_CRASH"
    POLYGON_API_RATE_LIMIT = "POLYGON_API_RATE_LIMIT"
    DATABASE_CONNECTION_LOSS = "DATABASE_CONNECTION_LOSS"
    FEATURE_COMPUTATION_FAILURE = "FEATURE_COMPUTATION_FAILURE"
    SERVER_LOSS = "SERVER_LOSS"


@dataclass(frozen=True, slots=True)
class RecoveryObjective:
    """How soon an outage must be over, how to recognise it, and what to do, step by step."""

    rto: timedelta  # recovery time: from the first symptom to normal operation
    symptom: str
    procedure: tuple[str, ...]


RECOVERY_OBJECTIVES: Final[Mapping[Outage, RecoveryObjective]] = MappingProxyType(
    {
        Outage.SCHEDULER_CRASH: RecoveryObjective(
            rto=timedelta(minutes=5),
            symptom="`market-data health` reports the Dagster daemon unreachable; the UI shows no new ticks.",
            procedure=(
                "Run `market-data health`: it names the daemon without heartbeats, and what is not evaluated.",
                "`market-data up` restarts its processes and alerts; if it has ended too, start it again.",
                "Runs that died are found within a minute, marked as failed, and retried.",
                "Wait for the next schedule tick or launch the tier's job: it fetches exactly what is missing.",
                "Confirm with `market-data staleness` that every tier is within its RPO.",
            ),
        ),
        Outage.POLYGON_API_RATE_LIMIT: RecoveryObjective(
            rto=timedelta(minutes=30),
            symptom="The vendor answers 429: `rate_limited` in `ingest_log` and the rate in the scheduler health rise.",
            procedure=(
                "Wait at first: one 429 pauses every process, and requests are retried with backoff.",
                "If series still fail, run `market-data health` and compare the requests with the plan's limit.",
                "Lower POLYGON_CALLS_PER_MINUTE when another program shares the key, or choose the right POLYGON_PLAN.",
                "Run `market-data plan` to see how long the missing calls take at that limit.",
                "The next refresh fetches what is missing; critical runs leave the queue first.",
            ),
        ),
        Outage.DATABASE_CONNECTION_LOSS: RecoveryObjective(
            rto=timedelta(minutes=2),
            symptom="`/health` answers 503 and runs stop with DatabaseUnavailableError.",
            procedure=(
                "Check that PostgreSQL runs and DATABASE_URL reaches it; `market-data up` starts the embedded one.",
                "Nothing is half written: a series' data, coverage, state and log rows commit in one transaction.",
                "The read API reconnects automatically as soon as the server answers.",
                "Launch the tier's job or wait for the next tick: only what was not committed is fetched again.",
                "Confirm with `market-data health` and `market-data staleness`.",
            ),
        ),
        Outage.FEATURE_COMPUTATION_FAILURE: RecoveryObjective(
            rto=timedelta(minutes=1),
            symptom="A series fails with FeatureError in `ingest_log`; all others continue.",
            procedure=(
                "The failing series keeps its last good features, served with their staleness; all others continue.",
                "Read the error with `market-data history` and the series' gaps with `market-data gaps SYMBOL`.",
                "The next refresh computes it again, which is enough if the vendor corrects the bars.",
                "Otherwise run `market-data backfill --symbols SYMBOL --full` to fetch and compute the series again.",
            ),
        ),
        # `benchmarks.backup` holds the restore of five years of 25 symbols against it, on a machine with the project
        # installed.
        Outage.SERVER_LOSS: RecoveryObjective(
            rto=timedelta(hours=1),
            symptom="The server and its disk are gone. The last backup is left; later bars are fetched again.",
            procedure=(
                "Install the project on another machine, copy `.env` and the backups to it, and start nothing yet.",
                "With a PostgreSQL of your own, create two empty databases and name them in `.env`.",
                "Run `market-data restore DIR`: it restores the newest backup and compares it with what was backed up.",
                "Run `market-data verify DIR`: it checks the audit log and the values too.",
                "Run `market-data up`: it fetches what is missing since the backup.",
            ),
        ),
    }
)
