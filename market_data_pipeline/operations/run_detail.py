"""One run in full: who asked for it, why, and what came of each of its series.

The answer stands in the audit trail (`run_log`, `ingest_log`); what Dagster still knows of the run completes it. Keep
out: lists of runs (reports).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.failures import DatabaseUnavailableError, UsageError
from market_data_pipeline.operations.dagster_state import Run
from market_data_pipeline.operations.run_joins import join_runs
from market_data_pipeline.operations.snapshot import snapshot

if TYPE_CHECKING:
    from market_data_pipeline.operations.dagster_state import DagsterState
    from market_data_pipeline.operations.report_documents import ExecutionDetail, SeriesExecution

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
        now = connection.execute(sa.text("select market_data.clock()")).scalar_one()
        audited = connection.execute(_AUDITED, {"beginning": run.run_id if run else beginning}).mappings().one_or_none()
        if run is None and audited is not None:
            run = Run(**audited, status="UNKNOWN", created_at=audited["started_at"], failure=None)
        if run is None:
            raise UsageError(f"No run is called {beginning}; `market-data history` lists them.")
        (execution,) = join_runs(connection, [run])
        rows = connection.execute(_RESULTS, {"run_id": run.run_id}).mappings()
        results: list[SeriesExecution] = [dict(row) for row in rows]  # type: ignore[misc]  # its columns are the keys
    return {"timestamp": now, "execution": execution, "results": results}
