"""Lost runs: those whose process is gone are found by a lock, and marked as failed.

Dagster's code server reports a run process that dies, unless it dies too: after a power cut, or when the whole service
is killed, such a run stays `STARTED`, and its tier's schedule would wait for it indefinitely. Run monitoring
(https://docs.dagster.io/deployment/execution/run-monitoring) cannot help, because the default launcher cannot report a
run's health. So a refresh holds an advisory lock of PostgreSQL while it works, which no crash leaves behind; a started
refresh without its lock is lost. Run retries then start it again.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

# "held" from when the run takes its lock until just before it releases it. The UI hides tags that begin with a dot.
_LOCK_TAG: Final = ".dagster/market_data_lock"

# A run is queued milliseconds after it is created; minutes mean that the process that created it died in between.
_QUEUED_WITHIN: Final = timedelta(minutes=5)

_LOCK: Final = "select pg_advisory_lock(hashtext('market_data.run'), hashtext(:run_id))"
# Shared, so that two observers at the same time do not mistake each other for the run.
_FREE: Final = "select pg_try_advisory_xact_lock_shared(hashtext('market_data.run'), hashtext(:run_id))"


@contextmanager
def alive(instance: dg.DagsterInstance, engine: Engine, run_id: str) -> Iterator[None]:
    """Hold the run's lock while the block runs.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    import sqlalchemy as sa

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(_LOCK), {"run_id": run_id})
        instance.add_run_tags(run_id, {_LOCK_TAG: "held"})
        try:
            yield
        finally:
            instance.add_run_tags(run_id, {_LOCK_TAG: "released"})
            connection.invalidate()  # closing the connection releases the lock, even if the server is gone


def fail_lost_runs(instance: dg.DagsterInstance, engine: Engine) -> list[str]:
    """Mark as failed the runs whose process is gone or that never reached the queue; return their ids.

    Their slots in the pools are freed.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached, so nothing is known about any run.
    """
    import sqlalchemy as sa

    lost = [
        (run, "It was created but never queued: the process that created it is gone.")
        for run in _runs(instance, dg.DagsterRunStatus.NOT_STARTED, datetime.now(UTC) - _QUEUED_WITHIN)
    ]
    started = [run for run in _runs(instance, dg.DagsterRunStatus.STARTED) if run.tags.get(_LOCK_TAG) == "held"]
    if started:
        with engine.connect() as connection:
            lost += [
                (run, "Its process is gone: it no longer holds its lock in the database.")
                for run in started
                if connection.execute(sa.text(_FREE), {"run_id": run.run_id}).scalar_one()
            ]
            connection.rollback()
    failed = []
    for run, message in lost:  # unless it has moved on meanwhile
        now = instance.get_run_by_id(run.run_id)
        if now is not None and (now.status, now.tags.get(_LOCK_TAG)) == (run.status, run.tags.get(_LOCK_TAG)):
            instance.report_run_failed(now, message)
            # Run monitoring would free them within a minute; until then three lost runs would block the whole pool.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            failed.append(run.run_id)
    return failed


def _runs(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, made_before: datetime | None = None
) -> list[dg.DagsterRun]:
    filters = dg.RunsFilter(statuses=[status], created_before=made_before)
    return [record.dagster_run for record in instance.get_run_records(filters, limit=100)]
