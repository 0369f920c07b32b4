"""`market-data loadtest`: put load on a scratch read API over synthetic bars.

It runs like the user's API, including the server process and the refresh. Only database, folder and vendor are scratch,
so that the user's own are neither read nor slowed down and the refresh sends no request to the vendor.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, Final, Literal

import psutil

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.measure.load_generator import Generator, Measured
from market_data_pipeline.measure.scratch import free_ports, scratch_project, select_symbols
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.daemon import Daemon
from market_data_pipeline.runtime.load import Load, dagster_instance, load
from market_data_pipeline.runtime.processes import Processes, wait_for_answer
from market_data_pipeline.runtime.up import prepare, until_terminated
from market_data_pipeline.settings import process_environment
from market_data_pipeline.store.universe import load_universe_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.settings import Settings

Verdict = Literal["good", "warning", "critical"]

# Seconds at the 95th percentile. After one second a person loses the thread (Nielsen, 1993); after three a client's
# timeout is near.
GOOD_BELOW: Final = 1.0
CRITICAL_ABOVE: Final = 3.0
# Share of all requests; with fewer failures than this, a client that retries once notices none.
LEAST_SUCCESS: Final = 0.99

# The vendor is the sandbox, whatever the user's own is.
_SANDBOX: Final[dict[str, Any]] = dict.fromkeys(
    ("POLYGON_API_KEY", "POLYGON_BASE_URL", "POLYGON_PLAN", "POLYGON_CALLS_PER_MINUTE"), ""
)
FEATURES: Final = "/api/v1/features/quant"
ADMIN: Final = (
    "/api/v1/admin/features/staleness?limit=100",
    "/api/v1/admin/scheduler-health",
    "/api/v1/admin/scheduler/execution-history?limit=20",
)
QUIET: Final = "reads_quiet"
REFRESH: Final = "reads_during_refresh"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load.

    Attributes:
        name: for programs.
        title: for people.
        users: concurrent ones, each of which sends its next request as soon as the last one is answered.
        paths: the requests, in turn.
        unique: whether every request has its own `start`, so that no two have the same answer.
        past: how long ago, in days (shortest, longest), each request's own `end` is: records that are not among the
            newest, which the API has in memory. None for no `end`.
        rate: at most this many requests per second and user; None for no limit.
    """

    name: str
    title: str
    users: int
    paths: tuple[str, ...]
    unique: bool = False
    past: tuple[float, float] | None = None
    rate: float | None = None


def scenarios(symbols: Sequence[str], users: int = 100, days: int = 365) -> tuple[Scenario, ...]:
    """Return the scenarios for `symbols` with `days` of history; the largest has `users` concurrent users."""
    frames = [str(timeframe) for timeframe in Timeframe]
    mixed = tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit=500" for symbol, frame in product(symbols, frames))
    half = max(users // 2, 1)
    limits = zip(product(symbols, frames), cycle((100, 500, 1000)), strict=False)
    every = tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit=100" for frame, symbol in product(frames, symbols))
    few = max(users // 5, 1)
    return (
        Scenario("cached_symbol", "one symbol from the cache, 100 records", users, (every[0],)),
        Scenario("uncached_mixed", "mixed symbols, no answer requested twice, 500 records", half, mixed, unique=True),
        Scenario(
            "past_windows",
            "mixed symbols, past windows that are read from the database, 500 records",
            half,
            tuple(path for path in mixed if "timeframe=4h" not in path and "timeframe=1d" not in path),
            past=(days / 6, days / 1.5),
        ),
        Scenario(
            "variable_limits",
            "100, 500 and 1,000 records",
            few,
            tuple(f"{FEATURES}/{symbol}?timeframe={frame}&limit={limit}" for (symbol, frame), limit in limits),
        ),
        Scenario("all_timeframes", "every timeframe, 100 records", few, every),
        Scenario("admin_endpoints", "staleness, health, history", max(users // 10, 1), ADMIN),
        # Ten requests per second and user: these two compare response times, not throughput.
        Scenario(QUIET, "every series, ten requests per second and user, nothing else running", few, every, rate=10.0),
        Scenario(REFRESH, "the same while all series are refreshed", few, every, rate=10.0),
    )


def chosen(symbols: Sequence[str], users: int, names: Sequence[str], days: int = 365) -> tuple[Scenario, ...]:
    """Return the scenarios of these names, all if empty; the refresh scenario includes the one it is compared with.

    Raises:
        UsageError: there is no such scenario.
    """
    known = scenarios(symbols, users, days)
    if unknown := set(names) - {one.name for one in known}:
        raise UsageError(
            f"There is no scenario {', '.join(sorted(unknown))}; known are {', '.join(one.name for one in known)}."
        )
    selected = {*names, *([QUIET] if REFRESH in names else [])}
    return tuple(one for one in known if not selected or one.name in selected)


def run_loadtest(
    settings: Settings,
    *,
    symbols: Sequence[str] = (),
    symbol_count: int,
    days: int,
    seconds: float,
    users: int,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the scenarios, print the progress, and return the document.

    Args:
        settings: of the user's project, whose database server is used.
        symbols: of the universe file; when empty, the first `symbol_count`.
        symbol_count: how many of the universe file, in its order.
        days: calendar days of history to load first.
        seconds: how long each scenario is measured.
        users: concurrent users in the largest scenario.
        names: of the scenarios; all when empty.

    Raises:
        UsageError: the universe lacks one of the symbols, has fewer, or there is no such scenario.
        PipelineError: a part does not start; what was started before is ended.
    """
    universe = select_symbols(load_universe_file(settings.universe_file), symbols, symbol_count)
    tickers = [symbol for of_tier in universe.values() for symbol in of_tier]
    selected = chosen(tickers, users, names, days)
    console = screen()
    with (
        until_terminated(),
        scratch_project(
            settings,
            "loadtest",
            universe=universe,
            own_server=False,
            MARKET_DATA_HISTORY_DAYS=days,
            MARKET_DATA_API_PORT=free_ports(1)[0],
            **_SANDBOX,
        ) as scratch,
        ExitStack() as stack,
    ):
        processes = Processes(scratch.state_dir, "loadtest")
        stack.enter_context(processes.recorded())
        console.print("Load test  on a scratch read API, over synthetic bars in a scratch database")
        engine = prepare(scratch, console, stack)
        instance = stack.enter_context(dagster_instance(scratch, engine))
        daemon = stack.enter_context(Daemon(scratch, console, processes, instance))
        daemon.own()

        def refresh(full: bool) -> None:
            load(engine, instance, console, Load(days=days, full=full), daemon.check)

        refresh(full=False)
        command = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
        api = processes.start("read-api", command, cwd=scratch.project_root, environment=process_environment(scratch))
        base = scratch.local_api_url
        wait_for_answer(f"{base}/openapi.json", daemon.check)
        results, memory = [], []
        for scenario in selected:
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
    return measured(scenario, found)


def measured(scenario: Scenario, found: Measured) -> dict[str, Any]:
    """Return what the document says of a scenario."""
    success = 1 - found.failures / found.requests if found.requests else 0.0
    return {
        "name": scenario.name,
        "title": scenario.title,
        "users": scenario.users,
        "requests": found.requests,
        "failures": found.failures,
        "success_rate": success,
        "mean_ms": found.mean_ms,
        "p50_ms": found.p50_ms,
        "p95_ms": found.p95_ms,
        "p99_ms": found.p99_ms,
        "throughput_per_second": found.requests / found.seconds,
        "duration_seconds": found.seconds,
        "verdict": verdict(found.p95_ms, success),
        "first_failure": found.first_failure,
    }


def verdict(p95_ms: float | None, success_rate: float) -> Verdict:
    """Return good, warning or critical from the 95th percentile and the share of requests that succeeded."""
    if p95_ms is None or p95_ms > 1000 * CRITICAL_ABOVE or success_rate < LEAST_SUCCESS:
        return "critical"
    return "good" if p95_ms <= 1000 * GOOD_BELOW and success_rate == 1 else "warning"


def loadtest_document(
    results: Sequence[dict[str, Any]], *, tickers: Sequence[str], days: int, memory_bytes: int
) -> dict[str, Any]:
    """Return the document: every scenario, the worst verdict, and how much a refresh slows the answers down."""
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
