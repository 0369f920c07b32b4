"""What we promise: how fresh each tier is, what staleness means, and how fast each failure is put right.

The ONE source that schedules, freshness policies, sensors, API answers, drills and the published document derive from.
Add here: a tier, a threshold, a failure with its recovery time. Keep out: how staleness comes about (due), and anything
that measures whether a promise is kept (operations). Nothing heavy may be imported here.
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

# A bar is due this long after the plan serves it: the vendor's clock and ours may differ, and an answer takes a while.
DUE_GRACE: Final = timedelta(minutes=2)

# The vendor rebuilds a minute for 15 minutes as late trades arrive; until then a bar is provisional.
SETTLE_AFTER: Final = timedelta(minutes=15)

# Trades reported later still are folded in overnight; from this time of the NEXT day, New York, a session is settled.
SETTLED_AT: Final = time(11, 0)


@dataclass(frozen=True, slots=True)
class TierObjective:
    """What one tier is promised, and the timing that keeps the promise."""

    rpo: timedelta  # recovery point: the staleness that no series of the tier may exceed
    cadence: timedelta  # the longest time between two scheduled refreshes, changes of clock aside
    cron: str
    cron_timezone: str
    description: str
    warn_after: timedelta  # since the tier's last materialization: the freshness policy warns
    fail_after: timedelta  # and fails
    starts_after: timedelta  # behind the cron's instant, so that tiers that fall due together do not start together
    run_priority: int  # of its runs in Dagster's queue; higher goes first
    max_shard_symbols: int  # symbols refreshed by one run


# Windows of the freshness policies: they see the end of the tier's last refresh, and refreshes take seconds to minutes.
# So one late or failed refresh says nothing; a warning means that two in a row are missing, a failure that the RPO has
# passed without any. A daily tier cannot wait for two: there a refresh 2 hours late warns and one 6 hours late fails.
# Starts: a run takes 2 s to start. Fifteen seconds apart, tiers that fall due at the same instant do not load side by
# side, and the critical one has the vendor's limit to itself for its first requests.
# Shards: the Dagster events of 25 symbols (125 series) take 6 s to write and a run takes 2 s to start (measured), so a
# critical run is done within the minute. Less urgent tiers take longer runs and fewer starts.
TIER_OBJECTIVES: Final[Mapping[Tier, TierObjective]] = MappingProxyType(
    {
        Tier.CRITICAL: TierObjective(
            rpo=timedelta(hours=1),
            cadence=timedelta(minutes=15),
            cron="*/15 * * * *",
            cron_timezone="UTC",
            description="Traded on: refreshed every 15 minutes, never more than 1 hour behind.",
            warn_after=timedelta(minutes=40),
            fail_after=timedelta(hours=1),
            starts_after=timedelta(seconds=0),
            run_priority=10,
            max_shard_symbols=25,
        ),
        Tier.STANDARD: TierObjective(
            rpo=timedelta(hours=4),
            cadence=timedelta(hours=1),
            cron="0 * * * *",
            cron_timezone="UTC",
            description="Followed through the day: refreshed hourly, never more than 4 hours behind.",
            warn_after=timedelta(hours=2, minutes=30),
            fail_after=timedelta(hours=4),
            starts_after=timedelta(seconds=15),
            run_priority=0,
            max_shard_symbols=50,
        ),
        # 00:30 New York: the session's day bar ends at 00:00, the slowest intraday plan serves it 15 minutes later and
        # it settles in another 15; end-of-day plans serve the day at 00:00. So ONE refresh takes in all bars of a day.
        # The first bar that it leaves missing is the next session's 04:00 one: when the refresh after that starts, a
        # stock is 20.5 hours behind, and 3.5 hours are left for a second attempt before the RPO. A crypto series has no
        # such pause: it comes to 24 hours, and to 25 when the clocks go back.
        Tier.LOW_PRIORITY: TierObjective(
            rpo=timedelta(hours=24),
            cadence=timedelta(hours=24),
            cron="30 0 * * *",
            cron_timezone=EXCHANGE_ZONE_NAME,
            description="Looked at now and then: refreshed once a day, half an hour after New York's midnight.",
            warn_after=timedelta(hours=26),
            fail_after=timedelta(hours=30),
            starts_after=timedelta(seconds=30),
            run_priority=-10,
            max_shard_symbols=100,
        ),
    }
)


class Freshness(StrEnum):
    """What a series' staleness amounts to, from best to worst."""

    FRESH = "fresh"
    AGING = "aging"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """When a series is in a state of freshness, and what is done about it."""

    up_to: timedelta | None  # the greatest staleness, inclusive; None: no limit
    condition: str
    action: str


# How long after its bars fell due a stale answer is still offered as a cached one.
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
            "Serve the answer with a stale warning and what is left of its 24-hour cache lifespan, or that it passed.",
        ),
        Freshness.MISSING: FreshnessRule(
            None, "never computed", "Answer 404 with an explanation and queue a backfill request."
        ),
    }
)


class Outage(StrEnum):
    """The failures that we prepared for."""

    SCHEDULER_CRASH = "SCHEDULER_CRASH"
    POLYGON_API_RATE_LIMIT = "POLYGON_API_RATE_LIMIT"
    DATABASE_CONNECTION_LOSS = "DATABASE_CONNECTION_LOSS"
    FEATURE_COMPUTATION_FAILURE = "FEATURE_COMPUTATION_FAILURE"


@dataclass(frozen=True, slots=True)
class RecoveryObjective:
    """How soon an outage is over, how it shows, and what to do in which order."""

    rto: timedelta  # recovery time: from the outage's first symptom to normal work
    symptom: str
    procedure: tuple[str, ...]


RECOVERY_OBJECTIVES: Final[Mapping[Outage, RecoveryObjective]] = MappingProxyType(
    {
        Outage.SCHEDULER_CRASH: RecoveryObjective(
            rto=timedelta(minutes=5),
            symptom="`market-data health` reports the Dagster daemon unreachable; the UI shows no new ticks.",
            procedure=(
                "Run `market-data health` to see which daemon has stopped sending heartbeats.",
                "Start it again with `market-data up`; under a process supervisor it restarts by itself.",
                "Runs that died with it are marked failed by run monitoring and started again.",
                "Wait for the next schedule tick or launch the tier's job: it fetches exactly what is missing.",
                "Confirm with `market-data staleness` that every tier is within its RPO.",
            ),
        ),
        Outage.POLYGON_API_RATE_LIMIT: RecoveryObjective(
            rto=timedelta(minutes=30),
            symptom="Answers 429: `rate_limited` grows in `ingest_log` and the scheduler health's rate rises.",
            procedure=(
                "Nothing at first: one 429 pauses every process, and requests are tried again with growing waits.",
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
                "See that PostgreSQL runs and that DATABASE_URL reaches it; `market-data up` starts the embedded one.",
                "Nothing is half written: a series' data, coverage, state and log rows commit in one transaction.",
                "The read API reconnects by itself as soon as the server answers.",
                "Launch the tier's job or wait for the next tick: only what had not been committed is fetched again.",
                "Confirm with `market-data health` and `market-data staleness`.",
            ),
        ),
        Outage.FEATURE_COMPUTATION_FAILURE: RecoveryObjective(
            rto=timedelta(minutes=1),
            symptom="A series fails with FeatureError in `ingest_log`; every other series goes on.",
            procedure=(
                "The failing series keeps its last good features, served with their staleness; all others go on.",
                "Read the error with `market-data history` and the series' gaps with `market-data gaps SYMBOL`.",
                "The next refresh computes it again, which is enough when a later answer corrects the bars.",
                "Otherwise run `market-data backfill --symbols SYMBOL --full`: bars and features are made anew.",
            ),
        ),
    }
)
