"""Rows as a research database has them: years of bars of some symbols, weeks of many more, and their features.

They are generated and stored by COPY, not ingested: what is measured is reading. The year ends at `place.NOW`.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import psycopg

from benchmarks.place import NOW
from market_data_pipeline.domain.bars import bar_frame
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.features.compute import compute_features
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.feature_values import feature_table
from market_data_pipeline.store.packing import pack_partition, to_pack
from market_data_pipeline.store.partitions import settle, to_settle
from market_data_pipeline.store.records import append_records

if TYPE_CHECKING:
    import pandas as pd

SYMBOLS: Final = tuple(f"S{number:03d}" for number in range(400))
LONG: Final = SYMBOLS[:25]  # hold a year of 5m bars; the others a week of them; all hold a year of day bars
LAST_DAY: Final = date(2026, 11, 20)
_FIRST_DAY: Final = date(2025, 11, 24)
_EQUITY: Final = AssetClass.US_EQUITY


def load(url: str) -> None:
    """Store the rows and the state of their series in a migrated database without symbols."""
    calendar = calendar_for(_EQUITY)
    sessions = calendar.sessions(_FIRST_DAY, LAST_DAY + timedelta(days=1))
    starts = {
        timeframe: [calendar.slots_us(timeframe, session) for session in sessions]
        for timeframe in (Timeframe.M5, Timeframe.D1)
    }
    with psycopg.connect(url, autocommit=True) as owner, StoreConnection(url) as connection:
        for number, symbol in enumerate(SYMBOLS):
            owner.execute(
                "insert into market_data.symbols values (%s, 'critical', 'us_equity', true, %s)", (symbol, NOW)
            )
            rng = np.random.default_rng(number)
            for timeframe, days in starts.items():
                short = symbol not in LONG and timeframe is Timeframe.M5
                _store(connection, Series(symbol, timeframe), _bars(np.concatenate(days[-5:] if short else days), rng))
            connection.commit()
        owner.execute("vacuum analyze")  # as it would have been by autovacuum
    with StoreConnection(url, NOW) as connection:  # as the night would
        for partition in to_settle(connection, NOW):
            settle(connection, partition)
        for name in to_pack(connection):
            pack_partition(connection, name, most_rows=10**9)


def _bars(ts: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    count = len(ts)
    close = np.round(200 * np.exp(np.cumsum(rng.normal(0, 1e-3, count))), 2)
    first = close + np.round(rng.normal(0, 0.1, count), 2)
    high = np.maximum(first, close) + np.round(rng.random(count), 2)
    low = np.minimum(first, close) - np.round(rng.random(count), 2)
    volume = rng.integers(100, 50_000, count).astype("float64")
    values = {"open": first, "high": high, "low": low, "close": close, "volume": volume}
    return bar_frame(ts, {**values, "vwap": np.round((high + low) / 2, 4), "trades": np.floor(volume / 10)})


def _store(connection: StoreConnection, series: Series, bars: pd.DataFrame) -> None:
    append_records(connection, series, bars, feature_table(compute_features(bars, series.timeframe, _EQUITY)), NOW)
    connection.execute(
        """
        insert into market_data.series_state (
            symbol, timeframe, tier, first_ts, last_ts, bar_count, feature_count, verified_at, next_due_at, revision,
            features_computed_at
        )
        values (
            %(symbol)s, %(timeframe)s, 'critical', %(first)s, %(last)s, %(count)s, %(count)s, %(now)s,
            %(now)s + interval '1 day', 1, %(now)s
        )
        """,
        {
            **series._asdict(),
            "first": bars["ts"].iloc[0].to_pydatetime(),
            "last": bars["ts"].iloc[-1].to_pydatetime(),
            "count": len(bars),
            "now": NOW,
        },
    )
