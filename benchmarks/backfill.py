"""A first backfill against the limit of the machine: the ingestion alone, and all of it through Dagster.

25 symbols, five timeframes, 365 days, with features. Three things are measured in turn, against one vendor and one
PostgreSQL server, each time into a new database: the limit (see `limit`), the ingestion as a library (`ingest.shard`),
and `market-data backfill` as a user calls it, in a folder whose databases are empty: its time includes starting and
ending every process, migrations, and Dagster's tables, daemon and events. An ingestion that does not count runs first,
so that the vendor has generated its bars. A ratio is the median of the rounds' ratios.

    python -m benchmarks.backfill [DAYS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
import requests

from benchmarks.limit import Rows, calls_of_each_timeframe, copy_rows, download, finished_rows
from benchmarks.place import NOW, REPOSITORY, Place, running_place, symbol_requests, universe
from benchmarks.report import Measurement, show
from market_data_pipeline.runtime.processes import commands, end_trees
from market_data_pipeline.settings.project import state_dir
from market_data_pipeline.settings.sandbox import STATUS_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.ingest.outcome import SeriesOutcome

DAYS: Final = 365
ROUNDS: Final = 3
THREADS: Final = 3
MOST_INGESTION: Final = 2.0  # times the limit
MOST_WHOLE: Final = 3.0
LEAST_FEWER_CALLS: Final = 3.0
_LOOK_SECONDS: Final = 0.02  # between two checks for the first request


def main() -> int:
    """Measure, print and return the exit code."""
    return show("backfill", measure(int(sys.argv[1]) if len(sys.argv) > 1 else DAYS))


def measure(days: int = DAYS, rounds: int = ROUNDS) -> list[Measurement]:
    """Return the ratios to the limit, with the seconds behind them."""
    symbols = universe()
    found: dict[str, list[float]] = {name: [] for name in ("copy", "download", "ingestion", "whole", "start")}
    with running_place() as place:
        url, _, outcomes = ingest(place, "warm", symbols, days)
        rows = finished_rows(url, symbols)
        place.drop(url)
        ours = sum(outcome.counters.requests for outcome in outcomes if outcome.series.symbol == symbols[-1])
        each = calls_of_each_timeframe(place, symbols[-1], days)
        for number in range(rounds):
            seconds, calls, size = download(place, symbols, days)
            found["download"].append(seconds)
            found["copy"].append(copy_rows(place, f"limit_{number}", rows))
            url, seconds, _ = ingest(place, f"ingestion_{number}", symbols, days)
            place.drop(url)
            found["ingestion"].append(seconds)
            whole, start = through_dagster(place, f"whole_{number}", rows, days)
            found["whole"].append(whole)
            found["start"].append(start)
            took = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in found.items())
            print(f"  round {number + 1}: {took}", file=sys.stderr, flush=True)
    limits = [sum(pair) for pair in zip(found["copy"], found["download"], strict=True)]
    median = {name: statistics.median(values) for name, values in found.items()}
    what = f"{len(symbols)} symbols, 5 timeframes, {days} days"
    details = {"pairs": rows.pairs, "requests": calls, "megabytes": size / 1e6, "rounds": rounds}
    return [
        Measurement(
            f"limit: {what}",
            statistics.median(limits),
            "s",
            details={**details, "copy_s": median["copy"], "download_s": median["download"]},
        ),
        _ratio("ingestion per limit", found["ingestion"], limits, at_most=MOST_INGESTION),
        _ratio("ingestion per COPY alone", found["ingestion"], found["copy"]),
        _ratio("whole through Dagster per limit", found["whole"], limits, at_most=MOST_WHOLE),
        _ratio("whole through Dagster per COPY alone", found["whole"], found["copy"]),
        Measurement(
            "fewer API calls than one series per timeframe",
            each / ours,
            "times",
            at_least=LEAST_FEWER_CALLS,
            details={"ours": ours, "each": each},
        ),
        Measurement("first of three runs at once to its first request", median["start"], "s"),
    ]


def _ratio(name: str, these: list[float], those: list[float], **target: float) -> Measurement:
    ratio = statistics.median(a / b for a, b in zip(these, those, strict=True))
    details = {"seconds": statistics.median(these), "over_seconds": statistics.median(those)}
    return Measurement(name, ratio, "times", details=details, **target)


def ingest(
    place: Place, name: str, symbols: Sequence[str], days: int, threads: int = THREADS
) -> tuple[str, float, list[SeriesOutcome]]:
    """Backfill into a new database, without Dagster; return its URL, the seconds and the outcomes."""
    from market_data_pipeline.ingest.shard import refresh_shard

    url = place.new_database(name, tuple(symbols))
    with place.pipeline(url, history_days=days, threads=threads) as pipeline:
        began = time.perf_counter()
        outcomes = list(refresh_shard(symbol_requests(tuple(symbols)), pipeline=pipeline, run_id=name))
        seconds = time.perf_counter() - began
    if failed := [outcome for outcome in outcomes if outcome.status != "ok"]:
        raise SystemExit(f"{len(failed)} series failed: {failed[0].error}")
    return url, seconds, outcomes


def through_dagster(place: Place, name: str, rows: Rows, days: int) -> tuple[float, float]:
    """Return the seconds of one `market-data backfill`, and those from a run's start to its first request."""
    with project_folder(place, name, days) as (folder, environment), first_request(place) as first:
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - our own command
            [str(Path(sys.executable).with_name("market-data")), "backfill"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"market-data backfill ended with {done.returncode}: {done.stdout}{done.stderr}")
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        held = connection.execute("select count(*) from market_data.features").fetchone()
    if held != (rows.pairs,):
        raise SystemExit(f"{held} rows of features through Dagster, {rows.pairs} without")
    with psycopg.connect(environment["DAGSTER_POSTGRES_URL"]) as connection:
        started = connection.execute(
            "select extract(epoch from min(timestamp at time zone 'UTC'))::float from event_logs "
            "where dagster_event_type = 'PIPELINE_STARTING'"
        ).fetchone()
    if not started or not first:
        raise SystemExit("No run was started.")
    for variable in ("DATABASE_URL", "DAGSTER_POSTGRES_URL"):
        place.drop(environment[variable])
    return seconds, first[0] - started[0]


@contextmanager
def project_folder(place: Place, name: str, days: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a project folder with new databases, and the environment of its commands."""
    urls = {}
    with psycopg.connect(place.postgres_url, autocommit=True) as connection:
        for variable, database in {"DATABASE_URL": name, "DAGSTER_POSTGRES_URL": f"{name}_dagster"}.items():
            connection.execute(f"create database {database}")
            urls[variable] = urlsplit(place.postgres_url)._replace(path=f"/{database}").geturl()
    with tempfile.TemporaryDirectory(prefix="market-data-bench-") as made:
        folder = Path(made)
        for file in ("dagster.yaml", "workspace.yaml", "pyproject.toml", "sql"):
            (folder / file).symlink_to(REPOSITORY / file)
        environment = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        environment |= {
            **urls,
            "MARKET_DATA_PROJECT_ROOT": str(folder),
            "POLYGON_BASE_URL": place.vendor_url,
            "POLYGON_PLAN": "advanced",
            "MARKET_DATA_HISTORY_DAYS": str(days),
            "MARKET_DATA_AS_OF": NOW.isoformat(),
        }
        try:
            yield folder, environment
        finally:  # end what an interrupted command left running
            end_trees(process for command in commands(state_dir(folder)) for process in command.processes)


@contextmanager
def first_request(place: Place) -> Iterator[list[float]]:
    """Yield a list to which the instant of the vendor's next request is added, in seconds since 1970."""
    seen: list[float] = []
    over = threading.Event()

    def asked() -> int:
        return int(requests.get(place.vendor_url + STATUS_PATH, timeout=30).json()["requests"])

    before = asked()

    def watch() -> None:
        while not seen and not over.wait(_LOOK_SECONDS):
            if asked() > before:
                seen.append(time.time())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main())
