"""How much sooner a backfill ends with three symbols in flight than with one, when every answer takes 200 ms.

Both are measured in one run, against one vendor, each with a new database; the vendor has served everything once
before, so that neither pays for generating the bars. Threads save the time spent waiting for the vendor; resampling,
features and COPY compete for processors, so the ratio says how well waiting and work overlap. 25 symbols make nine
rounds of three, so it cannot exceed 25 / 9 = 2.78; on a busy machine it measures the other work: see `load`.

    python -m benchmarks.latency [DAYS]
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from benchmarks.place import Place, running_place, symbol_requests, universe
from benchmarks.report import Measurement, show

LATENCY_MS: Final = 200.0
TARGET_RATIO: Final = 2.5
DAYS: Final = 60  # two requests a symbol and 12,000 bars; a year is six and 69,000, and takes four times as long


def main() -> int:
    """Measure, print and return the exit code."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else DAYS
    return show("latency", measure(days))


def measure(days: int = DAYS) -> list[Measurement]:
    """Return the seconds of both and their ratio."""
    symbols = universe()
    with running_place(LATENCY_MS) as place:
        _warm(place, symbols, days)
        one = _backfill(place, symbols, days, threads=1)
        three = _backfill(place, symbols, days, threads=3)
    what = f"{len(symbols)} symbols, {days} days, {LATENCY_MS:.0f} ms a request"
    return [
        Measurement(f"one at a time: {what}", one["seconds"], "s", details=one),
        Measurement(f"three at once: {what}", three["seconds"], "s", details=three),
        Measurement("ratio", one["seconds"] / three["seconds"], "times", at_least=TARGET_RATIO),
    ]


def _backfill(place: Place, symbols: tuple[str, ...], days: int, *, threads: int) -> dict[str, Any]:
    from market_data_pipeline.ingest.shard import refresh_shard

    url = place.new_database(f"threads_{threads}", symbols)
    with place.pipeline(url, history_days=days, threads=threads) as pipeline:
        started = time.perf_counter()
        outcomes = list(refresh_shard(symbol_requests(symbols), pipeline=pipeline, run_id=f"threads {threads}"))
        seconds = time.perf_counter() - started
    place.drop(url)
    failed = [outcome for outcome in outcomes if outcome.status != "ok"]
    if failed:
        raise SystemExit(f"{len(failed)} series failed: {failed[0].error}")
    return {
        "seconds": seconds,
        "requests": sum(outcome.counters.requests for outcome in outcomes),
        "bars": sum(outcome.counters.rows_inserted for outcome in outcomes),
        "fetch_seconds": sum(outcome.counters.fetch_seconds for outcome in outcomes),
        "store_seconds": sum(outcome.counters.store_seconds for outcome in outcomes),
        "compute_seconds": sum(outcome.counters.compute_seconds for outcome in outcomes),
    }


def _warm(place: Place, symbols: tuple[str, ...], days: int) -> None:
    """Let the vendor generate all bars, and this process import what it needs."""
    _backfill(place, symbols, days, threads=4)


if __name__ == "__main__":
    sys.exit(main())
