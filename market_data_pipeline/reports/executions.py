"""What runs have done so far, read from the audit log: for a progress display and the table at the end.

Keep out: printing (progress) and Dagster's own history (reports).

Dagster's runs joined with the audit trail: what each execution did for how many symbols.

Keep out: reading Dagster's storage (dagster_state) and the reports that show an execution (reports).

One run in full: who asked for it, why, and what came of each of its series.

The answer stands in the audit trail (`run_log`, `ingest_log`); what Dagster still knows of the run completes it. Keep
out: lists of runs (reports).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from market_data_pipeline.domain.errors import DatabaseUnavailableError, UsageError
from market_data_pipeline.reports.dagster_state import Run
from market_data_pipeline.reports.freshness import read_clock
from market_data_pipeline.reports.models import (
    Execution,
    ExecutionDetail,
    ExecutionHistory,
    LastExecution,
    SeriesExecution,
)
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from market_data_pipeline.reports.dagster_state import DagsterState


@dataclass(frozen=True, slots=True)
class TierTotals:
    """One tier's part of some runs: series, rows, requests, and seconds summed over symbols side by side.

    Attributes:
        done: series whose execution went well and left nothing missing that was due.
        lacking: series whose execution went well, but the vendor did not give bars that were due.
        failed: series whose execution failed.
    """

    tier: str
    done: int = 0
    lacking: int = 0
    failed: int = 0
    changed: int = 0
    bars_written: int = 0
    features_written: int = 0
    requests: int = 0
    rate_limited: int = 0
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0
    latest_symbols: str = ""


@dataclass(frozen=True, slots=True)
class FailedSeries:
    """A series that failed, and why."""

    symbol: str
    timeframe: str
    error_class: str
    error: str


# A run that Dagster retried has two rows for a series; the newest tells how it ended, the sums tell what it cost.
_TOTALS: Final = sa.text("""
    with rows as (
        select
            l.*,
            s.tier,
            coalesce(s.next_due_at <= s.verified_at, true) as lacks,
            row_number() over (partition by l.symbol, l.timeframe order by l.id desc) as newest,
            row_number() over (partition by s.tier order by l.id desc) as age
        from market_data.ingest_log as l
        join market_data.series_state as s using (symbol, timeframe)
        where l.run_id = any(:run_ids)
    )
    select
        tier,
        count(*) filter (where newest = 1 and status <> 'failed' and not lacks) as done,
        count(*) filter (where newest = 1 and status <> 'failed' and lacks) as lacking,
        count(*) filter (where newest = 1 and status = 'failed') as failed,
        count(*) filter (where newest = 1 and status = 'ok') as changed,
        sum(rows_inserted + rows_updated)::bigint as bars_written,
        sum(features_written)::bigint as features_written,
        sum(requests)::bigint as requests,
        sum(rate_limited)::bigint as rate_limited,
        sum(fetch_seconds) as fetch_seconds,
        sum(store_seconds) as store_seconds,
        sum(compute_seconds) as compute_seconds,
        coalesce(string_agg(distinct symbol, ' ') filter (where age <= 6), '') as latest_symbols
    from rows
    group by tier
""")

_FAILED: Final = sa.text("""
    select symbol, timeframe, error_class, error
    from (
        select l.*, row_number() over (partition by l.symbol, l.timeframe order by l.id desc) as newest
        from market_data.ingest_log as l
        where l.run_id = any(:run_ids)
    ) as rows
    where newest = 1 and status = 'failed'
    order by symbol, timeframe
""")

_LACKING: Final = sa.text("""
    select distinct symbol
    from market_data.ingest_log as l
    join market_data.series_state as s using (symbol, timeframe)
    where l.run_id = any(:run_ids) and s.last_error is null and coalesce(s.next_due_at <= s.verified_at, true)
    order by symbol
""")

_HELD: Final = sa.text("""
    select s.tier, count(*) as series, sum(s.bar_count)::bigint as bars, sum(s.feature_count)::bigint as features
    from market_data.series_state as s
    join market_data.symbols as m using (symbol)
    where m.active
    group by s.tier
""")


def tier_totals(engine: sa.Engine, run_ids: Sequence[str]) -> dict[str, TierTotals]:
    """Return what the runs have done so far, by tier; a tier without a finished series is absent."""
    with engine.connect() as connection:
        rows = connection.execute(_TOTALS, {"run_ids": list(run_ids)}).mappings()
        return {row["tier"]: TierTotals(**row) for row in rows}


def failed_series(engine: sa.Engine, run_ids: Sequence[str]) -> list[FailedSeries]:
    """Return the series whose last execution in these runs failed."""
    with engine.connect() as connection:
        rows = connection.execute(_FAILED, {"run_ids": list(run_ids)}).mappings()
        return [FailedSeries(**row) for row in rows]


def lacking_symbols(engine: sa.Engine, run_ids: Sequence[str]) -> list[str]:
    """Return the symbols of which the vendor did not give bars that were due."""
    with engine.connect() as connection:
        return list(connection.execute(_LACKING, {"run_ids": list(run_ids)}).scalars())


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a tier: its series, their bars and their feature rows."""

    tier: str
    series: int
    bars: int
    features: int


def held(engine: sa.Engine) -> dict[str, Held]:
    """Return what is held of each tier's active symbols."""
    with engine.connect() as connection:
        return {row["tier"]: Held(**row) for row in connection.execute(_HELD).mappings()}


_EXECUTED: Final = sa.text("""
    select
        run_id,
        min(started_at) as started_at,
        max(finished_at) as finished_at,
        count(distinct symbol) as symbols,
        count(distinct symbol) filter (where status = 'failed') as failed_symbols,
        count(*) filter (where status = 'failed') as failed_series,
        sum(rows_inserted + rows_updated)::bigint as records,
        min(symbol || ' ' || timeframe || ': ' || error) filter (where status = 'failed') as an_error
    from market_data.ingest_log
    where run_id = any(cast(:run_ids as text []))
    group by run_id
""")


def join_runs(connection: sa.Connection, runs: Iterable[Run]) -> list[Execution]:
    """Return `runs`, in their order, with the symbols, records and errors that `ingest_log` has of them."""
    runs = tuple(runs)
    rows = connection.execute(_EXECUTED, {"run_ids": [run.run_id for run in runs]})
    logged = {row.run_id: row for row in rows}
    return [_execution(run, logged.get(run.run_id)) for run in runs]


def _execution(run: Run, logged: sa.Row[Any] | None) -> Execution:
    total, failed = (logged.symbols, logged.failed_symbols) if logged else (0, 0)
    error = run.failure
    if logged and logged.failed_series:
        more = f" and {logged.failed_series - 1} more series" if logged.failed_series > 1 else ""
        error = f"{logged.an_error}{more}"
    took = run.completed_at - run.started_at if run.started_at and run.completed_at else None
    return Execution(
        execution_id=run.run_id,
        job=run.job,
        trigger=run.trigger,
        requested_by=run.requested_by,
        reason=run.reason,
        series=run.series,
        started_at=run.started_at,
        completed_at=run.completed_at,
        duration_seconds=None if took is None else round(took.total_seconds(), 3),
        total_symbols=total,
        successful_symbols=total - failed,
        failed_symbols=failed,
        total_records_processed=logged.records if logged else 0,
        status=run.status,
        error_message=error,
        success_rate=(total - failed) / total if total else None,
    )


def last_execution(execution: Execution) -> LastExecution:
    """Return what the scheduler's health shows of its newest refresh."""
    return LastExecution.model_validate(execution, from_attributes=True)


def execution_history(source: sa.Engine, dagster: DagsterState, limit: int = 20) -> ExecutionHistory:
    """Return the newest `limit` runs of Dagster, joined with what `ingest_log` says of them.

    Raises:
        DatabaseUnavailableError: the database or Dagster's storage cannot be used.
    """
    runs = dagster.runs(limit)
    with snapshot(source) as connection:
        now = read_clock(connection)
        executions = join_runs(connection, runs)
    return ExecutionHistory(timestamp=now, executions=executions)


_AUDITED: Final = sa.text("""
    select
        run_id, job, trigger, requested_by, reason, series, started_at,
        (select max(l.finished_at) from market_data.ingest_log as l where l.run_id = r.run_id) as completed_at
    from market_data.run_log as r
    where starts_with(run_id, :beginning)
    order by id desc
    limit 1
""")

_RESULTS: Final = sa.text("""
    select
        symbol, timeframe, status, started_at, finished_at, requests, rate_limited, rows_fetched, rows_inserted,
        rows_updated, features_written, fetch_seconds + store_seconds + compute_seconds as seconds,
        error_class, error, warning
    from market_data.ingest_log
    where run_id = :run_id
    order by status <> 'failed', symbol, array_position(array['5m', '15m', '1h', '4h', '1d'], timeframe), id
""")


def execution_detail(source: sa.Engine, dagster: DagsterState, beginning: str) -> ExecutionDetail:
    """Return the newest run whose id begins so, with a row for each of its series.

    Raises:
        UsageError: there is none.
        DatabaseUnavailableError: the database cannot be used. Without Dagster's storage the audit trail answers alone.
    """
    try:
        run = dagster.run(beginning)
    except DatabaseUnavailableError:
        run = None
    with snapshot(source) as connection:
        now = read_clock(connection)
        audited = connection.execute(_AUDITED, {"beginning": run.run_id if run else beginning}).mappings().one_or_none()
        if run is None and audited is not None:
            run = Run(**audited, status="UNKNOWN", created_at=audited["started_at"], failure=None)
        if run is None:
            raise UsageError(f"No run is called {beginning}; `market-data history` lists them.")
        (execution,) = join_runs(connection, [run])
        rows = connection.execute(_RESULTS, {"run_id": run.run_id}).mappings()
        results = [SeriesExecution(**row) for row in rows]
    return ExecutionDetail(timestamp=now, execution=execution, results=results)
