"""The backfill request sensor: it turns rows of `backfill_requests` into runs and follows them to their end.

A sensor (https://docs.dagster.io/guides/automate/sensors). A row is `queued` until its run exists, `running` until the
run ends, then `done` or `failed`; `rejected` when its symbol is not tracked. A process that dies in between loses
nothing: a row stays queued until its run is FOUND in Dagster's storage, by the tag that the run carries, and two
requests for a run with the same key start one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.orchestration.jobs.refresh import job_name, run_tags
from market_data_pipeline.orchestration.provenance import REASON_TAG, TRIGGER_TAG
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.runs import NARROW_TAG, UNFINISHED, narrowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.orchestration.dagster_internals import AssetJob
    from market_data_pipeline.store.backfill_requests import OpenRequest

# A client waits for the answer, and the daemon evaluates sensors every 5 s anyway.
_INTERVAL_SECONDS: Final = 10

_REQUEST_TAG: Final = "market_data/backfill_request"  # the lowest id of the rows that the run serves
_TIMEFRAMES_TAG: Final = "market_data/timeframes"  # which of the symbol's rows
_ROWS_PER_TICK: Final = 200  # the others wait for the next tick, 10 s later


def backfill_request_sensor(jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """Return the sensor; its runs are of the tiers' `jobs`."""

    @dg.sensor(
        name="backfill_request_sensor",
        jobs=jobs,
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Turns queued rows of `market_data.backfill_requests` into runs, one per symbol.",
    )
    def sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
        with pipeline.tick_database() as engine:
            runs = _follow(context.instance, engine)
        return dg.SensorResult(run_requests=runs) if runs else dg.SkipReason("No series was requested.")

    return sensor


def _follow(instance: dg.DagsterInstance, engine: Engine) -> list[dg.RunRequest]:
    """Bring the status of all open rows up to date and return the runs to start for those that have none."""
    from market_data_pipeline.store.backfill_requests import mark_requests, open_requests

    with engine.begin() as connection:
        rows = open_requests(connection, _ROWS_PER_TICK)
        queued: dict[tuple[str, str], list[OpenRequest]] = {}
        for row in rows:
            if row.tier is not None and row.status == "queued":
                queued.setdefault((row.symbol, row.tier), []).append(row)
        untracked = [row.id for row in rows if row.tier is None and row.status == "queued"]
        mark_requests(connection, untracked, "rejected")
        _finish(connection, instance, [row for row in rows if row.status == "running"])
        runs = (_start(connection, instance, Tier(tier), group) for (_, tier), group in queued.items())
        return [run for run in runs if run]


def _start(
    connection: Connection, instance: dg.DagsterInstance, tier: Tier, rows: Sequence[OpenRequest]
) -> dg.RunRequest | None:
    """Return the run for one symbol's rows; None when it exists already, and its rows are then marked."""
    from market_data_pipeline.store.backfill_requests import mark_requests

    first = rows[0]
    found = instance.get_run_records(dg.RunsFilter(tags={_REQUEST_TAG: str(first.id)}), limit=1)
    if found:
        run = found[0].dagster_run
        served = run.tags[_TIMEFRAMES_TAG].split(",")
        mark_requests(connection, [row.id for row in rows if row.timeframe in served], "running", run.run_id)
        return None
    timeframes = [Series(row.symbol, Timeframe(row.timeframe)).timeframe for row in rows]
    return dg.RunRequest(
        run_key=f"backfill-request:{first.id}",
        job_name=job_name(tier),
        run_config=narrowed(tier, symbols=[first.symbol], timeframes=timeframes),
        tags={
            **run_tags(tier),
            TRIGGER_TAG: "request",
            NARROW_TAG: first.symbol,
            REASON_TAG: f"requested by {', '.join(sorted({row.requested_by for row in rows}))} (request {first.id})",
            _REQUEST_TAG: str(first.id),
            _TIMEFRAMES_TAG: ",".join(timeframes),
        },
    )


def _finish(connection: Connection, instance: dg.DagsterInstance, rows: Sequence[OpenRequest]) -> None:
    """Mark rows whose run has ended; a run that no longer exists counts as failed, and a new request is possible."""
    from market_data_pipeline.store.backfill_requests import mark_requests

    run_ids = sorted({row.run_id for row in rows if row.run_id})
    records = instance.get_run_records(dg.RunsFilter(run_ids=run_ids)) if run_ids else []
    statuses = {record.dagster_run.run_id: record.dagster_run.status for record in records}
    for run_id in run_ids:
        status = statuses.get(run_id)
        if status in UNFINISHED:
            continue
        ended = "done" if status is dg.DagsterRunStatus.SUCCESS else "failed"
        mark_requests(connection, [row.id for row in rows if row.run_id == run_id], ended, run_id)
