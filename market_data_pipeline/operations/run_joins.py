"""Dagster's runs joined with the audit trail: what each execution did for how many symbols.

Keep out: reading Dagster's storage (dagster_state) and the reports that show an execution (reports).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterable

    from market_data_pipeline.operations.dagster_state import Run
    from market_data_pipeline.operations.report_documents import Execution, LastExecution

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
    return {
        "execution_id": run.run_id,
        "job": run.job,
        "trigger": run.trigger,
        "requested_by": run.requested_by,
        "reason": run.reason,
        "series": run.series,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
        "duration_seconds": (
            round((run.completed_at - run.started_at).total_seconds(), 3)
            if run.started_at and run.completed_at
            else None
        ),
        "total_symbols": total,
        "successful_symbols": total - failed,
        "failed_symbols": failed,
        "total_records_processed": logged.records if logged else 0,
        "status": run.status,
        "error_message": error,
        "success_rate": (total - failed) / total if total else None,
    }


def last_execution(execution: Execution) -> LastExecution:
    """Return what the scheduler's health shows of its newest refresh."""
    return {
        "execution_id": execution["execution_id"],
        "started_at": execution["started_at"],
        "completed_at": execution["completed_at"],
        "status": execution["status"],
        "successful_symbols": execution["successful_symbols"],
        "failed_symbols": execution["failed_symbols"],
    }
