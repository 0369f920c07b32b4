"""The `prune` job: it keeps Dagster's storage and the audit log small by removing noise, never history.

What of Dagster's storage is deleted, and when, is in `dagster_retention`; how the audit log is summed up is in
`store.log_rollup`. An op job (https://docs.dagster.io/guides/build/jobs/op-jobs) of two independent steps: a market
database that cannot be reached does not keep Dagster's from being pruned.
"""

# No `from __future__ import annotations`: Dagster needs the classes of a step's parameters, not their names.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.orchestration.dagster_retention import (
    old_events,
    old_runs,
    prune_events,
    prune_runs,
    runs_with_old_output,
)
from market_data_pipeline.orchestration.metadata import stopped
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.run_liveness import run_executor, storage_url

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.settings import Settings


class PruneConfig(dg.Config):
    """The run config of `prune_event_log`."""

    kept_days: int | None = Field(default=None, ge=1, description="Of events. Default: MARKET_DATA_KEEP_EVENT_DAYS.")
    kept_run_days: int | None = Field(default=None, ge=2, description="Of runs. Default: MARKET_DATA_KEEP_RUN_DAYS.")


class RollUpConfig(dg.Config):
    """The run config of `roll_up_ingest_log`."""

    kept_days: int | None = Field(default=None, ge=2, description="Default: MARKET_DATA_KEEP_LOG_DAYS.")


def prune_dagster(instance: dg.DagsterInstance, event_days: int, run_days: int) -> dict[str, int]:
    """Delete what is old from an instance's storage, and return how much of each kind.

    Empty where the storage is not PostgreSQL.
    """
    with _storage(instance) as engine:
        if engine is None:
            return {}
        outputs = runs_with_old_output(engine, event_days)
        for run_id in outputs:
            instance.compute_log_manager.delete_logs(prefix=[run_id])
        deleted = prune_events(engine, event_days)
        return {**deleted, "runs' output files": len(outputs), "runs": prune_runs(instance, engine, run_days)}


def preview_dagster(instance: dg.DagsterInstance, event_days: int, run_days: int) -> dict[str, int]:
    """Return what `prune_dagster` would delete."""
    with _storage(instance) as engine:
        if engine is None:
            return {}
        outputs = len(runs_with_old_output(engine, event_days))
        found = old_events(engine, event_days)
        return {**found, "runs' output files": outputs, "runs": old_runs(engine, run_days)}


def roll_up_log(settings: "Settings", kept_days: int) -> int:
    """Sum up old rows of the audit log, and return how many were taken out of it.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached; what was committed stays.
    """
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.log_rollup import roll_up

    with StoreConnection(settings.database_url, settings.as_of) as connection:
        return sum(roll_up(connection, settings.clock(), kept_days))


def preview_log(settings: "Settings", kept_days: int) -> int:
    """Return how many rows `roll_up_log` would take out at most: each series' newest row stays."""
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.log_rollup import waiting

    with StoreConnection(settings.database_url, settings.as_of) as connection:
        return sum(one.rows for one in waiting(connection, settings.clock(), kept_days))


@contextmanager
def _storage(instance: dg.DagsterInstance) -> Iterator["Engine | None"]:
    import sqlalchemy as sa

    from market_data_pipeline.store.connection import with_keepalives

    url = storage_url(instance)
    if not url:
        yield None
        return
    engine = sa.create_engine(with_keepalives(url))
    try:
        yield engine
    finally:
        engine.dispose()


@dg.op(
    description="Deletes old noise and old runs from Dagster's storage; what it shows of partitions and checks stays."
)
def prune_event_log(context: dg.OpExecutionContext, config: PruneConfig, pipeline: PipelineResource) -> None:
    """Prune the storage that this run is recorded in, if that is PostgreSQL."""
    settings = pipeline.settings()
    event_days = config.kept_days or settings.keep_event_days
    deleted = prune_dagster(context.instance, event_days, config.kept_run_days or settings.keep_run_days)
    if not deleted:
        context.log.info("Dagster's storage is not PostgreSQL: nothing to prune.")
        return
    context.add_output_metadata({f"{kind} deleted": count for kind, count in deleted.items()})


@dg.op(description="Sums up old rows of `market_data.ingest_log` that say unchanged; what changed or failed stays.")
def roll_up_ingest_log(context: dg.OpExecutionContext, config: RollUpConfig, pipeline: PipelineResource) -> None:
    """Sum up the audit log's old rows."""
    settings = pipeline.settings()
    try:
        taken = roll_up_log(settings, config.kept_days or settings.keep_log_days)
    except PipelineError as error:
        raise stopped(error) from error
    context.add_output_metadata({"rows summed up": taken})


@dg.job(name="prune", executor_def=run_executor, description="Keeps Dagster's storage and the audit log small.")
def prune_job() -> None:
    """Delete old noise and runs, and sum up the audit log."""
    prune_event_log()
    roll_up_ingest_log()
