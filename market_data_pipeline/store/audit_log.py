"""The append-only audit log in PostgreSQL: `run_log`, one row per run, and `ingest_log`, one row per series and run."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.counters import NOTHING, Counters

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
    """One execution of one series, as `ingest_log` keeps it.

    `due_at` is `next_due_at` as it was before the execution: when the first missing bar was, or will be, due. `rpo` is
    the tier's objective; from both the row's `outside_rpo_since` is computed.
    """

    run_id: str
    started_at: datetime
    finished_at: datetime
    status: str
    counters: Counters = NOTHING
    error_class: str | None = None
    error: str | None = None
    warning: str | None = None
    due_at: datetime | None = None
    rpo: timedelta = timedelta(0)


_COLUMNS: Final = (
    *("run_id", "symbol", "timeframe", "started_at", "finished_at", "status", "error_class", "error", "warning"),
    *(counter.name for counter in fields(Counters)),
)
_LOGGED: Final = len(_COLUMNS)
_DUE_AT: Final = f"${_LOGGED + 1}::timestamptz"
_RPO: Final = f"${_LOGGED + 2} * interval '1 second'"
_APPEND_LOG: Final = f"""
    with logged as (
        insert into market_data.ingest_log ({", ".join(_COLUMNS)}, outside_rpo_since)
        values (
            {", ".join(f"${at}" for at in range(1, _LOGGED + 1))},
            case when coalesce({_DUE_AT} + {_RPO}, '-infinity') < $5::timestamptz then
                market_data.outside_rpo_since($2, $3, {_DUE_AT}, {_RPO}, $5::timestamptz)
            end
        )
    )

    select pg_notify('market_data_series', ${_LOGGED + 3})::text
"""  # noqa: S608 - names of columns


def append_log(connection: StoreConnection, series: Series, row: LogRow) -> None:
    """Append the row of one execution, and notify listeners (the read API's cache) which series it was."""
    connection.execute(
        _APPEND_LOG,
        *(row.run_id, series.symbol, str(series.timeframe), row.started_at, row.finished_at, row.status),
        *(row.error_class, row.error, row.warning),
        *astuple(row.counters),
        *(row.due_at, row.rpo.total_seconds(), series.partition_key),
    )
