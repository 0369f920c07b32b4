"""Partitions of records: made ahead, and put in order once, with nothing lost of what is stored meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from market_data_pipeline.domain.errors import TransientError
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.partitions import make_ahead, partitions, settle, to_settle
from market_data_pipeline_tests.waiting import until

NOW = datetime(2026, 3, 20, tzinfo=UTC)
JANUARY = "records_5m_2026_01"
SYMBOLS = [f"SYM{number:02}" for number in range(30)]
# As ticks do: the bars of one time of all series, then those of the next.
TICKS = """
with numbered as (select market_data.series_id(symbol, '5m') as series from unnest(%s::text[]) as symbol)
insert into market_data.records (series, codes, ts, open, high, low, close, volume, ingested_at)
select n.series, 5, t, 1, 2, 0.5, extract(epoch from t), 10, t
from generate_series('2026-01-05 14:30Z'::timestamptz, '2026-01-09 21:00Z', interval '5 minutes') as t
cross join numbered as n
order by t, n.series
"""
ROWS = "select * from market_data.records order by series, ts"


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("select market_data.make_partitions('5m', '2026-01-01', '2026-01-02')")
        connection.execute(TICKS, (SYMBOLS,))
        connection.execute(f"analyze market_data.{JANUARY}")
        yield connection


@pytest.fixture
def connection(database_url: str, owner: psycopg.Connection) -> Iterator[StoreConnection]:
    with StoreConnection(database_url, NOW) as made:
        yield made


def pages_of_a_series(owner: psycopg.Connection) -> int:
    row = owner.execute(
        "select count(distinct (r.ctid::text::point)[0]) from market_data.records as r"
        " where r.series = (select id from market_data.series where symbol = 'SYM07')"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_settled_partition_reads_like_one_that_was_loaded_at_once(
    owner: psycopg.Connection, connection: StoreConnection
) -> None:
    before = owner.execute(ROWS).fetchall()
    of_a_series = len(before) // len(SYMBOLS)
    assert pages_of_a_series(owner) > of_a_series / 3
    (waiting,) = to_settle(connection, NOW)
    assert waiting.name == JANUARY
    assert settle(connection, waiting) == len(before)
    assert owner.execute(ROWS).fetchall() == before
    assert pages_of_a_series(owner) <= of_a_series // 40 + 2  # a page holds 43 rows
    assert to_settle(connection, NOW) == []
    assert [name for (name,) in owner.execute("select relname from pg_class where relname ~ 'settling'")] == []


def test_a_partition_is_left_alone_until_two_weeks_after_its_end(connection: StoreConnection) -> None:
    assert to_settle(connection, datetime(2026, 2, 14, tzinfo=UTC)) == []
    assert [each.name for each in to_settle(connection, datetime(2026, 2, 15, tzinfo=UTC))] == [JANUARY]


def test_a_partition_that_was_loaded_at_once_is_noted_and_not_written_again(
    owner: psycopg.Connection, connection: StoreConnection
) -> None:
    (waiting,) = to_settle(connection, NOW)
    settle(connection, waiting)
    owner.execute("truncate market_data.settled_partitions")
    file = "select pg_relation_filenode(%s)"
    before = owner.execute(file, (f"market_data.{JANUARY}",)).fetchone()
    (waiting,) = to_settle(connection, NOW)
    settle(connection, waiting)
    assert owner.execute(file, (f"market_data.{JANUARY}",)).fetchone() == before
    assert owner.execute("select rewritten from market_data.settled_partitions").fetchall() == [(False,)]


def test_a_correction_that_is_stored_meanwhile_is_not_lost(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    (waiting,) = to_settle(connection, NOW)
    with psycopg.connect(database_url) as other:
        other.execute(
            "select market_data.supersede_bars('SYM03', '5m', array['2026-01-06 15:00Z'::timestamptz], now(), 'r')"
        )
        other.execute(
            "insert into market_data.records (series, ts, open, high, low, close, volume, ingested_at)"
            " values (market_data.series_id('SYM03', '5m'), '2026-01-06 15:00Z', 1, 2, 0.5, 1.25, 10, now())"
        )
        other.execute(
            "insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)"
            " values ('r', 'SYM03', '5m', now(), now(), 'ok')"
        )
        settled = threading.Thread(target=settle, args=(connection, waiting, timedelta(minutes=5)))
        settled.start()
        until(
            lambda: owner.execute(
                "select 1 from pg_locks where not granted and relation = 'market_data.records_5m'::regclass"
            ).fetchone()
        )
        other.commit()
    settled.join()
    corrected = owner.execute(
        "select close from market_data.bars where symbol = 'SYM03' and ts = '2026-01-06 15:00Z'"
    ).fetchall()
    assert corrected == [(1.25,)]
    assert to_settle(connection, NOW) == []


def test_a_partition_is_settled_while_another_of_its_timeframe_is_vacuumed(
    database_url: str, connection: StoreConnection
) -> None:
    (waiting,) = to_settle(connection, NOW)
    with psycopg.connect(database_url) as vacuum:
        vacuum.execute("select market_data.make_partitions('5m', '2026-02-01', '2026-02-02')")
        vacuum.commit()
        vacuum.execute("lock table market_data.records_5m_2026_02 in share update exclusive mode")  # as a vacuum does
        assert settle(connection, waiting) > 0
    assert JANUARY not in [each.name for each in to_settle(connection, NOW)]


def test_a_partition_in_use_stays_as_it_is(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    before = owner.execute(ROWS).fetchall()
    (waiting,) = to_settle(connection, NOW)
    with psycopg.connect(database_url) as reader:
        reader.execute("select 1 from market_data.bars limit 1")
        with pytest.raises(TransientError, match="lock timeout"):
            settle(connection, waiting)
        connection.rollback()
    assert owner.execute(ROWS).fetchall() == before
    assert [each.name for each in to_settle(connection, NOW)] == [JANUARY]


def test_the_next_partitions_are_there_before_their_first_bar(connection: StoreConnection) -> None:
    make_ahead(connection, NOW)
    ends = {each.name: each.ends_at for each in partitions(connection)}
    assert max(end for name, end in ends.items() if name.startswith("records_5m_")) >= NOW + timedelta(days=62)
    assert {name.rpartition("_")[0] for name in ends} >= {"records_15m", "records_1h", "records_4h", "records_1d"}


def test_a_snapshot_that_began_before_the_swap_of_a_partition_misses_none_of_its_rows(
    database_url: str, owner: psycopg.Connection, connection: StoreConnection
) -> None:
    (waiting,) = to_settle(connection, NOW)
    held = len(owner.execute(ROWS).fetchall())
    with StoreConnection(database_url, NOW) as reader:
        reader.read_only_snapshots()
        reader.rows("select 1 as one")  # the snapshot is taken, and has not looked at the partition yet
        settled = threading.Thread(target=settle, args=(connection, waiting, timedelta(minutes=5)))
        settled.start()
        until(lambda: owner.execute("select 1 from pg_locks where not granted").fetchone() or not settled.is_alive())
        assert len(reader.rows(ROWS)) == held
        reader.rollback()
    settled.join()
    assert to_settle(connection, NOW) == []
