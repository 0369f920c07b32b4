"""The memory of the read API over a million requests of every kind.

A server process as users run it, with generated bars of 25 symbols and Dagster's storage and daemon beside it. Most
requests are answered from the cache. The others are made from records in memory, read from the database, compressed,
CSV or Arrow, 304, 404, 422, metrics, reports and pages, with parameters that never repeat where a server might keep
them. Once a second a commit of a series is announced. Memory is read after every hundredth of the requests: growth with
requests would show between the first tenth and the end.

    python -m benchmarks.api_memory [REQUESTS]
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from itertools import count, product
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from benchmarks.http_load import HttpClient, running_api
from benchmarks.place import running_place, symbol_requests, universe
from benchmarks.report import Measurement, show
from benchmarks.running_dagster import running_dagster

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS: Final = 1_000_000
TARGET_MB: Final = 250.0
TARGET_GROWTH_MB: Final = 15.0  # a page of the allocator more or less, but not 15 bytes a request
SYMBOLS: Final = universe()
DAYS: Final = 90
_CONNECTIONS: Final = 32
_EVERY: Final = 1_000  # of this many requests, each rare kind has the share that it states

_FEATURES: Final = "/api/v1/features/quant"
_SERIES: Final = tuple(product(SYMBOLS, ("5m", "15m", "1h", "4h", "1d")))


def _kinds() -> dict[str, tuple[int, Callable[[int], str], str]]:
    """Return each kind of request: how many of `_EVERY`, a function from its number to its path, and its headers."""

    def of(number: int, more: str, endpoint: str = _FEATURES) -> str:
        symbol, timeframe = _SERIES[number % len(_SERIES)]
        return f"{endpoint}/{symbol}?timeframe={timeframe}{more}"

    def started(number: int) -> str:
        return f"2000-01-01T00:{number // 60 % 60:02}:{number % 60:02}.{number // 3600 % 1_000_000:06}Z"

    def ended(number: int) -> str:
        return f"2026-{8 + number % 2:02}-{1 + number // 2 % 28:02}T{number // 56 % 24:02}:00:{number % 60:02}Z"

    return {
        "made from records in memory": (20, lambda n: of(n, f"&limit=500&start={started(n)}"), ""),
        "the same, compressed": (5, lambda n: of(n, f"&limit=400&start={started(n)}"), "accept-encoding: gzip\r\n"),
        "read from the database": (4, lambda n: of(n, f"&limit=500&end={ended(n)}"), ""),
        "CSV": (2, lambda n: of(n, f"&limit=100&start={started(n)}"), "accept: text/csv\r\n"),
        "Arrow": (
            2,
            lambda n: of(n, f"&limit=100&start={started(n)}", "/api/v1/bars"),
            "accept: application/vnd.apache.arrow.stream\r\n",
        ),
        "not changed": (40, lambda n: of(n, "&limit=100"), "if-none-match: *\r\n"),
        "unknown symbol": (5, lambda n: f"{_FEATURES}/NONE{n}?timeframe=1d", ""),
        "unknown path": (5, lambda n: f"/api/v1/nothing/{n}", ""),
        "wrong parameter": (5, lambda n: of(n, f"&limit={10_001 + n}"), ""),
        "staleness": (1, lambda n: f"/api/v1/admin/features/staleness?limit={1 + n % 5_000}", ""),
        "scheduler health": (1, lambda _: "/api/v1/admin/scheduler-health", ""),
        "history": (1, lambda n: f"/api/v1/admin/scheduler/execution-history?limit={1 + n % 50}", ""),
        "health": (1, lambda _: "/health", ""),
        "metrics": (1, lambda _: "/metrics", ""),
        "page": (1, lambda _: "/", ""),
    }


def main() -> int:
    """Measure, print and return the exit code."""
    return show("api_memory", measure(int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS))


def measure(requests_: int = REQUESTS) -> list[Measurement]:
    """Return the largest resident memory, and how much it grew after the first tenth."""
    with running_place() as place:
        url = place.new_database("api_memory", SYMBOLS)
        with place.pipeline(url, history_days=DAYS, threads=3) as pipeline:
            from market_data_pipeline.ingest.shard import refresh_shard

            for _ in refresh_shard(symbol_requests(SYMBOLS), pipeline=pipeline, run_id="api-memory"):
                pass
        with running_dagster(place, url, history_days=DAYS), running_api() as (port, process):
            began = time.monotonic()
            statuses, memory = asyncio.run(_ask(port, process, url, requests_))
            seconds = time.monotonic() - began
    tenth = memory[len(memory) // 10]
    answers = {str(status): number for status, number in sorted(statuses.items())}
    if statuses[500] or statuses[503]:
        raise SystemExit(f"The API failed: {answers}.")
    every_tenth = [round(mb) for mb in memory[:: max(len(memory) // 10, 1)]]
    what = f"largest memory of the read API over {requests_:,} requests"
    return [
        Measurement(what, max(memory), "MB", at_most=TARGET_MB, details={"mb_by_tenth": every_tenth, **answers}),
        Measurement("growth after the first tenth of them", memory[-1] - tenth, "MB", at_most=TARGET_GROWTH_MB),
        Measurement("requests of every kind", requests_ / seconds, "a second"),
    ]


async def _ask(port: int, process: psutil.Process, url: str, requests_: int) -> tuple[Counter[int], list[float]]:
    """Send the requests; return the answers by status, and the megabytes after every hundredth of them."""
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    plan = _plan()
    numbers = count()

    def ask() -> bytes | None:
        number = next(numbers)
        if number >= requests_:
            return None
        path, headers = plan[number % _EVERY](number)
        return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode()

    def answered(status: int) -> None:
        statuses[status] += 1
        if statuses.total() % (requests_ // 100) == 0:
            memory.append(process.memory_info().rss / 2**20)

    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: HttpClient(ask, answered), "127.0.0.1", port))[1]
        for _ in range(_CONNECTIONS)
    ]
    committing = asyncio.create_task(_commit(url))
    await asyncio.gather(*(client.done for client in clients))
    committing.cancel()
    return statuses, memory


def _plan() -> list[Callable[[int], tuple[str, str]]]:
    """Return the kind of each of `_EVERY` requests: rare kinds spread evenly, otherwise one symbol from memory."""

    def cached(_: int) -> tuple[str, str]:
        return f"{_FEATURES}/{SYMBOLS[0]}?timeframe=5m&limit=100", ""

    plan: list[Callable[[int], tuple[str, str]]] = [cached] * _EVERY
    free = [place * 619 % _EVERY for place in range(_EVERY)]  # 619 and 1,000 have no common divisor
    for share, path, headers in _kinds().values():
        for _ in range(share):
            plan[free.pop()] = lambda n, path=path, headers=headers: (path(n // 7 + n), headers)  # type: ignore[misc]
    return plan


async def _commit(url: str) -> None:
    """Announce once a second that a series was committed."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    async with connection:
        for number in count():
            await asyncio.sleep(1)
            key = "|".join(_SERIES[number % len(_SERIES)])
            await connection.execute("select pg_notify('market_data_series', %s)", (key,))


if __name__ == "__main__":
    sys.exit(main())
