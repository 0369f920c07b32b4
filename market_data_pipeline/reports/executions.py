"""Dagster's runs joined with the audit log: which ran when, who requested it and why, and the result of each series.

`run_log` and `ingest_log` keep every run, and `ingest_log_runs` what was summed up since; Dagster adds what it still
knows of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from market_data_pipeline.domain.errors import DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.series import Timeframe
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
    from collections.abc import Iterable

    from market_data_pipeline.reports.dagster_state import DagsterState


# A run's series, with those that were summed up since.
_EXECUTED: Final = sa.text("""
    with rows as (
        select
            run_id, symbol, timeframe, started_at, finished_at, status, rows_inserted + rows_updated as records, error
        from market_data.ingest_log
        where run_id = any(cast(:run_ids as text []))
        union all
        select r.run_id, split_part(key, '|', 1), split_part(key, '|', 2), started_at, finished_at, 'unchanged', 0, null
        from market_data.ingest_log_runs as r
        cross join unnest(r.series) as key
        where r.run_id = any(cast(:run_ids as text []))
    )

    select
        run_id,
        min(started_at) as started_at,
        max(finished_at) as finished_at,
        count(distinct symbol) as symbols,
        count(distinct symbol) filter (where status = 'failed') as failed_symbols,
        count(*) filter (where status = 'failed') as failed_series,
        sum(records)::bigint as records,
        min(symbol || ' ' || timeframe || ': ' || error) filter (where status = 'failed') as an_error
    from rows
    group by run_id
""")


def join_runs(connection: sa.Connection, runs: Iterable[Run]) -> list[Execution]:
    """Return `runs`, in their order, with the symbols, records and errors that `ingest_log` has for them."""
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
    """Return what the scheduler's health shows of the newest refresh."""
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
        greatest(
            (select max(l.finished_at) from market_data.ingest_log as l where l.run_id = r.run_id),
            (select max(u.finished_at) from market_data.ingest_log_runs as u where u.run_id = r.run_id)
        ) as completed_at
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
    order by status <> 'failed', symbol, array_position(cast(:timeframes as text[]), timeframe), id
""")

_SUMMED_UP: Final = sa.text("""
    select distinct key
    from market_data.ingest_log_runs as r
    cross join unnest(r.series) as key
    where r.run_id = :run_id
    order by key
""")


def execution_detail(source: sa.Engine, dagster: DagsterState, beginning: str) -> ExecutionDetail:
    """Return the newest run whose id begins with `beginning`, with a row for each of its series that is in the log.

    Without Dagster's storage the audit log answers alone.

    Raises:
        UsageError: there is no such run.
        DatabaseUnavailableError: the database cannot be used.
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
            raise UsageError(f"No run's id begins with {beginning}; `market-data history` lists the runs.")
        (execution,) = join_runs(connection, [run])
        rows = connection.execute(_RESULTS, {"run_id": run.run_id, "timeframes": list(Timeframe)}).mappings()
        results = [SeriesExecution(**row) for row in rows]
        summed_up = list(connection.execute(_SUMMED_UP, {"run_id": run.run_id}).scalars())
    return ExecutionDetail(timestamp=now, execution=execution, results=results, unchanged_series=summed_up)
