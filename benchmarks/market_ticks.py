"""What ticks of a large tier cost through Dagster: seconds, processor time, and bytes of both databases.

A tier's runs are what a whole market's would be: shards of 125 symbols, put into the queue and executed by a daemon.
The vendor's clock is ahead, and each tick has its own instant, for which the daemon is started again. Three kinds of
ticks are measured: the day's first one, which shows every series as materialized; ticks with new bars; and ticks
without.

A day's bytes follow from the bytes of each kind times how many of it a day has: of 96 ticks, those of the extended
session's 16 hours find new bars. They are given for 2,000 symbols, whatever number was measured: a shard's runs and
rows are what grows.

    python -m benchmarks.market_ticks [SYMBOLS]
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from benchmarks.place import Place, running_place, symbol_requests
from benchmarks.report import Measurement, show
from benchmarks.running_dagster import running_dagster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import dagster as dg

SYMBOLS: Final = 500
MARKET: Final = 2_000
SHARD: Final = 125  # of 2,000 symbols, in 16 runs
DAYS: Final = 3
# New York 12:00 on a Friday; an hour that ends makes bars of three timeframes.
_BEGIN: Final = datetime(2026, 11, 20, 17, 0, tzinfo=UTC)
_TICK: Final = timedelta(minutes=15)
_WITH_NEWS: Final = 4  # an hour of them, so that 1h bars are counted as often as they come
_WITHOUT: Final = 2
# Of a day's 96: the extended session has 16 hours.
_A_DAY: Final = {"first": 1, "news": 64, "quiet": 31}
TARGET_SECONDS: Final = 180.0
TARGET_GIGABYTES: Final = 0.5
_PERIOD: Final = 0.5


def main() -> int:
    """Measure, print and return the exit code."""
    return show("market_ticks", measure(int(sys.argv[1]) if len(sys.argv) > 1 else SYMBOLS))


def measure(count: int = SYMBOLS) -> list[Measurement]:
    """Return the seconds of a tick with new bars, and the gigabytes of a day."""
    symbols = tuple(f"SYN{number:04d}" for number in range(count))
    os.environ["MARKET_DATA_SHARD_SYMBOLS"] = str(SHARD)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in _A_DAY}
    tables: dict[str, dict[str, float]] = {kind: {} for kind in _A_DAY}
    with running_place() as place:
        url = place.new_database("market", symbols)
        _load(place, url, symbols)
        storage = url.replace("/market?", "/dagster_market?")
        ticks = [("first", _BEGIN), *(("news", _BEGIN + n * _TICK) for n in range(1, _WITH_NEWS + 1))]
        ticks += [("quiet", ticks[-1][1])] * _WITHOUT
        for kind, at in ticks:
            with running_dagster(place, url, history_days=DAYS, as_of=at) as instance:
                before = _sizes(url, storage)
                with _processor_seconds(place) as spent:
                    began = time.perf_counter()
                    _tick(instance, symbols)
                    seconds = time.perf_counter() - began
                after = _sizes(url, storage)
            grown = {name: after[name] - before.get(name, 0.0) for name in after}
            found[kind].append({"seconds": seconds, "cpu": sum(spent.values())})
            for name, size in grown.items():
                tables[kind][name] = tables[kind].get(name, 0.0) + size
            took = ", ".join(f"{name} {value:.1f}" for name, value in spent.items())
            print(f"  {kind} at {at:%H:%M}: {seconds:.1f} s; processor seconds: {took}", file=sys.stderr, flush=True)
    scale = MARKET / count
    day = 0.0
    measurements = []
    for kind, times in _A_DAY.items():
        each = {name: size / len(found[kind]) for name, size in tables[kind].items()}
        bytes_ = sum(each.values())
        day += bytes_ * times
        largest = sorted(each.items(), key=lambda item: -item[1])[:9]
        details = {f"{name} kB": size / 1e3 for name, size in largest}
        measurements.append(Measurement(f"{kind} tick: written", bytes_ / 1e6, "MB", details=details))
        seconds_ = sorted(one["seconds"] for one in found[kind])[len(found[kind]) // 2]
        processor = sorted(one["cpu"] for one in found[kind])[len(found[kind]) // 2]
        measurements.append(Measurement(f"{kind} tick: processor time of {MARKET} symbols", processor * scale, "s"))
        measurements.append(Measurement(f"{kind} tick: {count} symbols", seconds_, "s"))
    kept = sum(size * _A_DAY[kind] for kind in _A_DAY for name, size in _each(tables, found, kind) if _is_bars(name))
    measurements.append(
        Measurement(
            f"a day of {MARKET} symbols: written beside bars",
            (day - kept) * scale / 1e9,
            "GB",
            at_most=TARGET_GIGABYTES,
            details={"bars and features GB": kept * scale / 1e9},
        )
    )
    return measurements


def _each(
    tables: dict[str, dict[str, float]], found: dict[str, list[dict[str, float]]], kind: str
) -> list[tuple[str, float]]:
    return [(name, size / len(found[kind])) for name, size in tables[kind].items()]


def _is_bars(name: str) -> bool:
    return name.startswith(("market_data.records", "market_data.series_state", "market_data.coverage"))


def _load(place: Place, url: str, symbols: Sequence[str]) -> None:
    """Store the history up to the first tick, without Dagster."""
    from market_data_pipeline.ingest.shard import refresh_shard

    with place.pipeline(url, history_days=DAYS, threads=3) as made:
        pipeline = replace(made, clock=lambda: _BEGIN, as_of=_BEGIN)
        outcomes = list(refresh_shard(symbol_requests(tuple(symbols)), pipeline=pipeline, run_id="load"))
    if failed := [outcome for outcome in outcomes if outcome.failed]:
        raise SystemExit(f"{len(failed)} series failed: {failed[0].error}")


def _tick(instance: dg.DagsterInstance, symbols: Sequence[str]) -> None:
    """Refresh the tier through the queue and the daemon; every shard has to succeed."""
    import dagster as dg

    from market_data_pipeline.orchestration.runs import submit_refresh, wait_for_runs

    run_ids = submit_refresh(instance, trigger="schedule")
    ended = wait_for_runs(instance, run_ids)
    if len(run_ids) != -(-len(symbols) // SHARD) or set(ended.values()) != {dg.DagsterRunStatus.SUCCESS}:
        raise SystemExit(f"Not every shard succeeded: {ended}")


_SIZES: Final = """
select n.nspname || '.' || c.relname, pg_total_relation_size(c.oid)
from pg_class as c inner join pg_namespace as n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname in ('market_data', 'public')
"""


def _sizes(*urls: str) -> dict[str, float]:
    found = {}
    for url in urls:
        with psycopg.connect(url) as connection:
            found |= {name: float(size) for name, size in connection.execute(_SIZES).fetchall()}
    return found


@contextmanager
def _processor_seconds(place: Place) -> Iterator[dict[str, float]]:
    """Yield what is filled at the end: processor seconds by kind of process, of this one's children and the server."""
    total: dict[tuple[int, float], tuple[str, float]] = {}
    first: dict[tuple[int, float], float] = {}
    done = threading.Event()
    began = time.time()
    with psycopg.connect(place.postgres_url) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        server = backend.parent() or backend

    def look() -> None:
        processes = [*psutil.Process().children(recursive=True), server, *server.children()]
        for process in processes:
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
                command = " ".join(process.cmdline()[:6])
            except psutil.Error:
                continue
            used = times.user + times.system
            first.setdefault(key, used if key[1] < began else 0.0)
            total[key] = (_kind(command), used - first[key])

    def watch() -> None:
        while not done.wait(_PERIOD):
            look()

    look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    mine = time.process_time()
    spent: dict[str, float] = {}
    try:
        yield spent
    finally:
        done.set()
        thread.join()
        look()
        for kind, seconds in total.values():
            spent[kind] = spent.get(kind, 0.0) + seconds
        spent["submitting and watching"] = time.process_time() - mine


def _kind(command: str) -> str:
    if "postgres" in command:
        return "postgres"
    if "sandbox" in command:
        return "vendor"
    if "dagster-daemon" in command:
        return "daemon"
    return "runs" if "forkserver" in command or "multiprocessing" in command else "code server"


if __name__ == "__main__":
    sys.exit(main())
