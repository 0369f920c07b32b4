"""A database holds bars of one source: remembered with its first bar, and kept by the program and by the database."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

from market_data_pipeline.domain.bars import bar_frame
from market_data_pipeline.domain.errors import ConfigurationError, PipelineError
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.ingest.pipeline import build_pipeline
from market_data_pipeline.ingest.source import Vendor, check_source, source_of
from market_data_pipeline.runtime.sandbox import running_sandbox, vendor_access
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.records import append_records
from market_data_pipeline.store.source import Source, held_source

NOW = datetime(2026, 3, 11, 15, 0, tzinfo=UTC)
POLYGON, SANDBOX = Source("vendor", "api.polygon.io", "starter"), Source("sandbox", None, "advanced")
KEY = {"POLYGON_API_KEY": "k3y"}
ELSEWHERE = {**KEY, "POLYGON_BASE_URL": "https://bars.example"}
BY_MASSIVE = {"MASSIVE_API_KEY": "k3y"}


def store(connection: StoreConnection, symbol: str = "AAPL") -> None:
    """Store one bar, without a commit."""
    ts = np.array([1_773_235_800_000_000])
    values = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap", "trades"), np.array([1.0]))
    append_records(connection, Series(symbol, Timeframe.M5), bar_frame(ts, values), None, NOW)


def fill(url: str, source: Source | None) -> None:
    with StoreConnection(url, NOW, source=source) as connection:
        store(connection)
        connection.commit()


def settings_with(monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str]) -> Settings:
    monkeypatch.setenv("DATABASE_URL", url)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_the_source_is_remembered_in_the_transaction_of_the_first_bar(database_url: str) -> None:
    with StoreConnection(database_url, NOW, source=POLYGON) as connection:
        store(connection)
        connection.rollback()
        assert held_source(database_url) == (None, None, False)

        store(connection)
        connection.commit()
    assert held_source(database_url) == (POLYGON, NOW, True)


@pytest.mark.parametrize("relation", ["records_5m", "records_1d", "splits", "market_days"])
def test_the_database_itself_refuses_what_another_source_sent(database_url: str, relation: str) -> None:
    fill(database_url, POLYGON)
    columns = "symbol" if relation in ("splits", "market_days") else "ts"
    with (
        StoreConnection(database_url, NOW, source=SANDBOX) as connection,
        pytest.raises(
            ConfigurationError,
            match=r"Nothing was stored: the database holds bars of vendor api\.polygon\.io, and these",
        ),
    ):
        connection.execute(f"insert into market_data.{relation} ({columns}) select null where false")  # type: ignore[arg-type]


def test_every_table_that_a_bar_goes_into_is_guarded(database_url: str) -> None:
    unguarded = ask(
        database_url,
        """
        select inhrelid::regclass::text, needed.name
        from pg_inherits, unnest(array['check_source', 'refuse_slow_statement']) as needed (name)
        where inhparent = 'market_data.records'::regclass
            and not exists (select from pg_trigger where tgrelid = inhrelid and tgname = needed.name)
        """,
    )
    assert unguarded == []


def test_of_two_sources_that_store_their_first_bar_at_once_one_is_refused(database_url: str) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            fill(database_url, SANDBOX)
        except PipelineError as error:
            refused.append(str(error))

    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with StoreConnection(database_url, NOW, source=POLYGON) as first:
        store(first)
        second = threading.Thread(target=other)
        second.start()
        while ask(database_url, waits) != [(1,)]:
            assert second.is_alive()
        first.commit()
        second.join()
    assert len(refused) == 1
    assert held_source(database_url).source == POLYGON
    assert ask(database_url, "select count(*) from market_data.bars") == [(1,)]


def test_a_connection_that_names_no_source_is_not_checked(database_url: str) -> None:
    fill(database_url, None)
    assert held_source(database_url) == (None, None, True)


def test_a_change_of_the_plan_is_remembered_and_nothing_else(database_url: str) -> None:
    fill(database_url, POLYGON)
    with StoreConnection(database_url, NOW, source=Source("vendor", "api.polygon.io", "advanced")) as connection:
        store(connection, "MSFT")
        connection.commit()
    assert held_source(database_url) == (Source("vendor", "api.polygon.io", "advanced"), NOW, True)


@pytest.mark.parametrize(
    ("held", "variables", "words"),
    [
        (POLYGON, {}, r"holds bars of api\.polygon\.io since 2026-03-11, and the settings name the sandbox's synthetic "
                      r"bars: set POLYGON_API_KEY \(or MASSIVE_API_KEY\), or name another database, .* DATABASE_URL="),
        (POLYGON, ELSEWHERE, r"the settings name bars of bars\.example: correct POLYGON_BASE_URL, or name another"),
        (SANDBOX, KEY, r"holds the sandbox.s synthetic bars .* settings name bars of api\.polygon\.io: name another"),
    ],
)  # fmt: skip
def test_another_source_is_refused_in_one_sentence_before_anything_is_fetched(
    database_url: str, monkeypatch: pytest.MonkeyPatch, held: Source, variables: dict[str, str], words: str
) -> None:
    fill(database_url, held)
    settings = settings_with(monkeypatch, database_url, variables)

    with pytest.raises(ConfigurationError, match=words) as refusal:
        build_pipeline(settings, Vendor("http://127.0.0.1:9", "k3y"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigurationError, match=words):
        vendor_access(settings)
    assert running_sandbox(settings) is None


@pytest.mark.parametrize("variables", [KEY, BY_MASSIVE, {**BY_MASSIVE, "POLYGON_BASE_URL": "https://api.polygon.io"}])
def test_the_vendors_old_and_new_name_are_one_source(
    database_url: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    fill(database_url, POLYGON)
    assert check_source(settings_with(monkeypatch, database_url, variables)).host == "api.polygon.io"


def test_a_pipeline_stores_under_the_source_of_its_settings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(monkeypatch, database_url, {**KEY, "POLYGON_PLAN": "starter"})
    with (
        build_pipeline(settings, Vendor("http://127.0.0.1:9", "k3y")) as pipeline,
        closing(pipeline.connect()) as connection,
    ):
        store(connection)
        connection.commit()
    assert held_source(database_url).source == POLYGON


def test_bars_of_an_earlier_version_are_taken_for_the_vendors_but_never_for_synthetic_ones(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database_url, None)
    with pytest.raises(ConfigurationError, match="an earlier version did not record") as refusal:
        check_source(settings_with(monkeypatch, database_url, {}))

    by_hand = str(refusal.value).split("`")[1]
    with psycopg.connect(database_url) as connection:
        connection.execute(by_hand.encode())
        assert connection.execute("select kind, host from market_data.source").fetchall() == [("sandbox", None)]
        connection.rollback()

    check_source(settings_with(monkeypatch, database_url, KEY))
    assert held_source(database_url).source == Source("vendor", "api.polygon.io", "basic")


def test_a_server_on_this_machine_without_a_key_is_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_BASE_URL", "http://localhost:8790")
    assert source_of(load_settings()).kind == "sandbox"
    assert load_settings().database_url.partition("?")[0].endswith("/sandbox")
    monkeypatch.setenv("POLYGON_API_KEY", "sandbox")
    assert source_of(load_settings()).kind == "sandbox"
    monkeypatch.setenv("POLYGON_API_KEY", "k3y")
    assert source_of(load_settings()) == Source("vendor", "localhost", "basic")


def test_a_database_without_our_schema_holds_nothing(empty_database_url: str) -> None:
    assert held_source(empty_database_url) == (None, None, False)
