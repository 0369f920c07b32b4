"""A whole market by file: a day of 11,000 tickers from the object store to the tables, and five years from ten days.

Everything that a first load does is in it: the lists and files are downloaded, checked and read, securities, splits and
the like requested, bars of five timeframes and their features computed and stored with coverage, states and audit rows.
The days are generated, the object store and the vendor are other processes and do not count. Ten days are loaded for a
part of the tickers, from whole files; five years are these days' seconds times 1,256 / 10, storing scaled to all.

    python -m benchmarks.market [TICKERS]

With fewer tickers (20 or more) the files have fewer rows in proportion; the goals, which are of a whole market, do not
apply, and the figures are kept apart.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.files import ROWS, TICKERS, files_at, names_of, object_store, peak, postgres_seconds, write_day
from benchmarks.place import NOW, POSTGRES_URL, Place, running_place, symbol_requests
from benchmarks.report import Measurement, show
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass

DAYS: Final = 10
PART: Final = 10  # one of so many tickers is loaded for ten days
SESSIONS: Final = 1_256  # of five years
CORES: Final = 8
MOST_SECONDS: Final = 240.0  # 120 s of two cores
MOST_MEGABYTES: Final = 1500.0
MOST_HOURS: Final = 2.0
MOST_REQUESTS: Final = 3_000.0
_THREADS: Final = 2


def main() -> int:
    """Measure, print and return the exit code; with a task, be the measured process."""
    if len(sys.argv) > 2:
        store_url, vendor_url, folder, tickers, part, days = sys.argv[1:]
        print(json.dumps(_load(store_url, vendor_url, Path(folder), int(tickers), int(part), int(days))))
        return 0
    tickers = int(sys.argv[1]) if len(sys.argv) > 1 else TICKERS
    return show("market" if tickers == TICKERS else f"market_of_{tickers}", measure(tickers))


def measure(tickers: int = TICKERS, days: int = DAYS) -> list[Measurement]:
    """Return the figures for a market of so many tickers."""
    whole = tickers == TICKERS
    last = NOW.date()
    sessions = calendar_for(AssetClass.US_EQUITY).sessions(last - timedelta(days=2 * days + 10), last)[-days:]
    with tempfile.TemporaryDirectory(prefix="market-data-bench-market-") as temporary:
        folder = Path(temporary)
        for session in sessions:
            rows = write_day(folder / "bucket", session.date, tickers, ROWS * tickers // TICKERS)
        with object_store(folder / "bucket") as store_url, running_place() as place:
            day = _in_a_process(place, store_url, folder, tickers, 1, (last - sessions[-1].date).days)
            part = max(min(PART, tickers // 2), 1)
            some = _in_a_process(place, store_url, folder, tickers, part, (last - sessions[0].date).days)
    storing = (some["seconds"] - some["reading"] + some["postgres_seconds"]) * part
    years = (some["reading"] + storing) * SESSIONS / days
    files = 2 * SESSIONS + 2 * 60  # and a list of each month
    reference = day["requests"] - day["files"]
    size = f"{rows:,} minutes of {tickers:,} tickers"
    return [
        Measurement(
            "a market day by file, downloaded, computed and stored",
            day["seconds"] + day["postgres_seconds"],
            "cpu s",
            at_most=MOST_SECONDS if whole else None,
            details={"of": size, "series": day["series"], "rows": day["rows"], "wall s": day["wall"],
                     "of it PostgreSQL": day["postgres_seconds"], "of it reading": day["reading"]},
        ),
        Measurement("peak memory of it", day["megabytes"], "MB", at_most=MOST_MEGABYTES if whole else None),
        Measurement("requests of it", day["requests"], "", details={"files": day["files"]}),
        Measurement(
            f"five years by file on {CORES} cores, from {days} days",
            years / CORES / 3600,
            "h",
            at_most=MOST_HOURS if whole else None,
            details={"tickers loaded": tickers // part, "rows": some["rows"], "megabytes": some["megabytes"]},
        ),
        Measurement(
            "requests of five years",
            files + reference,
            "",
            at_most=MOST_REQUESTS if whole else None,
            details={"files and lists": files, "securities, splits and the like": reference},
        ),
    ]  # fmt: skip


def _load(store_url: str, vendor_url: str, folder: Path, tickers: int, part: int, days: int) -> dict[str, float]:
    from market_data_pipeline.ingest.shard import refresh_shard
    from market_data_pipeline.polygon.flat_files import Dataset
    from market_data_pipeline.polygon.staged_days import StagedDays

    url = os.environ[POSTGRES_URL]
    followed = tuple(names_of(tickers)[::part])
    with Place(vendor_url, url).pipeline(url, history_days=days, threads=_THREADS) as made:
        staged = StagedDays(folder, files_at(store_url))
        pipeline = replace(made, staged=staged)
        calendar_for(AssetClass.US_EQUITY).prepare()
        postgres, began, wall = postgres_seconds(url), time.process_time(), time.perf_counter()
        first, count = NOW.date() - timedelta(days=days), 0
        for dataset in Dataset:
            for version in staged.listing(dataset, first, NOW.date()).values():
                staged.day(version)
                count += 1
        reading = time.process_time() - began
        outcomes = list(refresh_shard(symbol_requests(followed), pipeline=pipeline, run_id="market"))
        if failed := [one.error for one in outcomes if one.failed]:
            raise RuntimeError(f"{len(failed)} series failed, so that nothing was measured: {failed[0]}")
        return {
            "seconds": time.process_time() - began,
            "reading": reading,
            "postgres_seconds": postgres_seconds(url) - postgres,
            "wall": time.perf_counter() - wall,
            "series": len(outcomes),
            "rows": sum(one.counters.rows_inserted for one in outcomes),
            "files": count,
            "requests": sum(one.counters.requests for one in outcomes) + count,
            "megabytes": peak(),
        }


def _in_a_process(place: Place, store_url: str, folder: Path, tickers: int, part: int, days: int) -> dict[str, Any]:
    url = place.new_database(f"market_{part}", tuple(names_of(tickers)[::part]))
    command = [sys.executable, "-m", "benchmarks.market", store_url, place.vendor_url, str(folder / f"staged_{part}")]
    found = place.measured([*command, str(tickers), str(part), str(days)], url)
    place.drop(url)
    return found


if __name__ == "__main__":
    sys.exit(main())
