"""A database of before migration 0050, when bars and features were tables of their own, with rows of each kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import psycopg

from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL

MOVES: Final = "0050_records.sql"

# 5m across a month's end, 1h across a year's; an index without volume; a series whose bars have no features.
_ROWS: Final = """
    create temporary view stretch as
    select * from (values
        ('AAPL', '5m', timestamptz '2025-01-31 20:00Z', interval '5 minutes', 90, true),
        ('AAPL', '1h', timestamptz '2024-12-31 14:00Z', interval '1 hour', 40, true),
        ('AAPL', '1d', timestamptz '2024-12-30 05:00Z', interval '1 day', 5, true),
        ('I:SPX', '1d', timestamptz '2025-01-02 05:00Z', interval '1 day', 5, true),
        ('X:BTCUSD', '4h', timestamptz '2025-02-01 00:00Z', interval '4 hours', 20, false)
    ) as v (symbol, timeframe, begins, step, rows, computed);

    insert into market_data.symbols
    values ('AAPL', 'critical', 'us_equity', true, now()), ('X:BTCUSD', 'standard', 'crypto', true, now()),
    ('I:SPX', 'standard', 'index', true, now());

    insert into market_data.bars
    select
        s.symbol, s.timeframe, s.begins + n * s.step, 100 + n / 3.0::float8, 102 + n, 99, 100.1 + n,
        case when s.symbol not like 'I:%' then 1000.5 * n end, case when n % 4 > 0 then 100.5 end,
        case when n % 5 > 0 then n end, timestamptz '2025-03-01 12:00:00.25Z' + n * interval '1 second',
        case when n % 3 > 0 then timestamptz '2025-03-01 12:00:01.5Z' end
    from stretch as s cross join lateral generate_series(0, s.rows - 1) as n;

    -- But for days, every third row was computed again, a day and some microseconds later, and one by a clock set back.
    insert into market_data.features
    select
        b.symbol, b.timeframe, b.ts, case when n > 1 then 0.01 / n end, null, 0.02, null, 1 / 3.0::float8, 1.5,
        b.volume, 1,
        (array[true, false, null])[n % 3 + 1], (array[true, false, null])[n / 3 % 3 + 1], n % 2 = 0, null,
        (array['up', 'down', 'neutral', null])[n % 4 + 1],
        (array['bullish', 'bearish', 'range', null])[n / 4 % 4 + 1],
        (array['low', 'medium', 'high', null])[n % 4 + 1],
        (array['uptrend', 'downtrend', 'ranging', null])[n / 2 % 4 + 1],
        (array['compressed', 'expanded', null])[n % 3 + 1],
        b.ingested_at + case
            when s.timeframe = '1d' then interval '0'
            when n % 3 = 0 then interval '1 day 0.000007 seconds'
            when n = 4 then interval '-90.5 seconds'
            else interval '0' end,
        case when n % 2 = 0 then jsonb_build_object('spread', n / 7.0, 'calm', n % 4 = 0, 'word', null) end
    from stretch as s cross join lateral (
        select k.*, row_number() over (order by k.ts)::int - 1 as n from market_data.bars as k
        where k.symbol = s.symbol and k.timeframe = s.timeframe
    ) as b
    where s.computed and b.n <> 1;

    insert into market_data.bar_revisions (
        symbol, timeframe, ts, open, high, low, close, volume, ingested_at, superseded_at, run_id, recorded_at
    )
    select
        symbol, timeframe, ts, open, high, low, close - 1, volume, ingested_at - interval '2 days', ingested_at, 'r',
        null
    from market_data.bars where timeframe = '1d' and symbol = 'AAPL';

    insert into market_data.splits (symbol, execution_date, split_from, split_to, first_seen_at)
    values ('AAPL', '2025-01-02', 1, 4, '2025-01-01Z');

    insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)
    values ('r', 'AAPL', '5m', '2025-03-01Z', '2025-03-01Z', 'ok');

    insert into market_data.series_state (symbol, timeframe, tier) select symbol, timeframe, 'critical' from stretch
"""


def make_old_database(url: str, folder: Path) -> None:
    """Give an empty database the schema of before migration 0050, and rows.

    Args:
        url: of the database.
        folder: for a copy of the older migrations; it must not exist.
    """
    folder.mkdir()
    for file in SQL.glob("[0-9]*.sql"):
        if file.name < MOVES:
            shutil.copy(file, folder)
    migrate_database(url, folder)
    with psycopg.connect(url) as connection:
        connection.execute(_ROWS)
