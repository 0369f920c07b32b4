"""The append-only audit log in PostgreSQL: `run_log`, one row per run, and `ingest_log`, one row per series and run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

_APPEND: Final = sa.text("""
    insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series)
    values (:run_id, market_data.clock(), :job, :trigger, :requested_by, :reason, :series)
""")


def append_run(
    engine: sa.Engine, run_id: str, job: str, *, trigger: str, requested_by: str, reason: str, series: str
) -> None:
    """Append a run to `run_log`, before it writes any series.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    values = {"run_id": run_id, "job": job, "trigger": trigger, "requested_by": requested_by, "reason": reason}
    with engine.begin() as connection:
        connection.execute(_APPEND, {**values, "series": series})


@dataclass(frozen=True, slots=True)
class LogRow:
    """One execution of one series, as `ingest_log` keeps it; times in seconds.

    `due_at` is `next_due_at` as it was before the execution: when the first missing bar was, or will be, due. `rpo` is
    the tier's objective; from both the row's `outside_rpo_since` is computed.
    """

    run_id: str
    started_at: datetime
    finished_at: datetime
    status: str
    requests: int = 0
    rate_limited: int = 0
    bytes: int = 0
    pages: int = 0
    rows_fetched: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    features_written: int = 0
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0
    error_class: str | None = None
    error: str | None = None
    warning: str | None = None
    due_at: datetime | None = None
    rpo: timedelta = timedelta(0)


def append_log(connection: StoreConnection, series: Series, row: LogRow) -> None:
    """Append the row of one execution, and notify listeners (the read API's cache) which series it was."""
    connection.execute(
        """
        with logged as (
            insert into market_data.ingest_log (
                run_id, symbol, timeframe, started_at, finished_at, status, requests, rate_limited, bytes,
                rows_fetched, rows_inserted, rows_updated, features_written,
                fetch_seconds, store_seconds, compute_seconds, error_class, error, warning, pages,
                outside_rpo_since
            )
            values (
                $1, $2, $3, $4, $5::timestamptz, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $23,
                case when coalesce($20::timestamptz + $21 * interval '1 second', '-infinity') < $5::timestamptz then
                    market_data.outside_rpo_since($2, $3, $20::timestamptz, $21 * interval '1 second', $5::timestamptz)
                end
            )
        )

        select pg_notify('market_data_series', $22)::text
        """,
        *(row.run_id, series.symbol, str(series.timeframe), row.started_at, row.finished_at, row.status),
        *(row.requests, row.rate_limited, row.bytes, row.rows_fetched, row.rows_inserted, row.rows_updated),
        *(row.features_written, row.fetch_seconds, row.store_seconds, row.compute_seconds),
        *(row.error_class, row.error, row.warning, row.due_at, row.rpo.total_seconds(), series.partition_key),
        row.pages,
    )
