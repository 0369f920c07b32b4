"""What of Dagster's storage is deleted once it is old: noise first, whole runs later, never what Dagster still shows.

Of old events, noise goes: Dagster's events about each step's mechanics, a step's log lines and the files of its output,
plans to materialize a partition that has been materialized since, and what was materialized or judged again on the same
day (UTC). Runs stay meanwhile, with their start, end, result table and failures.

Of old runs, all goes. One whose event still shows the state of a partition or the verdict of a check stays whole:
Dagster's `delete_run` would also erase that the partition was ever materialized, and nothing finer exists. What is left
to delete is shown by nothing, so `delete_run` is safe. Runs that have not finished are never touched. What each run did
to each series is in the audit log.

This module knows the columns of `event_logs`, `asset_event_tags`, `asset_check_executions` and `runs` of Dagster 1.13,
and no other does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

BATCH: Final = 10_000  # rows of one DELETE: 0.1 s, so its locks delay no one
_RUNS_AT_ONCE: Final = 200

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

# Each SELECT yields ids of noise; the columns are named as Dagster names them.
NOISE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mechanics": """
        select id from event_logs where dagster_event_type = any(:sorts) and timestamp < :before""",
        "log lines": """
        select id from event_logs where dagster_event_type is null and timestamp < :before""",
        # The UI shows a partition as failed when no materialization follows its newest plan: only older plans may go.
        "fulfilled plans": """
        select id from event_logs as p
        where dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED' and partition is not null and timestamp < :before
        and exists (
            select from event_logs as m
            where m.asset_key = p.asset_key and m.dagster_event_type = 'ASSET_MATERIALIZATION'
            and m.partition = p.partition and m.id > p.id
        )""",
        # Dagster knows a partition as materialized by any of these events, and shows the newest: it stays.
        "superseded materializations": """
        select id from event_logs as p
        where dagster_event_type = 'ASSET_MATERIALIZATION' and partition is not null and timestamp < :before
        and exists (
            select from event_logs as m
            where m.asset_key = p.asset_key and m.dagster_event_type = 'ASSET_MATERIALIZATION'
            and m.partition = p.partition and m.id > p.id
            and m.timestamp < date_trunc('day', p.timestamp) + interval '1 day'
        )""",
        "repeated verdicts": """
        select evaluation_event_storage_id from asset_check_executions as v
        where evaluation_event_timestamp < :before and evaluation_event_storage_id is not null and exists (
            select from asset_check_executions as n
            where n.asset_key = v.asset_key and n.check_name = v.check_name and n.id > v.id
            and n.evaluation_event_timestamp < date_trunc('day', v.evaluation_event_timestamp) + interval '1 day'
        )""",
    }
)
_DELETE_EVENTS: Final = "delete from event_logs where id = any(:ids)"
_DELETE_TAGS: Final = "delete from asset_event_tags where event_id = any(:ids)"  # it has no foreign key
_DELETE_VERDICTS: Final = "delete from asset_check_executions where evaluation_event_storage_id = any(:ids)"
_DELETE_VERDICTS_OF_RUN: Final = "delete from asset_check_executions where run_id = :run_id"

_WITH_OUTPUT: Final = """
    select distinct run_id from event_logs where dagster_event_type = 'LOGS_CAPTURED' and timestamp < :before"""
# A run stays while one of its events is the newest of its kind of an asset, partition or check.
_OLD_RUNS: Final = """
    select r.id, r.run_id from runs as r
    where
        r.status = any(:finished)
        and r.update_timestamp < :before
        and not exists (
            select from event_logs as e
            where
                e.run_id = r.run_id
                and e.dagster_event_type = any(:shown)
                and case
                    when e.partition is null then not exists (
                        select from event_logs as n
                        where
                            n.asset_key = e.asset_key and n.dagster_event_type = e.dagster_event_type
                            and n.partition is null and n.id > e.id
                    )
                    else not exists (
                        select from event_logs as n
                        where
                            n.asset_key = e.asset_key and n.dagster_event_type = e.dagster_event_type
                            and n.partition = e.partition and n.id > e.id
                    )
                end
        )
        and not exists (
            select from asset_check_executions as v
            where v.run_id = r.run_id and not exists (
                select from asset_check_executions as n
                where n.asset_key = v.asset_key and n.check_name = v.check_name and n.id > v.id
            )
        )"""
_SHOWN: Final = ("ASSET_MATERIALIZATION", "ASSET_MATERIALIZATION_PLANNED", "ASSET_OBSERVATION")
_FINISHED: Final = tuple(
    status.value for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
)


def _before(kept_days: int) -> datetime:
    """Return the instant before which something is old, as Dagster writes it: UTC, without a time zone."""
    return (datetime.now(UTC) - timedelta(days=kept_days)).replace(tzinfo=None)


def runs_with_old_output(engine: Engine, kept_days: int) -> list[str]:
    """Return the runs whose captured output (stdout and stderr, in files) is old."""
    import sqlalchemy as sa

    with engine.connect() as connection:
        return list(connection.execute(sa.text(_WITH_OUTPUT), {"before": _before(kept_days)}).scalars())


def old_events(engine: Engine, kept_days: int) -> dict[str, int]:
    """Return how many events of each kind `prune_events` would delete."""
    import sqlalchemy as sa

    values = {"before": _before(kept_days), "sorts": list(MECHANICS)}
    with engine.connect() as connection:
        return {
            sort: int(connection.execute(sa.text(f"select count(*) from ({select}) as noise"), values).scalar_one())  # noqa: S608 - ours
            for sort, select in NOISE.items()
        }


def prune_events(engine: Engine, kept_days: int) -> dict[str, int]:
    """Delete old noise from Dagster's event log, in batches, and return how many events of each kind were deleted."""
    import sqlalchemy as sa

    values = {"before": _before(kept_days), "batch": BATCH, "sorts": list(MECHANICS)}
    deleted = dict.fromkeys(NOISE, 0)
    for sort, select in NOISE.items():
        while True:
            with engine.begin() as connection:
                ids = list(connection.execute(sa.text(f"{select} limit :batch"), values).scalars())
                if sort == "repeated verdicts":
                    connection.execute(sa.text(_DELETE_VERDICTS), {"ids": ids})
                if sort == "superseded materializations":
                    connection.execute(sa.text(_DELETE_TAGS), {"ids": ids})
                connection.execute(sa.text(_DELETE_EVENTS), {"ids": ids})
            deleted[sort] += len(ids)
            if len(ids) < BATCH:
                break
    return deleted


def old_runs(engine: Engine, kept_days: int) -> int:
    """Return how many runs `prune_runs` would delete now; deleting old events first may make it a few more."""
    import sqlalchemy as sa

    count = sa.text(f"select count(*) from ({_OLD_RUNS}) as old")  # noqa: S608 - ours
    with engine.connect() as connection:
        return int(connection.execute(count, _old_runs_values(kept_days)).scalar_one())


def prune_runs(instance: dg.DagsterInstance, engine: Engine, kept_days: int) -> int:
    """Delete old runs that show nothing any more, with their events and output files, and return how many."""
    import sqlalchemy as sa

    batch = sa.text(f"{_OLD_RUNS} and r.id > :after order by r.id limit :batch")
    values = {**_old_runs_values(kept_days), "batch": _RUNS_AT_ONCE, "after": 0}
    deleted = 0
    while True:
        with engine.connect() as connection:
            found = connection.execute(batch, values).all()
        for row in found:
            instance.compute_log_manager.delete_logs(prefix=[row.run_id])
            instance.delete_run(row.run_id)
            with engine.begin() as connection:
                connection.execute(sa.text(_DELETE_VERDICTS_OF_RUN), {"run_id": row.run_id})
        deleted += len(found)
        if len(found) < _RUNS_AT_ONCE:
            return deleted
        values["after"] = found[-1].id


def _old_runs_values(kept_days: int) -> dict[str, object]:
    return {"before": _before(kept_days), "finished": list(_FINISHED), "shown": list(_SHOWN)}
