"""Lost runs: those whose process is gone are found by a lock, and marked as failed.

Dagster's code server reports a run process that dies, unless it dies too: after a power cut, or when the whole service
is killed, such a run stays `STARTED`, and its tier's schedule would wait for it indefinitely. Run monitoring
(https://docs.dagster.io/deployment/execution/run-monitoring) cannot help, because the default launcher cannot report a
run's health. So a refresh holds an advisory lock of PostgreSQL while it works, which no crash leaves behind; a started
refresh without its lock is lost. Run retries then start it again.
"""

from __future__ import annotations

import time
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

_SPACE: Final = "market_data.run"


@contextmanager
def alive(instance: dg.DagsterInstance, engine: Engine, run_id: str) -> Iterator[None]:
    """Hold the run's lock while the block runs.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: there is no connection to PostgreSQL at the beginning.
    """
    from market_data_pipeline.store.held_lock import held_lock

    with held_lock(engine, _SPACE, run_id):
        instance.add_run_tags(run_id, {_LOCK_TAG: "held"})
        try:
            yield
        finally:
            instance.add_run_tags(run_id, {_LOCK_TAG: "released"})


def fail_lost_runs(instance: dg.DagsterInstance, engine: Engine) -> list[str]:
    """Mark as failed the runs whose process is gone or that never reached the queue; return their ids.

    Their slots in the pools are freed.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached, so nothing is known about any run.
    """
    lost = [
        (run, "It was created but never queued: the process that created it is gone.")
        for run in _runs(instance, dg.DagsterRunStatus.NOT_STARTED, datetime.now(UTC) - _QUEUED_WITHIN)
    ]
    started = [run for run in _runs(instance, dg.DagsterRunStatus.STARTED) if run.tags.get(_LOCK_TAG) == "held"]
    lost += [
        (run, "Its process is gone: it no longer holds its lock in the database.") for run in _unheld(engine, started)
    ]
    failed = []
    for run, message in lost:  # unless it has moved on meanwhile
        now = instance.get_run_by_id(run.run_id)
        if now is not None and (now.status, now.tags.get(_LOCK_TAG)) == (run.status, run.tags.get(_LOCK_TAG)):
            instance.report_run_failed(now, message)
            # Run monitoring would free them within a minute; until then three lost runs would block the whole pool.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            failed.append(run.run_id)
    return failed


def _unheld(engine: Engine, runs: list[dg.DagsterRun]) -> list[dg.DagsterRun]:
    """Return the runs whose lock is free, and is still free after a live process would have taken it again."""
    from market_data_pipeline.store.held_lock import RETAKEN_WITHIN, is_free

    def free(among: list[dg.DagsterRun]) -> list[dg.DagsterRun]:
        with engine.connect() as connection:
            found = [run for run in among if is_free(connection, _SPACE, run.run_id)]
            connection.rollback()  # an observer's own lock ends here
        return found

    suspected = free(runs) if runs else []
    if suspected:  # a crash, which is rare: the tick may take a few seconds
        time.sleep(RETAKEN_WITHIN.total_seconds())
        suspected = free(suspected)
    return suspected


def _runs(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, made_before: datetime | None = None
) -> list[dg.DagsterRun]:
    filters = dg.RunsFilter(statuses=[status], created_before=made_before)
    return [record.dagster_run for record in instance.get_run_records(filters, limit=100)]
