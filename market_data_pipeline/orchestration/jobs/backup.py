"""The `backup` job: it backs up both databases every night, once MARKET_DATA_BACKUP_DIR names a place for it.

A failed backup is a failed run, which alerts; how old the last good one is, `market-data health` and /metrics say. An
op job (https://docs.dagster.io/guides/build/jobs/op-jobs) and its schedule.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

import dagster as dg

from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.orchestration.cadences import MAX_RUNTIME, MAX_RUNTIME_TAG, NIGHTLY
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor


@dg.op(description="Backs up the market data and Dagster's storage into MARKET_DATA_BACKUP_DIR.")
def back_up_databases(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Make a backup, remove old ones, and show what came of it.

    Raises:
        dg.Failure: it could not be made; the older ones are as they were.
    """
    from market_data_pipeline.backup.scheduled import scheduled_backup

    try:
        made = scheduled_backup(pipeline.settings())
    except PipelineError as error:
        raise dg.Failure(str(error), allow_retries=error.kind == "transient") from error
    tables = made.manifest.market_data.tables
    context.add_output_metadata(
        {
            "backup": dg.MetadataValue.path(str(made.backup)),
            "bytes": made.manifest.size,
            "rows": {table.name: table.total[0] for table in tables},
            "removed": list(made.removed),
        }
    )


@dg.job(name="backup", executor_def=run_executor, description="Backs up the market data and Dagster's storage.")
def backup_job() -> None:
    """Back up both databases."""
    back_up_databases()


@dg.schedule(
    name="backup_schedule",
    job=backup_job,
    cron_schedule=NIGHTLY["backup"],
    execution_timezone=EXCHANGE_ZONE_NAME,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Backs up every night if MARKET_DATA_BACKUP_DIR is set.",
)
def backup_schedule(pipeline: PipelineResource) -> dg.RunRequest | dg.SkipReason:
    """Return a run, or why there is none."""
    if pipeline.settings().backup_dir is None:
        return dg.SkipReason("MARKET_DATA_BACKUP_DIR is not set: no backups are made.")
    return dg.RunRequest(tags={MAX_RUNTIME_TAG: str(MAX_RUNTIME)})
