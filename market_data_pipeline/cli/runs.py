"""The commands that report on work: what ran with which result, and whether daemons and schedules are running.

Add here: a report on runs, schedules or daemons. Keep out: reports on series (cli.reports), and the questions
themselves (reports).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli.console import AsJson, instant, print_json, print_table, settings
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from market_data_pipeline.reports.dagster_state import DagsterState

app = typer.Typer()


@app.command(epilog="Example: market-data health --json")
def health(as_json: AsJson = False) -> None:
    """Show whether daemons, schedules and the last refresh are in order; nothing is started."""
    from market_data_pipeline.reports.attainment import percent
    from market_data_pipeline.reports.health import scheduler_health

    with _sources(start=False) as (engine, dagster):
        report = scheduler_health(engine, dagster)
    if as_json:
        print_json(report)
        return
    console().print(f"{report.status} at {instant(report.timestamp)}")
    for reason in report.reasons:
        console().print(f"  {reason}", markup=False)
    if source := report.source:
        named = " ".join(filter(None, (source.kind, source.host)))
        console().print(f"Bars of {named} (plan {source.plan}) since {instant(source.since)}", markup=False)
    if last := report.last_backup:
        console().print(
            f"Last backup as of {instant(last.taken_at)} ({last.bytes / 1e6:.1f} MB) in {last.location}", markup=False
        )
    print_table(
        ("daemon", "alive", "last heartbeat"),
        [(one.name, "yes" if one.alive else "NO", instant(one.last_heartbeat)) for one in report.daemons],
    )
    print_table(
        ("schedule", "cron", "running", "last tick", "outcome"),
        [
            (
                one.name,
                f"{one.cron} {one.timezone}",
                "yes" if one.running else "NO",
                instant(one.last_tick_at),
                one.last_tick_status,
            )
            for one in report.schedules
        ],
    )
    print_table(
        ("tier", "within its RPO", ">share of time", ">series ever outside", "worst series", ">its share"),
        [
            (
                one.tier,
                f"the last {one.window}",
                percent(one.share),
                f"{one.series_outside} of {one.series}",
                one.worst_series if one.series_outside else None,
                percent(one.worst_share) if one.series_outside else None,
            )
            for one in report.rpo_attainment
        ],
    )
    print_table(
        ("failed at", "symbol", "timeframe", "error"),
        [(instant(one.failed_at), one.symbol, one.timeframe, one.error) for one in report.recent_failures],
    )
    print_table(
        ("last seen at", "example", ">series", "warning"),
        [(instant(one.last_seen_at), one.example, one.series, one.warning) for one in report.recent_warnings],
    )
    rate = report.rate_limit
    console().print(
        f"{rate.total_requests} requests in {rate.window_hours} h, {rate.rate_limited} answered 429 (rate limit); "
        f"{report.total_symbols_monitored} symbols, {report.stale_features_count} stale series."
    )


@app.command(epilog="Example: market-data history --limit 5")
def history(
    run_id: Annotated[
        str, typer.Argument(help="Only this run, with each of its series; the first characters of its id are enough.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many runs.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what ran when, who requested it, why, for which series and with which result; newest first."""
    if run_id:
        _run(run_id, as_json=as_json)
        return
    from market_data_pipeline.reports.executions import execution_history

    with _sources(start=True) as (engine, dagster):
        report = execution_history(engine, dagster, limit)
    if as_json:
        print_json(report)
        return
    print_table(
        ("run", "job", "requested by", "why", "started", ">took", "status", ">symbols", ">failed", ">records", "error"),
        [
            (
                one.execution_id[:8],
                one.job,
                one.requested_by,
                one.reason,
                instant(one.started_at),
                None if one.duration_seconds is None else span(one.duration_seconds),
                one.status,
                one.total_symbols,
                one.failed_symbols,
                one.total_records_processed,
                one.error_message,
            )
            for one in report.executions
        ],
    )


def _run(run_id: str, *, as_json: bool) -> None:
    from market_data_pipeline.reports.executions import execution_detail

    with _sources(start=True) as (engine, dagster):
        report = execution_detail(engine, dagster, run_id)
    if as_json:
        print_json(report)
        return
    run = report.execution
    took = "" if run.duration_seconds is None else f", took {span(run.duration_seconds)}"
    console().print(f"{run.job} {run.execution_id}: {run.status}", markup=False)
    console().print(f"Requested by {run.requested_by} ({run.trigger}): {run.reason}", markup=False)
    console().print(f"For {run.series}", markup=False)
    console().print(f"Started {instant(run.started_at) or 'not yet'}{took}")
    print_table(
        ("symbol", "timeframe", "status", ">requests", ">429", ">new", ">changed", ">features", ">seconds", "error"),
        [
            (
                one.symbol,
                one.timeframe,
                one.status,
                one.requests,
                one.rate_limited,
                one.rows_inserted,
                one.rows_updated,
                one.features_written,
                f"{one.seconds:.2f}",
                one.error or one.warning,
            )
            for one in report.results
        ],
    )
    if report.unchanged_series:
        unchanged = (
            f"{len(report.unchanged_series)} series were unchanged; their rows have been summed up by day since."
        )
        console().print(unchanged)
    elif not report.results:
        console().print("No series was started." if not run.error_message else run.error_message, markup=False)


@contextmanager
def _sources(*, start: bool) -> Iterator[tuple[sa.Engine, DagsterState]]:
    """Yield what the reports read: the market database and Dagster's storage."""
    from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
    from market_data_pipeline.runtime.database import reading_engine

    config = settings()
    dagster = StoredDagsterState(config.dagster_home, config.dagster_postgres_url)
    try:
        yield reading_engine(config, start=start), dagster
    finally:
        dagster.close()
