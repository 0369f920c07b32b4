"""The move of bars and features to records, of a database as an earlier version left it."""

from __future__ import annotations

import io
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from rich.console import Console

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.runtime.move_progress import shown_move
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline.store.records import series_id
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.store.old_layout import make_old_database

AAPL = Series("AAPL", Timeframe.M5)
ALL: Final = 5  # series of the old database
AS_OF: Final = """
    select b.* from (values ('AAPL', '5m'), ('AAPL', '1d'), ('I:SPX', '1d')) as s (symbol, timeframe),
    market_data.bars_as_of(s.symbol, s.timeframe, timestamptz '2025-03-01 12:00:01Z') as b
"""


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set timezone to 'UTC'")
        return sorted(connection.execute(statement.encode()).fetchall(), key=repr)


def columns(url: str, relation: str) -> list[str]:
    """Return the columns of a relation of the old schema, but for the one that the move rounds."""
    names = rows(
        url,
        "select attname::text from pg_attribute where attnum > 0 and not attisdropped"
        f" and attrelid = 'market_data.{relation}'::regclass",
    )
    return sorted(name for (name,) in names if name != "features_computed_at")


def questions(url: str) -> list[str]:
    """Return the queries whose answers the move leaves as they are."""
    relations = [
        "bars", "features", "bar_revisions", "bars_adjusted", "bars_total_return", "splits", "ingest_log",
        "recorded_instants",
    ]  # fmt: skip
    return [
        *(f"select {', '.join(columns(url, name))} from market_data.{name}" for name in relations),
        AS_OF,
        AS_OF.replace("bars_as_of", "bars_recorded_by"),
        AS_OF.replace("bars_as_of", "bars_total_return_as_of"),
    ]


COMPUTED: Final = "select symbol, timeframe, ts, features_computed_at from market_data.features"


@pytest.fixture
def old_url(empty_database_url: str, tmp_path: Path) -> str:
    make_old_database(empty_database_url, tmp_path / "old")
    return empty_database_url


class Interrupted(Exception):
    """What ends a move."""


def interrupt(done: int, _total: int) -> None:
    if done == 2:
        raise Interrupted


def test_no_row_is_lost_and_no_value_changes_and_an_interrupted_move_goes_on(old_url: str) -> None:
    asked = questions(old_url)
    before = [rows(old_url, question) for question in asked]
    computed = rows(old_url, COMPUTED)
    assert [len(answer) for answer in before[:3]] == [160, 136, 5]

    with pytest.raises(Interrupted):
        migrate_database(old_url, SQL, on_move=interrupt)

    assert rows(old_url, "select count(*) from market_data.series_to_move") == [(ALL - 2,)]
    assert [rows(old_url, question) for question in asked] == before
    for series in (Series("AAPL", Timeframe.D1), AAPL, Series("MSFT", Timeframe.D1)):  # moved, waiting, new
        with (
            StoreConnection(old_url) as connection,
            pytest.raises(ConfigurationError, match="`market-data migrate` goes on"),
        ):
            series_id(connection, series)
    for statement in ("update market_data.features_5m set atr = 1", "delete from market_data.bars_5m"):  # as old code
        with psycopg.connect(old_url) as owner, pytest.raises(psycopg.DatabaseError, match="market-data migrate"):
            owner.execute(statement)

    told: list[tuple[int, int]] = []
    assert migrate_database(old_url, SQL, on_move=lambda *progress: told.append(progress)) == []

    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [rows(old_url, question) for question in asked] == before
    moved = rows(old_url, COMPUTED)
    assert [row[:3] for row in moved] == [row[:3] for row in computed]
    later = [now[3] - was[3] for was, now in zip(computed, moved, strict=True)]
    assert all(timedelta(0) <= by < timedelta(seconds=1) for by in later)
    assert 0 < sum(by > timedelta(0) for by in later) < len(later)
    assert migrate_database(old_url, SQL) == []
    with StoreConnection(old_url) as connection:
        numbers = {series: series_id(connection, series) for series in (AAPL, Series("I:SPX", Timeframe.D1))}
    stored = "select distinct series from market_data.records"
    assert {(number,) for number in numbers.values()} < set(rows(old_url, stored))


def test_what_a_moved_database_has_is_what_a_new_one_has(old_url: str, database_url: str) -> None:
    migrate_database(old_url, SQL)

    relations = r"""
        select c.relname, c.relkind, pg_get_expr(c.relpartbound, c.oid), a.attname, a.atttypid::regtype,
            c.relacl::text, a.attacl::text
        from pg_class as c left join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = 'market_data'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
            and c.relname !~ '_\d{4}' -- but for partitions
    """
    functions = """
        select oid::regprocedure::text, proacl::text from pg_proc
        where pronamespace = 'market_data'::regnamespace and proname <> 'write_through' -- which lets tests damage bars
    """
    for question in (relations, functions):
        assert rows(old_url, question) == rows(database_url, question)
    with psycopg.connect(old_url) as connection, pytest.raises(psycopg.errors.FeatureNotSupported, match="is a view"):
        connection.execute("delete from market_data.bars")


def test_the_progress_of_a_move_is_shown_in_lines_where_the_output_is_a_file() -> None:
    out = io.StringIO()
    with shown_move(Console(file=out, width=200)) as on_move:
        for done in range(1, 4):
            on_move(done, 3)

    said = out.getvalue().splitlines()
    assert re.match("Moving the bars and features of 3 series .* `market-data migrate` goes on", said[0])
    assert said[1:] == ["  moved 1 of 3 series", "  moved 3 of 3 series"]
