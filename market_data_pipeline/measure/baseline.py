"""`market-data baseline`: load a universe into a scratch database through Dagster, and measure where the time goes.

It runs like a backfill, including the run processes; only database, folder and Dagster's storage are scratch.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil
import sqlalchemy as sa

from market_data_pipeline import __version__
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.measure.baseline_document import RunTimes, baseline_document
from market_data_pipeline.measure.scratch import scratch_project, select_symbols
from market_data_pipeline.orchestration.provenance import TRIGGER_TAG
from market_data_pipeline.reports.completeness import series_costs
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.daemon import Daemon
from market_data_pipeline.runtime.load import Load, dagster_instance, load
from market_data_pipeline.runtime.processes import Processes
from market_data_pipeline.runtime.up import prepare, until_terminated
from market_data_pipeline.store.universe import load_universe_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dagster as dg

    from market_data_pipeline.domain.series import Tier
    from market_data_pipeline.settings import Settings


def run_baseline(
    settings: Settings, symbols: Sequence[str], symbol_count: int | None, timeframes: Sequence[Timeframe], days: int
) -> dict[str, Any]:
    """Measure a first backfill, print the progress, and return the document.

    Args:
        settings: of the user's project, whose vendor and database server are measured.
        symbols: of the universe file; when empty, the first `symbol_count`.
        symbol_count: how many of the universe file, in its order; None for 25, or all if there are fewer.
        timeframes: all when empty; a resampled one includes `5m`.
        days: calendar days of history.

    Raises:
        UsageError: the universe lacks one of the symbols, or has fewer.
        PipelineError: a part does not start, or the database cannot be used; what was started before is ended.
    """
    universe = select_symbols(load_universe_file(settings.universe_file), symbols, symbol_count)
    console = screen()
    began = time.monotonic()
    with (
        until_terminated(),
        scratch_project(
            settings, "baseline", universe=universe, own_server=False, MARKET_DATA_HISTORY_DAYS=days
        ) as scratch,
        ExitStack() as stack,
    ):
        processes = Processes(scratch.state_dir, "baseline")
        stack.enter_context(processes.recorded())
        console.print("Baseline  in a scratch database, dropped at the end")
        if not scratch.uses_sandbox:
            console.print(
                "Key       calls are counted separately from a running project's: stop one that uses the same key, or"
                " both together may exceed its limit and be refused (429)"
            )
        engine = prepare(scratch, console, stack)
        _print_estimate(engine, scratch, timeframes, console.print)
        instance = stack.enter_context(dagster_instance(scratch, engine))
        daemon = stack.enter_context(Daemon(scratch, console, processes, instance))
        daemon.own()
        prepared = time.monotonic()
        psutil.cpu_percent()  # from here on
        load(engine, instance, console, Load(timeframes=timeframes, days=days), daemon.check)
        duration, busy = time.monotonic() - prepared, psutil.cpu_percent()
        with engine.connect() as connection:
            server = connection.execute(sa.text("show server_version")).scalar_one()
        runs = _runs(instance)
        costs = [one for one in series_costs(engine) if one.run_id in {run.run_id for run in runs}]
    return baseline_document(
        costs,
        runs,
        duration=duration,
        preparation=prepared - began,
        circumstances=_circumstances(scratch, universe, timeframes, days, server, busy),
    )


def _print_estimate(engine: sa.Engine, scratch: Settings, timeframes: Sequence[Timeframe], say: Any) -> None:
    """Print how many requests the vendor will get and how long they take, which can be hours on a small plan."""
    from market_data_pipeline.reports.estimate import estimate_backfill
    from market_data_pipeline.reports.objectives import span

    estimate = estimate_backfill(engine, scratch, timeframes=timeframes)
    waiting = f", {span(estimate.seconds)} or more" if estimate.seconds >= 1 else ""
    most = "" if estimate.calls == estimate.calls_at_least else "at most "
    say(f"Estimate  {most}{estimate.calls} requests{waiting} on the {estimate.plan} plan")


def _runs(instance: dg.DagsterInstance) -> list[RunTimes]:
    """Return the runs of the load; a schedule that was due meanwhile may have started others."""
    import dagster as dg

    of_the_load = dg.RunsFilter(tags={TRIGGER_TAG: "backfill"})
    return [
        RunTimes(
            record.dagster_run.run_id,
            record.dagster_run.job_name,
            record.dagster_run.status.value,
            record.create_timestamp.replace(tzinfo=UTC).timestamp(),
            record.start_time,
            record.end_time,
        )
        for record in instance.get_run_records(of_the_load, ascending=True)
    ]


def _circumstances(
    scratch: Settings,
    universe: Mapping[Tier, tuple[str, ...]],
    timeframes: Sequence[Timeframe],
    days: int,
    server: str,
    busy: float,
) -> dict[str, Any]:
    from market_data_pipeline.polygon.plans import plan_named

    plan = plan_named(scratch.plan).limited_to(scratch.calls_per_minute)
    return {
        "taken_at": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "vendor": "sandbox" if scratch.uses_sandbox else scratch.base_url,
        "plan": plan.name,
        "calls_per_minute": plan.calls_per_minute,
        "symbols": [symbol for of_tier in universe.values() for symbol in of_tier],
        "timeframes": [str(timeframe) for timeframe in timeframes or Timeframe],
        "days": days,
        "max_concurrent_symbols": scratch.max_concurrent_symbols,
        "processors": os.cpu_count(),
        "processors_busy_percent": busy,
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "postgresql": server.split()[0],
    }
