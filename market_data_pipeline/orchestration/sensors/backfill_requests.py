"""Rows of `backfill_requests` and the runs made of them.

A row is `queued` until its run exists, `running` until the run ends, then `done` or `failed`; `rejected` when its
symbol is not tracked. Nothing is lost when a process dies in between: a row stays queued until its run is FOUND in
Dagster's storage, by the tag that the run carries, and asking twice for a run with the same key starts one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.orchestration.jobs.refresh import job_name, run_tags
from market_data_pipeline.orchestration.provenance import REASON_TAG, TRIGGER_TAG
from market_data_pipeline.orchestration.runs import NARROW_TAG, UNFINISHED, narrowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

_REQUEST_TAG: Final = "market_data/backfill_request"  # the lowest id of the rows that the run serves
_TIMEFRAMES_TAG: Final = "market_data/timeframes"  # which of the symbol's rows
_AT_ONCE: Final = 200  # rows looked at in one tick; the rest waits for the next, 10 s later

_OPEN: Final = """
select r.id, r.symbol, r.timeframe, r.status, r.run_id, r.requested_by, s.tier
from market_data.backfill_requests as r
left join market_data.symbols as s on s.symbol = r.symbol and s.active
where r.status in ('queued', 'running')
order by r.id
limit :limit
"""
_MARK: Final = """
update market_data.backfill_requests set status = :status, run_id = coalesce(:run_id, run_id)
where id = any(:ids)
"""


def follow_requests(instance: dg.DagsterInstance, engine: Engine) -> list[dg.RunRequest]:
    """Bring the status of all open rows up to date and return the runs to be started for those that have none."""
    import sqlalchemy as sa

    with engine.begin() as connection:
        rows = connection.execute(sa.text(_OPEN), {"limit": _AT_ONCE}).all()
        _reject(connection, [row for row in rows if row.tier is None and row.status == "queued"])
        _finish(connection, instance, [row for row in rows if row.status == "running"])
        queued: dict[str, list[Any]] = {}
        for row in rows:
            if row.tier is not None and row.status == "queued":
                queued.setdefault(row.symbol, []).append(row)
        return [run for group in queued.values() if (run := _start(connection, instance, group))]


def _start(connection: Connection, instance: dg.DagsterInstance, rows: Sequence[Any]) -> dg.RunRequest | None:
    """Return the run for one symbol's rows; None when it exists already, and its rows are then marked."""
    first = rows[0]
    found = instance.get_run_records(dg.RunsFilter(tags={_REQUEST_TAG: str(first.id)}), limit=1)
    if found:
        run = found[0].dagster_run
        served = run.tags[_TIMEFRAMES_TAG].split(",")
        _mark(connection, [row.id for row in rows if row.timeframe in served], "running", run.run_id)
        return None
    tier = Tier(first.tier)
    timeframes = [Series(row.symbol, Timeframe(row.timeframe)).timeframe for row in rows]
    return dg.RunRequest(
        run_key=f"backfill-request:{first.id}",
        job_name=job_name(tier),
        run_config=narrowed(tier, symbols=[first.symbol], timeframes=timeframes),
        tags={
            **run_tags(tier),
            TRIGGER_TAG: "request",
            NARROW_TAG: first.symbol,
            REASON_TAG: f"asked for by {', '.join(sorted({row.requested_by for row in rows}))} (request {first.id})",
            _REQUEST_TAG: str(first.id),
            _TIMEFRAMES_TAG: ",".join(timeframes),
        },
    )


def _finish(connection: Connection, instance: dg.DagsterInstance, rows: Sequence[Any]) -> None:
    """Mark rows whose run has ended; a run that is gone counts as failed, and the API may ask again."""
    run_ids = sorted({row.run_id for row in rows if row.run_id})
    records = instance.get_run_records(dg.RunsFilter(run_ids=run_ids)) if run_ids else []
    statuses = {record.dagster_run.run_id: record.dagster_run.status for record in records}
    for run_id in run_ids:
        status = statuses.get(run_id)
        if status in UNFINISHED:
            continue
        ended = "done" if status is dg.DagsterRunStatus.SUCCESS else "failed"
        _mark(connection, [row.id for row in rows if row.run_id == run_id], ended, run_id)


def _reject(connection: Connection, rows: Sequence[Any]) -> None:
    _mark(connection, [row.id for row in rows], "rejected", None)


def _mark(connection: Connection, ids: Sequence[int], status: str, run_id: str | None) -> None:
    import sqlalchemy as sa

    if ids:
        connection.execute(sa.text(_MARK), {"ids": list(ids), "status": status, "run_id": run_id})
