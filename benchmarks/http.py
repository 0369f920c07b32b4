"""What a read over HTTP costs: windows of the past, and the newest records of mixed series, 500 with features each.

No request is repeated, so none is answered from the response cache: the windows are read from the database, the newest
records are cut from those in memory. Fifty connections send their next request as soon as they have an answer.

The figures are processor time for each request, of the API with the database server, and of the API alone: unlike
requests a second, they do not depend on what else the machine does. Together they bound the requests a second that two
quiet cores can answer; what was answered stands in the details.

    python -m benchmarks.http [REQUESTS]
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from benchmarks import research_data
from benchmarks.http_load import HttpClient, running_api
from benchmarks.place import NOW, running_server
from benchmarks.report import Measurement, show

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS: Final = 2_000
ROUNDS: Final = 3
CONNECTIONS: Final = 50
_FEATURES: Final = "/api/v1/features/quant"
_PAST_DAYS: Final = (60.0, 240.0)  # ago; 500 bars are half a week
_CORES: Final = 2


def main() -> int:
    """Measure, print and store the figures, and return the exit code."""
    requests_ = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    with running_server() as place, tempfile.TemporaryDirectory() as folder:
        url = place.new_database("http", ())
        print("storing a year of 25 symbols and a week of 375 ...", file=sys.stderr, flush=True)
        research_data.load(url)
        with psycopg.connect(url) as connection:
            database = psutil.Process(connection.info.backend_pid).parent()
        assert database is not None  # noqa: S101 - the server's main process started this one
        os.environ.update(DATABASE_URL=url, MARKET_DATA_AS_OF=NOW.isoformat(), MARKET_DATA_PROJECT_ROOT=folder)
        with running_api() as (port, api):
            measured = [
                *figures("a window of the past, read", requests_, port, api, database, _past, at_least=600.0),
                *figures("the newest records, from memory", requests_, port, api, database, _newest, at_least=1_500.0),
            ]
    return show("http", measured)


def figures(
    what: str,
    requests_: int,
    port: int,
    api: psutil.Process,
    database: psutil.Process,
    path: Callable[[random.Random], str],
    *,
    at_least: float,
) -> list[Measurement]:
    """Return the processor time of a request of one kind, and how many of them two quiet cores can answer."""
    asyncio.run(_send(port, requests_ // 10, path, seed=0))
    of_api, of_both, taken, slowest = [], [], [], []
    for seed in range(1, ROUNDS + 1):
        before, began = (_used(api), _used(database)), time.perf_counter()
        seconds = asyncio.run(_send(port, requests_, path, seed))
        taken.append(time.perf_counter() - began)
        after = (_used(api), _used(database))
        of_api.append((after[0] - before[0]) / requests_)
        of_both.append((sum(after) - sum(before)) / requests_)
        slowest.append(statistics.quantiles(seconds, n=20)[-1])
    alone, both = statistics.median(of_api), statistics.median(of_both)
    # The API runs Python on one core at a time.
    possible = min(1 / alone, _CORES / both)
    details = {"answered_a_second": requests_ / statistics.median(taken), "p95_ms": statistics.median(slowest) * 1e3}
    return [
        Measurement(f"{what}: API and database", both * 1e3, "ms", details={"api_ms": alone * 1e3}),
        Measurement(f"{what}: on two quiet cores", possible, "a second", at_least=at_least, details=details),
    ]


async def _send(port: int, requests_: int, path: Callable[[random.Random], str], seed: int) -> list[float]:
    """Send the requests and return the seconds that each took."""
    source = random.Random(seed)  # noqa: S311 - which windows are read
    left, seconds = requests_, []
    sent: dict[int, float] = {}

    def client(number: int) -> HttpClient:
        def ask() -> bytes | None:
            nonlocal left
            if left == 0:
                return None
            left -= 1
            sent[number] = time.perf_counter()
            return f"GET {path(source)} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()

        def answered(status: int) -> None:
            if status != 200:
                raise SystemExit(f"The API answered {status}.")
            seconds.append(time.perf_counter() - sent[number])

        return HttpClient(ask, answered)

    loop = asyncio.get_running_loop()
    connected = [
        await loop.create_connection(lambda number=number: client(number), "127.0.0.1", port)  # type: ignore[misc]
        for number in range(CONNECTIONS)
    ]
    await asyncio.gather(*(one.done for _, one in connected))
    return seconds


def _past(source: random.Random) -> str:
    end = NOW - timedelta(days=source.uniform(*_PAST_DAYS))
    return f"{_FEATURES}/{source.choice(research_data.LONG)}?timeframe=5m&limit=500&end={end:%Y-%m-%dT%H:%M:%S.%fZ}"


def _newest(source: random.Random) -> str:
    start = f"2000-01-01T00:{source.randrange(60):02}:{source.randrange(60):02}.{source.randrange(10**6):06}Z"
    symbol = source.choice(research_data.SYMBOLS[:125])
    return f"{_FEATURES}/{symbol}?timeframe=5m&limit=500&start={start}"


def _used(process: psutil.Process) -> float:
    """Return the processor seconds of a process and of its children."""
    used = 0.0
    for one in (process, *process.children()):
        times = one.cpu_times()
        used += times.user + times.system
    return used + process.cpu_times().children_user + process.cpu_times().children_system


if __name__ == "__main__":
    sys.exit(main())
