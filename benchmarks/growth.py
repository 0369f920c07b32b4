"""Whether time and memory per series stay the same with more symbols, more years and more work per tick.

- 5, 25, 100 and 400 symbols, 30 days each, in one run: seconds and peak memory per series.
- 1, 5 and 20 years of one symbol: seconds per 10,000 bars, and peak memory, which must not grow with the years.
- A tick at each number of symbols: the run after midnight in New York, with half an hour of bars since the one before,
  when every series has a new bar, including the day's and the last four hours'; seconds per series. For 25 symbols, 125
  series, the whole tick has a target.

Flat means that no size takes over a fifth more per unit than the next smaller one. Each size runs in its own process,
which does a small backfill before the clock starts, since a run's process is forked with imports and calendar. Vendor
and database are other processes; every time includes the vendor's generating bars on request.

    python -m benchmarks.growth
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from benchmarks.place import POSTGRES_URL, Place, running_place, symbol_requests
from benchmarks.report import Measurement, show
from market_data_pipeline.domain.series import Timeframe

SYMBOLS: Final = (5, 25, 100, 400)
YEARS: Final = (1, 5, 20)
_DAYS: Final = 30
_THREADS: Final = 3
_TICKS: Final = 3  # the median of so many, one after the other
_WITH_TARGET: Final = 25
MOST_GROWTH: Final = 1.2
MOST_TICK_SECONDS: Final = 3.0
# A Friday's session, New York 11:00. The vendor's clock is a day ahead, so that it has the bars of the ticks.
_BEFORE: Final = datetime(2026, 11, 20, 16, 0, tzinfo=UTC)
# Before a tick, all is refreshed up to half an hour before the session's end; that refresh does not count.
_EVENING: Final = datetime(2026, 11, 18, 0, 30, tzinfo=UTC)  # Tuesday, New York 19:30
_TICK_AFTER: Final = timedelta(hours=5)


def main() -> int:
    """Measure, print and return the exit code; with a kind, a size and a vendor, be the measured process."""
    if len(sys.argv) > 2:
        kind, size, vendor_url = sys.argv[1:]
        print(json.dumps(_WORK[kind](int(size), Place(vendor_url, os.environ[POSTGRES_URL]))))
        return 0
    return show("growth", measure())


def measure() -> list[Measurement]:
    """Return seconds and memory per unit of every size, and the largest increase over the next smaller size."""
    with running_place() as place:
        symbols = {size: _in_a_process("symbols", size, place) for size in SYMBOLS}
        years = {size: _in_a_process("years", size, place) for size in YEARS}
    found = []
    for size, of_size in symbols.items():
        series = 5 * size
        name = f"{size} symbols: a series"
        found.append(Measurement(name, 1e3 * of_size["seconds"] / series, "ms", details=of_size))
        target = {"at_most": MOST_TICK_SECONDS} if size == _WITH_TARGET else {}
        found.append(Measurement(f"{size} symbols: a tick of {series} series", of_size["tick_seconds"], "s", **target))
    for size, of_size in years.items():
        name = f"{size} years of a symbol: 10,000 bars"
        found.append(Measurement(name, 1e7 * of_size["seconds"] / of_size["bars"], "ms", details=of_size))
    steps = {
        "seconds of a series with more symbols": [symbols[size]["seconds"] / size for size in SYMBOLS],
        "memory of a run with more symbols": [symbols[size]["peak_mb"] for size in SYMBOLS],
        "seconds of a tick's series with more symbols": [symbols[size]["tick_seconds"] / size for size in SYMBOLS],
        "seconds of a bar with more years": [years[size]["seconds"] / years[size]["bars"] for size in YEARS],
        "memory of a symbol with more years": [years[size]["peak_mb"] for size in YEARS],
    }
    return [
        *found,
        *(
            Measurement(name, max(b / a for a, b in pairwise(values)), "times", at_most=MOST_GROWTH)
            for name, values in steps.items()
        ),
    ]


def _in_a_process(kind: str, size: int, place: Place) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", kind, str(size), place.vendor_url]
    found = place.measured(command, place.postgres_url)
    print(f"  {size} {kind}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def _symbols(size: int, place: Place) -> dict[str, Any]:
    symbols = tuple(f"SYN{number:04d}" for number in range(size))
    url = _warm(place, f"symbols_{size}", symbols)
    before = _peak_mb()
    first = _refresh(place, url, symbols, _DAYS, _EVENING)
    ticks = []
    for day in range(_TICKS):
        evening = _EVENING + timedelta(days=day)
        _refresh(place, url, symbols, _DAYS, evening)
        ticks.append(_refresh(place, url, symbols, _DAYS, evening + _TICK_AFTER))
        # A thinly traded symbol may not trade in half an hour.
        if ticks[-1]["series"] < 0.99 * len(symbols) * len(Timeframe):
            raise SystemExit(f"Only {ticks[-1]['series']} series have a new bar.")
    place.drop(url)
    return {
        **first,
        "grown_mb": _peak_mb() - before,
        "peak_mb": _peak_mb(),
        "tick_seconds": sorted(tick["seconds"] for tick in ticks)[_TICKS // 2],
        "tick_bars": ticks[0]["bars"],
    }


def _years(size: int, place: Place) -> dict[str, Any]:
    symbols = ("SYN0000",)
    url = _warm(place, f"years_{size}", symbols)
    before = _peak_mb()
    found = _refresh(place, url, symbols, 365 * size, _BEFORE)
    place.drop(url)
    return {**found, "grown_mb": _peak_mb() - before, "peak_mb": _peak_mb()}


_WORK: Final = {"symbols": _symbols, "years": _years}


def _warm(place: Place, name: str, symbols: tuple[str, ...]) -> str:
    """Return a new database for the symbols, after this process has ingested another symbol."""
    url = place.new_database(f"{name}_warm", ("SYN9999",))
    _refresh(place, url, ("SYN9999",), _DAYS, _BEFORE)
    place.drop(url)
    return place.new_database(name, symbols)


def _refresh(place: Place, url: str, symbols: tuple[str, ...], days: int, now: datetime) -> dict[str, Any]:
    from dataclasses import replace

    from market_data_pipeline.ingest.shard import refresh_shard

    with place.pipeline(url, history_days=days, threads=_THREADS) as made:
        pipeline = replace(made, clock=lambda: now, as_of=now)
        began = time.perf_counter()
        outcomes = list(refresh_shard(symbol_requests(symbols), pipeline=pipeline, run_id=f"{now}"))
        seconds = time.perf_counter() - began
    if failed := [outcome for outcome in outcomes if outcome.failed]:
        raise SystemExit(f"{len(failed)} series failed: {failed[0].error}")
    return {
        "seconds": seconds,
        "bars": sum(outcome.counters.rows_inserted for outcome in outcomes),
        "series": sum(outcome.counters.rows_inserted > 0 for outcome in outcomes),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
