"""Who asked for which run, why and for what: the rows of `run_log`, which nobody can change.

Add here: statements on it. Keep out: where a run comes from (orchestration.provenance), and what came of each series
(ledger).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

_APPEND: Final = sa.text("""
    insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series)
    values (:run_id, market_data.clock(), :job, :trigger, :requested_by, :reason, :series)
""")


def append_run(
    engine: sa.Engine, run_id: str, job: str, *, trigger: str, requested_by: str, reason: str, series: str
) -> None:
    """Note that a run begins, before it writes any series.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    values = {"run_id": run_id, "job": job, "trigger": trigger, "requested_by": requested_by, "reason": reason}
    with engine.begin() as connection:
        connection.execute(_APPEND, {**values, "series": series})
