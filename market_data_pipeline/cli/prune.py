"""The command that removes what is old and says nothing any more, as the nightly job `prune` does."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from market_data_pipeline.cli.console import AsJson, print_json, print_table, settings

app = typer.Typer()


@app.command(epilog="Example: market-data prune --dry-run")
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    event_days: Annotated[
        int | None,
        typer.Option(
            min=1, help="Keep Dagster's events so many days; MARKET_DATA_KEEP_EVENT_DAYS.", show_default=False
        ),
    ] = None,
    run_days: Annotated[
        int | None,
        typer.Option(min=2, help="Keep Dagster's runs so many days; MARKET_DATA_KEEP_RUN_DAYS.", show_default=False),
    ] = None,
    log_days: Annotated[
        int | None,
        typer.Option(
            min=2, help="Keep rows of unchanged series so many days; MARKET_DATA_KEEP_LOG_DAYS.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove old noise: Dagster's events and runs, and rows of the audit log that say "unchanged".

    The job `prune` does the same every night. Runs in progress, what the
    UI shows of partitions and checks, and the audit of changes stay; rows
    that say "unchanged" are summed up by series and day.
    """
    import dagster as dg

    from market_data_pipeline.orchestration.jobs.prune import preview_dagster, preview_log, prune_dagster, roll_up_log
    from market_data_pipeline.runtime.database import ensure_server
    from market_data_pipeline.settings import process_environment

    config = settings()
    ensure_server(config)
    os.environ.update(process_environment(config))
    days = event_days or config.keep_event_days, run_days or config.keep_run_days
    with dg.DagsterInstance.get() as instance:
        found = (preview_dagster if dry_run else prune_dagster)(instance, *days)
    found["rows of unchanged series"] = (preview_log if dry_run else roll_up_log)(
        config, log_days or config.keep_log_days
    )
    if as_json:
        print_json({"dry_run": dry_run, "removed": found})
        return
    print_table(("what", ">would be removed" if dry_run else ">removed"), list(found.items()))
