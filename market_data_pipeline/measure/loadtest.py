"""`market-data loadtest`: put load on a read API of its own, over made-up bars in a scratch database.

Everything is as the user's API, server process and refresh included; only database, folder and vendor are scratch, so
that nothing of the user's is read or slowed down and the refresh costs no request.
Add here: the order in which it is done. Keep out: what is asked and what follows (load_scenarios), how it looks
(loadtest_view).
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psutil

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.measure.baseline import first_symbols
from market_data_pipeline.measure.load_generator import Generator, Measured
from market_data_pipeline.measure.load_scenarios import QUIET, REFRESH, Scenario, measured, scenarios
from market_data_pipeline.measure.scratch import scratch_project
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.daemon import Daemon
from market_data_pipeline.runtime.load import Load, dagster_instance, environment, load
from market_data_pipeline.runtime.processes import Processes, wait_for_answer
from market_data_pipeline.runtime.up import prepare, until_terminated
from market_data_pipeline.store.universe import load_universe_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.settings import Settings

# Whatever vendor the user has, this one is the sandbox.
_SANDBOX: Final[dict[str, Any]] = dict.fromkeys(
    ("POLYGON_API_KEY", "POLYGON_BASE_URL", "POLYGON_PLAN", "POLYGON_CALLS_PER_MINUTE"), ""
)


def chosen(symbols: Sequence[str], users: int, names: Sequence[str], days: int = 365) -> tuple[Scenario, ...]:
    """Return the scenarios of these names, all when there are none; the refresh brings what it is compared with.

    Raises:
        UsageError: there is no such scenario.
    """
    known = scenarios(symbols, users, days)
    if unknown := set(names) - {one.name for one in known}:
        raise UsageError(
            f"There is no scenario {', '.join(sorted(unknown))}; known are {', '.join(one.name for one in known)}."
        )
    wanted = {*names, *([QUIET] if REFRESH in names else [])}
    return tuple(one for one in known if not wanted or one.name in wanted)


def run_loadtest(
    settings: Settings, *, symbols: int, days: int, seconds: float, users: int, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the scenarios and return the document; what it prints meanwhile is for people.

    Args:
        settings: of the user's project, whose database server is used.
        symbols: how many of the universe file's, in its order.
        days: calendar days of history that are loaded first.
        seconds: how long each scenario counts.
        users: at the same time, in the widest scenario.
        names: of the scenarios; all when empty.

    Raises:
        UsageError: the universe has fewer symbols, or there is no such scenario.
        PipelineError: a part does not start; what had been started is ended.
    """
    universe = first_symbols(load_universe_file(settings.universe_file), symbols)
    tickers = [symbol for of_tier in universe.values() for symbol in of_tier]
    wanted = chosen(tickers, users, names, days)
    console = screen()
    with (
        until_terminated(),
        scratch_project(
            settings,
            "loadtest",
            universe=universe,
            own_server=False,
            MARKET_DATA_HISTORY_DAYS=days,
            MARKET_DATA_API_PORT=_free_port(),
            **_SANDBOX,
        ) as scratch,
        ExitStack() as stack,
    ):
        processes = Processes(scratch.state_dir, "loadtest")
        stack.enter_context(processes.recorded())
        console.print("Load test  on a read API of its own, over made-up bars in a scratch database")
        engine = prepare(scratch, console, stack)
        instance = stack.enter_context(dagster_instance(scratch, engine))
        daemon = stack.enter_context(Daemon(scratch, console, processes, instance))
        daemon.own()

        def refresh(full: bool) -> None:
            load(engine, instance, console, Load(days=days, full=full), daemon.check)

        refresh(full=False)
        command = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
        api = processes.start("read-api", command, cwd=scratch.project_root, environment=environment(scratch))
        base = f"http://127.0.0.1:{scratch.api_port}"
        wait_for_answer(f"{base}/openapi.json", daemon.check)
        results, memory = [], []
        for scenario in wanted:
            console.print(f"{scenario.name}: {scenario.title}")
            during = (lambda: refresh(full=True)) if scenario.name == REFRESH else None
            results.append(measure(base, scenario, seconds, during))
            memory.append(api.process.memory_info().rss)
    return loadtest_document(results, tickers=tickers, days=days, memory_bytes=max(memory))


def measure(
    base: str, scenario: Scenario, seconds: float, during: Callable[[], None] | None = None, token: str | None = None
) -> dict[str, Any]:
    """Measure one scenario against the API at `base`, for `seconds` or for as long as `during` takes.

    Raises:
        PipelineError: the generator failed.
    """
    generator = Generator(base, scenario, None if during else seconds, token)
    try:
        if during is not None:
            during()
        found: Measured = generator.result()
    finally:
        generator.end()
    return measured(scenario, found.times, found.failures, found.seconds) | {"first_failure": found.first_failure}


def loadtest_document(
    results: Sequence[dict[str, Any]], *, tickers: Sequence[str], days: int, memory_bytes: int
) -> dict[str, Any]:
    """Return the document: every scenario, the worst verdict, and what a running refresh does to the answers."""
    by_name = {one["name"]: one for one in results}
    quiet, refresh = by_name.get(QUIET), by_name.get(REFRESH)
    both = quiet and refresh and quiet["p99_ms"] and refresh["p99_ms"]
    order = ("good", "warning", "critical")
    return {
        "taken_at": datetime.now(UTC).replace(microsecond=0),
        "version": __version__,
        "verdict": max((one["verdict"] for one in results), key=order.index),
        "scenarios": list(results),
        "refresh_slows_p99_by": refresh["p99_ms"] / quiet["p99_ms"] if both and quiet and refresh else None,
        "api_memory_bytes": memory_bytes,
        "symbols": list(tickers),
        "days": days,
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
