"""The append-only audit log in PostgreSQL: `run_log`, one row per run, and `ingest_log`, one row per series and run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.counters import NOTHING, Counters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

_APPEND_RUN: Final = """
    insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series)
    values (
        %(run_id)s, market_data.clock(), %(job)s, %(trigger)s, %(requested_by)s, %(reason)s, %(series)s
    )
"""


def append_run(
    engine: sa.Engine, run_id: str, job: str, *, trigger: str, requested_by: str, reason: str, series: str
) -> None:
    """Append a run to `run_log`, before it writes any series.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    values = {"run_id": run_id, "job": job, "trigger": trigger, "requested_by": requested_by, "reason": reason}
    with engine.begin() as connection:
        connection.exec_driver_sql(_APPEND_RUN, {**values, "series": series})


@dataclass(frozen=True, slots=True)
class LogRow:
    """One execution of one series, as `ingest_log` keeps it.

    `due_at` is `next_due_at` as it was before the execution: when the first missing bar was, or will be, due; where no
    bars are expected (domain.life), the end of the execution. `rpo` is the tier's objective; the row's
    `outside_rpo_since` is computed from both. What was stored, changed or removed lies in [changed_from,
    changed_until), None where nothing was.
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
    changed_from: datetime | None = None
    changed_until: datetime | None = None


_COUNTERS: Final = tuple(counter.name for counter in fields(Counters))
_COLUMNS: Final = (
    *("run_id", "symbol", "timeframe", "started_at", "finished_at", "status", "error_class", "error", "warning"),
    *("changed_from", "changed_until"),
    *_COUNTERS,
)
_ROW: Final = tuple(field.name for field in fields(LogRow) if field.name != "counters")
_APPEND_LOG: Final = f"""
    insert into market_data.ingest_log ({", ".join(_COLUMNS)}, outside_rpo_since)
    values (
        {", ".join(f"%({name})s" for name in _COLUMNS)},
        case when coalesce(%(due_at)s::timestamptz + %(rpo)s, '-infinity') < %(finished_at)s then
            market_data.outside_rpo_since(
                %(symbol)s, %(timeframe)s, %(due_at)s::timestamptz, %(rpo)s, %(finished_at)s
            )
        end
    )
"""  # noqa: S608 - names of columns
_TYPES: Final = {
    **dict.fromkeys(("started_at", "finished_at", "changed_from", "changed_until", "due_at"), "timestamptz"),
    **{counter.name: "float8" if counter.name.endswith("_seconds") else "bigint" for counter in fields(Counters)},
    "rpo": "interval",
}
_APPEND_MANY: Final = f"""
    insert into market_data.ingest_log ({", ".join(_COLUMNS)}, outside_rpo_since)
    select
        {", ".join(f"one.{name}" for name in _COLUMNS)},
        case when coalesce(one.due_at + one.rpo, '-infinity') < one.finished_at then
            market_data.outside_rpo_since(one.symbol, one.timeframe, one.due_at, one.rpo, one.finished_at)
        end
    from unnest(
        {", ".join(f"%({name})s::{_TYPES.get(name, 'text')}[]" for name in (*_COLUMNS, "due_at", "rpo"))}
    ) as one ({", ".join((*_COLUMNS, "due_at", "rpo"))})
"""  # noqa: S608 - names of columns


def append_log(connection: StoreConnection, series: Series, row: LogRow) -> None:
    """Append the row of one execution."""
    connection.execute(_APPEND_LOG, _values(series, row))


def append_logs(connection: StoreConnection, rows: Sequence[tuple[Series, LogRow]]) -> None:
    """Append the rows of one execution each of several series."""
    import numpy as np

    values = [_values(series, row) for series, row in rows]
    columns: dict[str, Any] = {name: [each[name] for each in values] for name in (*_COLUMNS, "due_at", "rpo")}
    columns |= {name: np.array(columns[name], "int64" if _TYPES[name] == "bigint" else "float64") for name in _COUNTERS}
    connection.execute(_APPEND_MANY, columns)


def _values(series: Series, row: LogRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _ROW}  # asdict() copies deeply
    values |= {name: getattr(row.counters, name) for name in _COUNTERS}
    return {**values, "symbol": series.symbol, "timeframe": str(series.timeframe)}
