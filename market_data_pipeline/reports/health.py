"""Whether the pipeline is in order: reachability, daemons, schedules and sensors, the last refresh, recent failures.

The pipeline's now is the database's `market_data.clock()`, so the reports of a replay use the replay's time. Keep out:
wording for a screen, HTTP, and reading Dagster's storage (dagster_state declares what is needed of it).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.reports.attainment import rpo_attainment
from market_data_pipeline.reports.backups import backup_is_late, last_backup
from market_data_pipeline.reports.executions import join_runs, last_execution
from market_data_pipeline.reports.freshness import read_clock, tier_counts
from market_data_pipeline.reports.models import (
    BarSource,
    Dependency,
    HealthReport,
    RateLimit,
    RecentFailure,
    RecentWarning,
    SchedulerHealth,
)
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from market_data_pipeline.reports.dagster_state import DagsterState, Evaluation, Run
    from market_data_pipeline.reports.freshness import TierFreshness

RECENT: Final = timedelta(hours=24)  # every schedule runs within it; older failures and refusals are history
RECENT_FAILURES: Final = 20
REFRESH_JOBS: Final = tuple(f"{tier}_refresh" for tier in Tier)

# Dagster looks every five seconds for what is due, and a tick takes a minute at most.
TICK_TOLERANCE: Final = timedelta(seconds=90)
_LATE_NAMED: Final = 3  # in one sentence; the scheduler's health names all

_FAILURES: Final = sa.text("""
    select run_id as execution_id, symbol, timeframe, finished_at as failed_at, error_class, error
    from market_data.ingest_log
    where status = 'failed' and finished_at > market_data.clock() - cast(:recent as interval)
    order by finished_at desc, id desc
    limit :limit
""")

_WARNINGS: Final = sa.text("""
    select
        warning, count(distinct (symbol, timeframe)) as series, min(symbol || '|' || timeframe) as example,
        max(finished_at) as last_seen_at
    from market_data.ingest_log
    where warning is not null and finished_at > market_data.clock() - cast(:recent as interval)
    group by warning
    order by last_seen_at desc, warning
    limit :limit
""")

_REQUESTS: Final = sa.text("""
    select coalesce(sum(requests), 0)::bigint as requests, coalesce(sum(rate_limited), 0)::bigint as rate_limited
    from market_data.ingest_log
    where requests > 0 and finished_at > market_data.clock() - cast(:recent as interval)
""")


_OLD_ACTIONS: Final = sa.text("""
    select name, since, error from market_data.reference_failures
    where name in ('splits', 'dividends', 'ticker events') and since < market_data.clock() - interval '1 day'
    order by name desc
""")


def vendor_requests(connection: sa.Connection) -> RateLimit:
    """Return how many requests were sent to the vendor within `RECENT`, and how many it answered with 429."""
    requests, rate_limited = connection.execute(_REQUESTS, {"recent": RECENT}).one()
    return RateLimit(
        window_hours=RECENT // timedelta(hours=1),
        total_requests=requests,
        rate_limited=rate_limited,
        rate=rate_limited / requests if requests else 0.0,
    )


def bar_source(connection: sa.Connection) -> BarSource | None:
    """Return what the database holds bars of; None before the first bar."""
    row = connection.execute(sa.text("select kind, host, plan, since from market_data.source")).mappings().first()
    return BarSource(**row) if row else None


_ANSWERS: Final = sa.text("""
    with recent as (
        select id, run_id, status, requests, rate_limited, error_class, error from market_data.ingest_log
        where finished_at > market_data.clock() - interval '1 hour'
    ),
    refused as (
        select id, run_id, error from recent where error_class = 'VendorRefusedError' order by id desc limit 1
    )
    select
        coalesce(sum(requests), 0) as requests,
        coalesce(sum(rate_limited), 0) as rate_limited,
        (select error from refused) as refusal,
        exists (
            select from recent as r cross join refused as f
            where r.status <> 'failed' and r.requests > 0 and (r.id > f.id or r.run_id = f.run_id)
        ) as answered_since,
        count(*) filter (where status <> 'failed' and requests > 0) as answered
    from recent
""")


class VendorAnswers(NamedTuple):
    """How the vendor answered the requests of the last hour."""

    requests: int
    rate_limited: int  # of them answered 429
    refusal: str | None  # the error of the last series whose key or plan was refused
    answered_since: bool  # whether another series was answered after that, or in the same run
    answered: int  # series that were answered


def vendor_answers(connection: sa.Connection) -> VendorAnswers:
    """Return how the vendor answered in the last hour, according to the audit log."""
    return VendorAnswers(*connection.execute(_ANSWERS).one())


def not_evaluated(evaluations: Iterable[Evaluation], now: datetime) -> list[str]:
    """Return a sentence for each schedule and sensor that should have been evaluated by `now` (real time) and was not.

    What runs is judged by what it did: a daemon's heartbeats go on when it cannot evaluate anything.
    """
    late = []
    for one in evaluations:
        if one.running and (one.due_at is None or now > one.due_at + TICK_TOLERANCE):
            since = (
                "never evaluated"
                if one.evaluated_at is None
                else f"last evaluated at {one.evaluated_at:%Y-%m-%d %H:%M:%S} UTC"
            )
            late.append(f"{one.name} is not evaluated: due {one.every}, {since}.")
    return late


def scheduler_health(
    source: sa.Engine, dagster: DagsterState, tiers: Mapping[Tier, TierFreshness] | None = None
) -> SchedulerHealth:
    """Return whether daemons, schedules, the last refresh and the series are in order, and if not, why.

    When Dagster's storage cannot be read, the answer is `degraded`, without what comes from there.

    Args:
        source: the database.
        dagster: daemons, schedules and runs.
        tiers: the counts of the tiers, if the caller has just read them.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    runs: tuple[Run, ...] = ()
    daemons = schedules = second = None
    evaluations: tuple[Evaluation, ...] = ()
    with suppress(DatabaseUnavailableError):
        runs = dagster.runs(1, REFRESH_JOBS)
        daemons, schedules, evaluations = dagster.daemons(), dagster.schedules(), dagster.evaluations()
        second = dagster.second_daemon()
    with snapshot(source) as connection:
        now = read_clock(connection)
        counts = (tier_counts(connection) if tiers is None else tiers).values()
        last = next((last_execution(execution) for execution in join_runs(connection, runs)), None)
        failures = connection.execute(_FAILURES, {"recent": RECENT, "limit": RECENT_FAILURES}).mappings()
        recent = [RecentFailure(**row) for row in failures]
        requests = vendor_requests(connection)
        attainment = rpo_attainment(connection)
        warned = connection.execute(_WARNINGS, {"recent": RECENT, "limit": RECENT_FAILURES}).mappings()
        warnings = [RecentWarning(**row) for row in warned]
        source_of_bars = bar_source(connection)
        old_actions = connection.execute(_OLD_ACTIONS).all()
        backup = last_backup(connection)
    series, stale = sum(tier.series for tier in counts), sum(tier.stale for tier in counts)
    missing = sum(tier.missing for tier in counts)
    reasons = [
        *(["Dagster's storage cannot be read."] if daemons is None else []),
        *(f"The {daemon.name} daemon is not running." for daemon in daemons or () if not daemon.alive),
        *([_served_twice(second)] if second else []),
        *(f"{one.name} is stopped." for one in evaluations if not one.running),
        *not_evaluated(evaluations, datetime.now(UTC)),
        *([f"The last refresh ended as {last.status}."] if last and last.status in {"FAILURE", "CANCELED"} else []),
        *([f"{stale} of {series} series are stale."] if stale else []),
        *([f"{missing} of {series} series were never computed."] if missing else []),
        *(_actions_are_old(*old) for old in old_actions),
        *backup_is_late(backup),
    ]
    return SchedulerHealth(
        status="degraded" if reasons else "healthy",
        reasons=reasons,
        timestamp=now,
        daemons=list(daemons or ()),
        schedules=list(schedules or ()),
        evaluations=list(evaluations),
        last_execution=last,
        stale_features_count=stale,
        recent_failures=recent,
        recent_warnings=warnings,
        rate_limit=requests,
        rpo_attainment=attainment,
        total_symbols_monitored=series // len(Timeframe),
        source=source_of_bars,
        last_backup=backup,
    )


def _served_twice(which: str) -> str:
    return f"A second Dagster daemon serves the same storage and evaluates everything again: {which}; end it."


def _actions_are_old(name: str, since: datetime, error: str) -> str:
    if name == "ticker events":
        return f"Renames of stocks have not been read since {since:%Y-%m-%d %H:%M} UTC: {error}"
    return (
        f"The market's {name} have been unreadable since {since:%Y-%m-%d %H:%M} UTC, so adjusted prices may lack one: "
        f"{error}"
    )


def health_report(source: sa.Engine, dagster: DagsterState) -> HealthReport:
    """Return whether the database and Dagster's daemon can be reached; never raises for one that cannot."""
    now, database = datetime.now(UTC), Dependency(reachable=False, detail="PostgreSQL cannot be reached.")
    try:
        with snapshot(source) as connection:
            now, database = read_clock(connection), Dependency(reachable=True, detail="PostgreSQL answers.")
    except DatabaseBusyError as error:  # it can be reached, and may answer the next question
        database = Dependency(reachable=True, detail=f"PostgreSQL is busy: {error}")
    except DatabaseUnavailableError:
        pass
    daemon = Dependency(reachable=False, detail="Dagster's storage cannot be read.")
    with suppress(DatabaseUnavailableError):
        down = [d.name for d in dagster.daemons() if not d.alive]
        problems = [f"No heartbeat from: {', '.join(down)}."] if down else []
        late = not_evaluated(dagster.evaluations(), datetime.now(UTC))
        problems += late[:_LATE_NAMED] + ([f"{len(late) - _LATE_NAMED} more."] if len(late) > _LATE_NAMED else [])
        said = problems or ["Every daemon sends heartbeats and evaluates what is due."]
        said += [_served_twice(second)] if (second := dagster.second_daemon()) else []
        daemon = Dependency(reachable=not problems, detail=" ".join(said))
    healthy = database.reachable and daemon.reachable
    return HealthReport(
        status="healthy" if healthy else "unhealthy", timestamp=now, database=database, dagster_daemon=daemon
    )
