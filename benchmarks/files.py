"""What a day of the whole market costs by file: 11,000 tickers, 1.7 million minutes, generated.

- Reading: download over HTTP from an object store, check every row, make 5m bars, lay them down by ticker: processor
  seconds and peak memory of a process that does nothing else.
- Storing: two such days of 200 of these tickers, which hold nothing yet, at all five timeframes with features:
  processor seconds of the run and of PostgreSQL, for each symbol. The files were read before.

The object store and the vendor, of which only splits and the like are requested, are other processes and do not count.

    python -m benchmarks.files
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import numpy as np
import psutil
from pydantic import SecretStr

from benchmarks.place import NOW, POSTGRES_URL, Place, running_place, symbol_requests
from benchmarks.report import Measurement, show
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.polygon.flat_files import BUCKET, Dataset, FileAccess, FlatFiles, key_of

TICKERS: Final = 11_000
ROWS: Final = 1_700_000
FOLLOWED: Final = 200
DAYS: Final = (dt.date(2026, 11, 19), dt.date(2026, 11, 20))
MOST_MEGABYTES: Final = 1500.0
_THREADS: Final = 3
_KEY: Final = SecretStr("benchmark")
_STORE: Final = """
import sys, time
from pathlib import Path
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%s" % server.get_host_and_port()
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
client.create_bucket(Bucket=sys.argv[1])
for file in Path(sys.argv[2]).rglob("*.gz"):
    client.put_object(Bucket=sys.argv[1], Key=str(file.relative_to(sys.argv[2])), Body=file.read_bytes())
print(url, flush=True)
time.sleep(10_000)
"""


def main() -> int:
    """Measure, print and return the exit code; with a task and addresses, be the measured process."""
    if len(sys.argv) > 2:
        task, store_url, vendor_url, folder = sys.argv[1:]
        print(json.dumps(_WORK[task](store_url, vendor_url, Path(folder))))
        return 0
    return show("files", measure())


def measure() -> list[Measurement]:
    """Return the figures."""
    with tempfile.TemporaryDirectory(prefix="market-data-bench-files-") as temporary:
        folder = Path(temporary)
        rows = [write_day(folder / "bucket", day) for day in DAYS]
        with object_store(folder / "bucket") as store_url, running_place() as place:
            reading = _in_a_process("reading", store_url, place, folder / "read", place.postgres_url)
            url = place.new_database("files", _followed())
            storing = _in_a_process("storing", store_url, place, folder / "stored", url)
    size = f"{rows[-1]:,} minutes of {TICKERS:,} tickers"
    return [
        Measurement("a market day read by file", reading["seconds"], "cpu s", details={"of": size}),
        Measurement("peak memory reading it", reading["megabytes"], "MB", at_most=MOST_MEGABYTES),
        Measurement(
            "two days of a symbol stored by file",
            1000 * (storing["seconds"] + storing["postgres_seconds"]) / FOLLOWED,
            "cpu ms",
            details={
                "symbols": FOLLOWED,
                "series": 5 * FOLLOWED,
                "rows": storing["rows"],
                "of it PostgreSQL ms": 1000 * storing["postgres_seconds"] / FOLLOWED,
                "wall s": storing["wall"],
            },
        ),
        Measurement("peak memory storing", storing["megabytes"], "MB", at_most=MOST_MEGABYTES),
    ]


def write_day(bucket: Path, day: dt.date, tickers: int = TICKERS, rows: int = ROWS) -> int:
    """Write a day's two files as the vendor has them, and return how many minutes they hold."""
    import pyarrow as pa
    from pyarrow import csv

    session = calendar_for(AssetClass.US_EQUITY).session_on(day)
    assert session is not None  # noqa: S101 - a trading day
    dice = np.random.default_rng(day.toordinal())
    weight = 1 / np.arange(1, tickers + 1) ** 0.6
    per = np.clip(weight / weight.sum() * rows, 1, 960).astype(int)
    while per.sum() < rows:  # the busiest trade in every minute, so the others have the rest
        per = np.where(per < 960, np.minimum(per + np.maximum(per // 20, 1), 960), per)
    dice.shuffle(per)
    minute = np.concatenate([np.sort(dice.choice(960, count, replace=False)) for count in per])
    code = np.repeat(np.arange(tickers), per)
    level = np.round(20 + np.random.default_rng(1).random(tickers) * 300, 2)
    for dataset, codes, starts in (
        (Dataset.MINUTES, code, to_us(session.start) * 1000 + minute * 60 * 10**9),
        (Dataset.DAYS, np.arange(tickers), np.full(tickers, to_us(session.day_start) * 1000)),
    ):
        count = len(codes)
        opened, close = (np.round(level[codes] * (1 + dice.normal(0, 0.002, count)), 2) for _ in range(2))
        table = pa.table(
            {
                "ticker": pa.DictionaryArray.from_arrays(codes.astype("int32"), names_of(tickers)).cast(pa.string()),
                "volume": dice.integers(1, 50_000, count),
                "open": opened,
                "close": close,
                "high": np.round(np.maximum(opened, close) + 0.01, 2),
                "low": np.round(np.minimum(opened, close) - 0.01, 2),
                "window_start": starts,
                "transactions": dice.integers(1, 500, count),
            }
        )
        file = bucket / key_of(dataset, day)
        file.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(file, "wb", compresslevel=4) as stream:
            csv.write_csv(table, stream, csv.WriteOptions(quoting_style="none"))
    return len(minute)


def names_of(tickers: int = TICKERS) -> list[str]:
    """Return the tickers: those of the sandbox's load tests, and others that nobody follows."""
    known = min(tickers, 10_000)
    return [f"SYN{number:04d}" for number in range(known)] + [f"Z{number:04d}" for number in range(tickers - known)]


def _followed() -> tuple[str, ...]:
    return tuple(names_of()[: 10_000 : 10_000 // FOLLOWED])


def files_at(store_url: str) -> FlatFiles:
    """Return a client of the object store."""
    return FlatFiles(FileAccess(f"{store_url}/{BUCKET}", _KEY, _KEY))


def _read(store_url: str, vendor_url: str, folder: Path) -> dict[str, float]:
    from market_data_pipeline.polygon.staged_days import StagedDays

    del vendor_url
    staged = StagedDays(folder, files_at(store_url))
    calendar_for(AssetClass.US_EQUITY).prepare()
    began = time.process_time()
    for dataset in Dataset:
        for version in staged.listing(dataset, DAYS[-1], DAYS[-1]).values():
            staged.day(version)
    return {"seconds": time.process_time() - began, "megabytes": peak()}


def _store(store_url: str, vendor_url: str, folder: Path) -> dict[str, float]:
    from market_data_pipeline.ingest.shard import refresh_shard
    from market_data_pipeline.polygon.staged_days import StagedDays

    url = os.environ[POSTGRES_URL]
    with Place(vendor_url, url).pipeline(url, history_days=2, threads=_THREADS) as made:
        pipeline = replace(made, staged=StagedDays(folder, files_at(store_url)))
        calendar_for(AssetClass.US_EQUITY).prepare()
        for dataset in Dataset:
            for version in pipeline.staged.listing(dataset, DAYS[0], DAYS[-1]).values():  # type: ignore[union-attr]
                pipeline.staged.day(version)  # type: ignore[union-attr]
        postgres, began, wall = postgres_seconds(url), time.process_time(), time.perf_counter()
        outcomes = list(refresh_shard(symbol_requests(_followed()), pipeline=pipeline, run_id="files"))
        assert not [one.error for one in outcomes if one.failed]  # noqa: S101 - else nothing was measured
        return {
            "seconds": time.process_time() - began,
            "postgres_seconds": postgres_seconds(url) - postgres,
            "wall": time.perf_counter() - wall,
            "rows": sum(one.counters.rows_inserted for one in outcomes),
            "megabytes": peak(),
        }


def postgres_seconds(url: str) -> float:
    """Return the processor seconds of the server's processes, those that have ended included."""
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("select pg_backend_pid()").fetchone()
        assert row is not None  # noqa: S101 - a select has a row
        parent = psutil.Process(row[0]).parent()
        assert parent is not None  # noqa: S101 - the postmaster
        times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return sum(each.user + each.system for each in times) + times[0].children_user + times[0].children_system


def peak() -> float:
    """Return the most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_WORK: Final = {"reading": _read, "storing": _store}


def _in_a_process(task: str, store_url: str, place: Place, folder: Path, database_url: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.files", task, store_url, place.vendor_url, str(folder)]
    return place.measured(command, database_url)


@contextmanager
def object_store(bucket: Path) -> Iterator[str]:
    """Serve the files of a folder from a process of its own."""
    command = [sys.executable, "-c", _STORE, BUCKET, str(bucket)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603 - ours
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe was requested
        url = process.stdout.readline().strip()
        urlopen(url, timeout=60).close()  # noqa: S310 - our own server
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    assert NOW.date() > DAYS[-1]  # noqa: S101 - both have settled
    sys.exit(main())
