"""What features cost, compared with the libraries alone, and an append compared with a whole series.

The figures are ratios within one run. The two sides of a ratio alternate and take about as long, so that a busy machine
slows both; appends follow one another, as they do when a shard of series is refreshed.

- All 17 features of 50,000 bars, over TA-Lib's time for ATR, both EMAs, both standard deviations and the Bollinger
  width on the same arrays plus Bottleneck's for the two rolling medians: at most 3.
- The features of all 50,000 bars, over those of one more bar from its warm-up: at least 20.
- The same with PostgreSQL: read what is needed, compute, store the bars with their features, commit. The server is an
  embedded one with its usual settings, in a folder that is removed at the end.

    python -m benchmarks.features
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bottleneck  # type: ignore[import-untyped]
import numpy as np
import psycopg
import talib

from benchmarks.report import Measurement, show
from market_data_pipeline.domain.bars import bar_frame
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.features.compute import compute_features, features_from, warm_up_suffices
from market_data_pipeline.domain.features.definitions import WARM_UP_BARS
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

BARS: Final = 50_000
REPETITIONS: Final = 25
MOST_PER_LIBRARIES: Final = 3.0
LEAST_PER_APPEND: Final = 20.0
_EQUITY: Final = AssetClass.US_EQUITY
_APPENDS: Final = 20  # together about as long as one computation of the whole
_NOW: Final = datetime(2026, 1, 5, tzinfo=UTC)


def series_of_bars(count: int = BARS) -> pd.DataFrame:
    """Return 5-minute bars of whole sessions from 2024 on: a seeded random walk in cents."""
    calendar, starts = calendar_for(_EQUITY), []
    for session in calendar.sessions(datetime(2024, 1, 2, tzinfo=UTC).date(), _NOW.date() + timedelta(days=400)):
        starts.append(calendar.slots_us(Timeframe.M5, session))
        if sum(map(len, starts)) >= count:
            break
    ts = np.concatenate(starts)[:count]
    rng = np.random.default_rng(4)
    close = np.round(200 * np.exp(np.cumsum(rng.normal(0, 1e-3, count))), 2)
    high, low = close + np.round(rng.random(count), 2), close - np.round(rng.random(count), 2)
    volume = rng.integers(100, 50_000, count).astype("float64")
    values = {"open": close, "high": high, "low": low, "close": close, "volume": volume, "vwap": close}
    return bar_frame(ts, {**values, "trades": np.floor(volume / 10)})


def libraries_alone(bars: pd.DataFrame) -> Callable[[], None]:
    """Return a function that computes only what the libraries contribute to the features."""
    high, low, close = (bars[name].to_numpy() for name in ("high", "low", "close"))
    log_return = np.diff(np.log(close))

    def run() -> None:
        talib.ATR(high, low, close, timeperiod=14)
        talib.EMA(close, timeperiod=20)
        talib.EMA(close, timeperiod=50)
        talib.STDDEV(log_return, timeperiod=20)
        volatility = talib.STDDEV(log_return, timeperiod=50)
        upper, middle, lower = talib.BBANDS(close, timeperiod=20)
        bottleneck.move_median(volatility, 50)
        bottleneck.move_median((upper - lower) / middle, 50)

    return run


def alternately(works: dict[str, tuple[int, Callable[[], object]]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each work in each round, divided by how often it is done in a round.

    The first round does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(repetitions + 1):
        for name, (times, work) in works.items():
            began = time.perf_counter()
            for _ in range(times):
                work()
            if round_:
                seconds[name].append((time.perf_counter() - began) / times)
    return seconds


def computing(repetitions: int) -> dict[str, list[float]]:
    """Measure without a database."""
    bars = series_of_bars()
    tail = bars.iloc[-WARM_UP_BARS - 1 :].reset_index(drop=True)

    def append() -> None:
        if not warm_up_suffices(tail, WARM_UP_BARS):
            raise AssertionError("these bars move")
        features_from(tail, WARM_UP_BARS, Timeframe.M5, _EQUITY)

    works: dict[str, tuple[int, Callable[[], object]]] = {
        "libraries": (3, libraries_alone(bars)),
        "whole": (1, lambda: compute_features(bars, Timeframe.M5, _EQUITY)),
        "append": (_APPENDS, append),
    }
    return alternately(works, repetitions)


def storing(repetitions: int) -> dict[str, list[float]]:
    """Measure with a database."""
    from market_data_pipeline.domain.bars import empty
    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.ingest.features import FeatureBasis, store_records
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState

    series, bars = Series("BENCH", Timeframe.M5), series_of_bars(BARS + _APPENDS * (repetitions + 1))
    held = [bars.iloc[:0]]

    def store(connection: StoreConnection, new: pd.DataFrame) -> int:
        last = held[0]["ts"].iloc[-1].to_pydatetime() if len(held[0]) else None
        return store_records(
            connection,
            series,
            SeriesState(Tier.CRITICAL, last_ts=last),
            new,
            FeatureBasis(_EQUITY, (), ""),
            new=new,
            changed_from=new["ts"].iloc[0].to_pydatetime(),
            contiguous=True,
            full=False,
            now=_NOW,
            tally=Tally(),
        ).rows

    with _database() as url, StoreConnection(url) as connection, psycopg.connect(url, autocommit=True) as owner:

        def whole() -> None:
            owner.execute("truncate market_data.records_5m")  # which the pipeline's role may not do
            held[0] = empty()
            if store(connection, bars.iloc[:BARS]) < BARS:
                raise AssertionError("not everything was computed")
            connection.commit()
            held[0] = bars.iloc[:BARS]

        def append() -> None:
            known = len(held[0])
            if store(connection, bars.iloc[known : known + 1].reset_index(drop=True)) != 1:
                raise AssertionError("one row follows from one bar")
            connection.commit()
            held[0] = bars.iloc[: known + 1]

        return alternately({"whole": (1, whole), "append": (_APPENDS, append)}, repetitions)


@contextmanager
def _database() -> Iterator[str]:
    from market_data_pipeline.runtime.postgres import EmbeddedPostgres
    from market_data_pipeline.store.migrations import migrate_database

    with tempfile.TemporaryDirectory(prefix="market-data-bench-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        server.ensure_running()
        try:
            migrate_database(server.owner_url, Path(__file__).resolve().parent.parent / "sql")
            yield server.owner_url
        finally:
            server.stop()


def measure(repetitions: int = REPETITIONS) -> list[Measurement]:
    """Return the three ratios, each the median of the rounds' ratios, which compare what ran at about the same time."""
    computed, stored = computing(repetitions), storing(max(3, repetitions // 5))
    return [
        _ratio("17 features per libraries alone", computed["whole"], computed["libraries"], at_most=MOST_PER_LIBRARIES),
        _ratio("50,000 bars per one appended", computed["whole"], computed["append"], at_least=LEAST_PER_APPEND),
        _ratio("the same, stored", stored["whole"], stored["append"], at_least=LEAST_PER_APPEND),
    ]


def _ratio(name: str, these: list[float], those: list[float], **target: float) -> Measurement:
    ratio = statistics.median(a / b for a, b in zip(these, those, strict=True))
    medians = {"ms": statistics.median(these) * 1e3, "over_ms": statistics.median(those) * 1e3}
    return Measurement(name, ratio, "times", details={**medians, "rounds": len(these)}, **target)


def main() -> dict[str, Any]:
    """Measure, print, store, and return the figures by name."""
    measured = measure()
    show("features", measured)
    return {each.name: each.value for each in measured} | {"reached": all(each.reached for each in measured)}


if __name__ == "__main__":
    sys.exit(not main()["reached"])
