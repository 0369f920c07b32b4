"""What the lake costs: the first sync of a year, that of a tick's changes, and its size over the database's.

`benchmarks.reading` measures what reading it costs, beside the other ways.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

import psycopg

from benchmarks.report import Measurement
from benchmarks.research_data import SYMBOLS
from market_data_pipeline.lake.location import Lake
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.settings import load_settings

if TYPE_CHECKING:
    from benchmarks.reading import Meter

TICKED: Final = SYMBOLS[:125]
_ROUNDS: Final = 5
_SIZE: Final = """
select sum(pg_total_relation_size(c.oid)) from pg_class as c
where c.relnamespace = 'market_data'::regnamespace and c.relkind = 'r' and c.relname ~ '^records_'
"""
# A bar with its features in each series, as a refresh that finds one would store and log them.
_TICK: Final = """
with series as (
    select s.symbol, s.timeframe, s.last_ts, s.last_ts + interval '5 minutes' as ts from market_data.series_state as s
    where s.timeframe = '5m' and s.symbol = any(%(symbols)s)
),

records as (
    insert into market_data.records (
        series, ts, open, high, low, close, volume, vwap, trades, log_return, codes, features_after, ingested_at
    )
    select r.id, s.ts, 1, 2, 0.5, 1.5, 100, 1.2, 7, 0.1, 3 << 14, 0, now()
    from series as s
    inner join market_data.series as r on r.symbol = s.symbol and r.timeframe = s.timeframe
),

states as (
    update market_data.series_state as s
    set last_ts = series.ts, bar_count = s.bar_count + 1, revision = s.revision + 1
    from series where s.symbol = series.symbol and s.timeframe = series.timeframe
)

insert into market_data.ingest_log (
    run_id, symbol, timeframe, started_at, finished_at, status, changed_from, changed_until
)
select 'tick', symbol, timeframe, now(), now(), 'ok', ts, ts + interval '5 minutes' from series
"""


def first_sync(meter: Meter, url: str) -> list[Measurement]:
    """Fill the lake that the environment names, and return what that took and how large it is."""
    settings = load_settings()
    tables = []
    seconds = meter.of(lambda: tables.extend(sync(settings, until_now=True)))
    with psycopg.connect(url) as connection:
        (stored,) = connection.execute(_SIZE).fetchone() or (0,)
    held = sum(table.bytes for table in tables)
    rows = sum(table.rows for table in tables)
    return [
        Measurement("first sync of the lake, 25 symbols' year of 5m and more", seconds, "s", at_most=20.0,
                    details={"rows": rows, "place": Lake.of(settings).url}),
        Measurement("size of the lake over that of the tables", held / float(stored), "times", at_most=0.5,
                    details={"lake_mb": held / 1e6, "database_mb": float(stored) / 1e6}),
    ]  # fmt: skip


def tick_sync(meter: Meter, url: str) -> Measurement:
    """Return what a sync takes after a bar was added to each of 125 series."""
    settings, used, elapsed = load_settings(), [], []
    for _ in range(_ROUNDS):
        with psycopg.connect(url) as connection:
            connection.execute(_TICK, {"symbols": list(TICKED)})
        began = time.perf_counter()
        used.append(meter.of(lambda: sync(settings, until_now=True)))
        elapsed.append(time.perf_counter() - began)
    details = {"clock_seconds": statistics.median(elapsed)}
    return Measurement(
        "sync of a bar in each of 125 series", statistics.median(used), "s", at_most=2.0, details=details
    )
