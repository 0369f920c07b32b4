"""The `prune` job: it keeps Dagster's event log small by deleting noise, never history.

Kept permanently: runs with their start, end, result table and failures; the last materialization of each partition and
the last verdict of each check on every day, and thus the last of all. Deleted once old: Dagster's events about each
step's mechanics, a step's log lines and the files of its output, plans to materialize a partition that has been
materialized since, and what was materialized or judged again on the same day (UTC). What each refresh did to each
series is in the audit log, `ingest_log`, which is never pruned.

Dagster's `delete_run` also erases that the run's partitions were ever materialized, and nothing finer exists, so this
job deletes rows itself. It knows the columns of `event_logs`, `asset_event_tags` and `asset_check_executions` of
Dagster 1.13, and no other module does. An op job (https://docs.dagster.io/guides/build/jobs/op-jobs).
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.orchestration.run_liveness import run_executor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

# Failures are examined within days.
KEPT_DAYS: Final = 7
BATCH: Final = 10_000  # rows of one DELETE: 0.1 s, so its locks delay no one

# Not STEP_FAILURE, not PIPELINE_* and RUN_*, not ASSET_MATERIALIZATION, ASSET_OBSERVATION or ASSET_CHECK_EVALUATION.
# Not the start and success of a step either: the timeline of an old run is drawn from them.
MECHANICS: Final = (
    "ENGINE_EVENT",
    "HANDLED_OUTPUT",
    "HOOK_COMPLETED",
    "HOOK_SKIPPED",
    "LOADED_INPUT",
    "LOGS_CAPTURED",
    "RESOURCE_INIT_STARTED",
    "RESOURCE_INIT_SUCCESS",
    "STEP_INPUT",
    "STEP_OUTPUT",
    "STEP_WORKER_STARTED",
    "STEP_WORKER_STARTING",
)

# Each SELECT yields ids of noise, at most a batch; the columns are named as Dagster names them.
NOISE: Final["Mapping[str, str]"] = {
    "mechanics": """
        select id from event_logs where dagster_event_type = any(:sorts) and timestamp < :before limit :batch""",
    "log lines": """
        select id from event_logs where dagster_event_type is null and timestamp < :before limit :batch""",
    # The UI shows a partition as failed when its newest plan has no materialization after it: only older plans may go.
    "fulfilled plans": """
        select id from event_logs as p
        where dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED' and partition is not null and timestamp < :before
        and exists (
            select from event_logs as m
            where m.asset_key = p.asset_key and m.dagster_event_type = 'ASSET_MATERIALIZATION'
            and m.partition = p.partition and m.id > p.id
        )
        limit :batch""",
    # Dagster knows a partition as materialized by any of these events, and shows the newest: it stays.
    "superseded materializations": """
        select id from event_logs as p
        where dagster_event_type = 'ASSET_MATERIALIZATION' and partition is not null and timestamp < :before
        and exists (
            select from event_logs as m
            where m.asset_key = p.asset_key and m.dagster_event_type = 'ASSET_MATERIALIZATION'
            and m.partition = p.partition and m.id > p.id
            and m.timestamp < date_trunc('day', p.timestamp) + interval '1 day'
        )
        limit :batch""",
    "repeated verdicts": """
        select evaluation_event_storage_id from asset_check_executions as v
        where evaluation_event_timestamp < :before and evaluation_event_storage_id is not null and exists (
            select from asset_check_executions as n
            where n.asset_key = v.asset_key and n.check_name = v.check_name and n.id > v.id
            and n.evaluation_event_timestamp < date_trunc('day', v.evaluation_event_timestamp) + interval '1 day'
        )
        limit :batch""",
}
_DELETE_EVENTS: Final = "delete from event_logs where id = any(:ids)"
_DELETE_TAGS: Final = "delete from asset_event_tags where event_id = any(:ids)"  # it has no foreign key
_DELETE_VERDICTS: Final = "delete from asset_check_executions where evaluation_event_storage_id = any(:ids)"


def old_log_files(engine: "Engine", kept_days: int = KEPT_DAYS) -> list[str]:
    """Return the runs whose captured output (stdout and stderr, in files) is old."""
    import sqlalchemy as sa

    select = "select distinct run_id from event_logs where dagster_event_type = 'LOGS_CAPTURED' and timestamp < :before"
    with engine.connect() as connection:
        return list(connection.execute(sa.text(select), {"before": _before(kept_days)}).scalars())


def _before(kept_days: int) -> datetime:
    """Return the instant before which noise is deleted, as Dagster writes it: UTC, without a time zone."""
    return (datetime.now(UTC) - timedelta(days=kept_days)).replace(tzinfo=None)


def prune_events(engine: "Engine", *, kept_days: int = KEPT_DAYS) -> dict[str, int]:
    """Delete old noise from Dagster's event log, in batches, and return how many events of each kind were deleted."""
    import sqlalchemy as sa

    values = {"before": _before(kept_days), "batch": BATCH, "sorts": list(MECHANICS)}
    deleted = dict.fromkeys(NOISE, 0)
    for sort, select in NOISE.items():
        while True:
            with engine.begin() as connection:
                ids = list(connection.execute(sa.text(select), values).scalars())
                if sort == "repeated verdicts":
                    connection.execute(sa.text(_DELETE_VERDICTS), {"ids": ids})
                if sort == "superseded materializations":
                    connection.execute(sa.text(_DELETE_TAGS), {"ids": ids})
                connection.execute(sa.text(_DELETE_EVENTS), {"ids": ids})
            deleted[sort] += len(ids)
            if len(ids) < BATCH:
                break
    return deleted


class PruneConfig(dg.Config):
    """The run config of `prune`."""

    kept_days: int = KEPT_DAYS


@dg.op(description="Deletes old noise from Dagster's event log; runs and each partition's last state of each day stay.")
def prune_event_log(context: dg.OpExecutionContext, config: PruneConfig) -> None:
    """Prune the storage that this run is recorded in, if that is PostgreSQL."""
    import sqlalchemy as sa

    from market_data_pipeline.store.connection import with_keepalives

    url = getattr(context.instance.event_log_storage, "postgres_url", None)
    if url is None:
        context.log.info("Dagster's storage is not PostgreSQL: nothing to prune.")
        return
    engine = sa.create_engine(with_keepalives(url))
    try:
        runs = old_log_files(engine, config.kept_days)
        for run_id in runs:
            context.instance.compute_log_manager.delete_logs(prefix=[run_id])
        deleted = prune_events(engine, kept_days=config.kept_days)
    finally:
        engine.dispose()
    context.add_output_metadata({**deleted, "runs whose output files were deleted": len(runs)})


@dg.job(name="prune", executor_def=run_executor, description="Keeps Dagster's event log small.")
def prune_job() -> None:
    """Delete old noise from the event log."""
    prune_event_log()
