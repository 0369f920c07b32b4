"""The connections that readers keep: used again, replaced when the server ends them, and safe in threads and forks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from market_data_pipeline import iter_bars, read_bars
from market_data_pipeline.reading import close_connections
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.waiting import until


@pytest.fixture
def seed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seed]:
    """A database with a series each of A to D, which the environment names."""
    close_connections()
    monkeypatch.setenv("DATABASE_URL", database_url)
    seed = Seed(database_url)
    for position, symbol in enumerate("ABCD"):
        seed.series(symbol, "5m", count=12, close=100.0 * position)
    yield seed
    close_connections()


def readers(seed: Seed) -> list[int]:
    """The server's processes for connections of readers to this database."""
    rows = seed.run(
        "select pid from pg_stat_activity where datname = current_database() and application_name = %s order by pid",
        "market-data reader",
    )
    return [pid for (pid,) in rows]


def closes(symbol: str) -> list[float]:
    return read_bars(symbol, "5m", adjusted=False, columns=["close"])["close"].to_list()


def expected(symbol: str) -> list[float]:
    return [100.0 * "ABCD".index(symbol) + bar for bar in range(12)]


def test_calls_use_one_connection_and_leave_no_transaction_open(seed: Seed) -> None:
    assert closes("A") == expected("A")
    first = readers(seed)
    assert closes("B") == expected("B")
    assert readers(seed) == first
    assert len(first) == 1
    assert seed.run("select state from pg_stat_activity where pid = %s", first[0]) == [("idle",)]


def test_a_connection_that_the_server_ended_is_replaced(seed: Seed) -> None:
    assert closes("A") == expected("A")
    [old] = readers(seed)
    assert seed.run("select pg_terminate_backend(%s, 10000)", old) == [(True,)]
    assert closes("A") == expected("A")
    assert old not in readers(seed)


def test_a_failed_read_and_an_abandoned_iterator_give_their_connection_back(seed: Seed) -> None:
    pieces = iter_bars("A", "5m", rows=3)
    assert len(next(pieces)) == 3
    assert closes("B") == expected("B")  # beside the one that the iterator holds
    pieces.close()
    seed.run("alter table market_data.records rename column close to final")
    with pytest.raises(Exception, match="market-data migrate"):
        closes("C")
    seed.run("alter table market_data.records rename column final to close")
    assert closes("C") == expected("C")
    assert len(readers(seed)) == 2


def test_threads_read_at_the_same_time_and_few_connections_remain(seed: Seed) -> None:
    with ThreadPoolExecutor(8) as pool:
        symbols = list("ABCD" * 12)
        assert list(pool.map(closes, symbols)) == list(map(expected, symbols))
    assert readers(seed)
    until(lambda: len(readers(seed)) <= 4)  # the server ends its processes for closed ones in its own time


def test_a_forked_child_reads_over_a_connection_of_its_own_and_leaves_its_parents(seed: Seed) -> None:
    assert closes("A") == expected("A")
    before = readers(seed)
    pieces = iter_bars("B", "5m", rows=5)
    first = next(pieces)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(closes, "ABCD") == list(map(expected, "ABCD"))
    assert len(first) + sum(map(len, pieces)) == 12  # as if there had been no child
    assert closes("A") == expected("A")
    assert set(before) <= set(readers(seed))


def test_settings_are_read_again_when_the_environment_or_its_file_changes(
    seed: Seed, database_url: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert closes("A") == expected("A")
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    with pytest.raises(Exception, match="market-data migrate"):
        closes("A")
    monkeypatch.delenv("DATABASE_URL")
    env_file = Path(os.environ["MARKET_DATA_PROJECT_ROOT"], ".env")
    env_file.write_text(f"DATABASE_URL={database_url}\n", encoding="utf-8")
    assert closes("A") == expected("A")
    env_file.write_text(f"DATABASE_URL={empty_database_url}\n", encoding="utf-8")
    with pytest.raises(Exception, match="market-data migrate"):
        closes("A")


def test_a_changed_password_is_found_in_the_file_that_a_setting_names(
    seed: Seed, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "database_url"
    right = psycopg.conninfo.conninfo_to_dict(database_url)
    secret.write_text(f"postgresql://nobody:wrong@/{right['dbname']}?host={right['host']}&port={right['port']}")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DATABASE_URL_FILE", str(secret))
    with pytest.raises(Exception, match="cannot be used"):
        closes("A")
    secret.write_text(database_url)
    assert closes("A") == expected("A")
