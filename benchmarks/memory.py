"""The peak memory of a run that backfills 25 symbols: one process, as Dagster starts it for a shard.

The process first imports the code location, as every run does, then ingests all symbols with three in flight. Vendor
and database are other processes and do not count.

    python -m benchmarks.memory [DAYS]
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, Final

from benchmarks.place import POSTGRES_URL, Place, running_place, symbol_requests, universe
from benchmarks.report import Measurement, show

TARGET_MB: Final = 600.0
DAYS: Final = 365
_THREADS: Final = 3


def main() -> int:
    """Measure, print and return the exit code; with a vendor's URL as argument, be the measured process."""
    if len(sys.argv) > 2:
        print(json.dumps(_ingest(int(sys.argv[1]), Place(sys.argv[2], ""), os.environ[POSTGRES_URL])))
        return 0
    return show("memory", measure(int(sys.argv[1]) if len(sys.argv) > 1 else DAYS))


def measure(days: int = DAYS) -> list[Measurement]:
    """Return the peak of the measured process."""
    symbols = universe()
    with running_place() as place:
        url = place.new_database("memory", symbols)
        command = [sys.executable, "-m", "benchmarks.memory", str(days), place.vendor_url]
        found = place.measured(command, url)
    what = f"peak of a run: {len(symbols)} symbols, {days} days, {_THREADS} at once"
    return [Measurement(what, found["peak_mb"], "MB", at_most=TARGET_MB, details=found)]


def _ingest(days: int, place: Place, url: str) -> dict[str, Any]:
    import market_data_pipeline.definitions  # noqa: F401  what a run's process has loaded before it begins
    from market_data_pipeline.ingest.shard import refresh_shard

    before = _peak_mb()
    with place.pipeline(url, history_days=days, threads=_THREADS) as pipeline:
        outcomes = list(refresh_shard(symbol_requests(universe()), pipeline=pipeline, run_id="memory"))
    if failed := [outcome for outcome in outcomes if outcome.status != "ok"]:
        raise SystemExit(f"{len(failed)} series failed: {failed[0].error}")
    return {
        "peak_mb": _peak_mb(),
        "imported_mb": before,
        "bars": sum(outcome.counters.rows_inserted for outcome in outcomes),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in kB


if __name__ == "__main__":
    sys.exit(main())
