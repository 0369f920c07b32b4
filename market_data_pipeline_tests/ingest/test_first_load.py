"""Many stocks of which nothing is stored, loaded by file in one transaction: each ends up as it would alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.ingest.outcome import SymbolRequest
from market_data_pipeline.ingest.shard import refresh_shard
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

SATURDAY = datetime(2026, 3, 14, 20, 0, 30, tzinfo=NEW_YORK)  # all files of the week were published
TUESDAY = datetime(2026, 3, 10, 16, 0, 30, tzinfo=NEW_YORK)  # Monday's were; Tuesday comes by REST
STOCKS = ("AAPL", "KO", "MSFT", "NVDA")
# By clock or transaction, and so different between two loads.
_NOT_COMPARED = {"recorded_at", "run_id", "id", "started_at", "finished_at", "bytes", "requests"}
_TABLES = {
    "bars": "symbol, timeframe, ts",
    "features": "symbol, timeframe, ts",
    "coverage": "symbol, timeframe, session_date",
    "series_state": "symbol, timeframe",
    "ingest_log": "symbol, timeframe, id",
}


def stored(world: World, *runs: str) -> dict[str, list[dict[str, object]]]:
    """Return what is stored of all series, and what the audit log says of some runs."""
    return {
        table: [
            {name: value for name, value in row.items() if name not in _NOT_COMPARED and not name.endswith("_seconds")}
            for row in world.query(f"select * from market_data.{table} order by {order}")
            if row.get("run_id") in runs or table != "ingest_log"
        ]
        for table, order in _TABLES.items()
    }


def emptied(world: World) -> None:
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage, market_data.series_state")


def followed(world: World) -> None:
    """Give each series the state that it has from when its symbol is followed."""
    with world.connect() as connection:
        connection.execute(
            "insert into market_data.series_state (symbol, timeframe, tier) select s, t, 'critical'"
            " from unnest(%s::text[]) as s, unnest(%s::text[]) as t",
            (list(STOCKS), [str(each) for each in Timeframe]),
        )


def transactions(world: World) -> dict[str, set[object]]:
    """Return the transactions that wrote the rows of each stock's series."""
    rows = world.query(
        "select symbol, xmin::text as tx from market_data.series_state union"
        " select symbol, xmin::text from market_data.coverage union"
        " select symbol, xmin::text from market_data.ingest_log union"
        " select s.symbol, r.xmin::text from market_data.records as r join market_data.series as s on s.id = r.series"
    )
    return {stock: {row["tx"] for row in rows if row["symbol"] == stock} for stock in STOCKS}


@pytest.fixture
def world(make_world: MakeWorld, tmp_path: Path) -> World:
    made = make_world(SATURDAY)
    made.files_folder, made.threads = tmp_path, 1
    return made


def test_stocks_loaded_together_end_up_as_each_does_alone_and_commit_with_coverage_and_audit(world: World) -> None:
    world.track(*STOCKS)
    followed(world)
    outcomes = world.refresh(*STOCKS, history_days=8)
    assert {one.status for one in outcomes.values()} == {"ok"}, [one.error for one in outcomes.values()]
    assert len(outcomes) == 5 * len(STOCKS)
    together = stored(world, "run-1")
    assert len(set.union(*transactions(world).values())) == 1, "data, coverage, state and audit are one transaction"

    emptied(world)
    followed(world)
    for stock in STOCKS:
        world.refresh(stock, history_days=8)
    alone = stored(world, *(f"run-{number}" for number in range(2, 2 + len(STOCKS))))
    for table, rows in alone.items():
        assert together[table] == rows, table

    assert {one.status for one in world.refresh(*STOCKS, history_days=8).values()} == {"unchanged"}


def test_a_stock_that_the_database_refuses_fails_alone_and_the_others_are_stored(world: World) -> None:
    with world.connect() as connection:
        connection.execute(
            "alter table market_data.series_state add constraint no_ko check (symbol <> 'KO' or last_ts is null)"
        )
    outcomes = world.refresh(*STOCKS, history_days=8)
    failed = {key.partition("|")[0] for key, one in outcomes.items() if one.failed}
    assert failed == {"KO"}
    held = {row["symbol"] for row in world.query("select distinct symbol from market_data.bars")}
    assert held == {*STOCKS} - {"KO"}
    logged = world.query("select distinct symbol, status from market_data.ingest_log order by symbol")
    assert {(row["symbol"], row["status"]) for row in logged} == {
        *((stock, "ok") for stock in STOCKS if stock != "KO"),
        ("KO", "failed"),
    }


def test_a_stock_that_another_run_holds_waits_for_it_and_the_others_do_not(world: World) -> None:
    with psycopg.connect(world.database_url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s, hashtext('KO'))", (0x4D44,))
        with world.pipeline(8) as pipeline:
            world.track(*STOCKS)
            requests = [SymbolRequest(stock, Tier.CRITICAL) for stock in STOCKS]
            outcomes = refresh_shard(requests, pipeline=pipeline, run_id="held")
            first = [next(outcomes) for _ in range(5 * (len(STOCKS) - 1))]
            assert {one.series.symbol for one in first} == {*STOCKS} - {"KO"}
            other.execute("select pg_advisory_unlock_all()")
            assert {(one.series.symbol, one.status) for one in outcomes} == {("KO", "ok")}


def test_the_days_after_the_last_file_come_by_rest_and_each_series_has_one_outcome(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(TUESDAY)
    world.files_folder = tmp_path
    outcomes = world.refresh(*STOCKS, history_days=6)
    bars = world.query("select symbol, timeframe, count(*) as n from market_data.bars group by 1, 2")
    assert {f"{row['symbol']}|{row['timeframe']}": row["n"] for row in bars} == {
        key: one.counters.rows_inserted for key, one in outcomes.items()
    }
    last = world.query("select symbol, max(ts) as ts from market_data.bars where timeframe = '5m' group by 1")
    assert {row["ts"].astimezone(NEW_YORK).date() for row in last} == {TUESDAY.date()}  # type: ignore[attr-defined]
    by_file = world.query("select distinct symbol from market_data.coverage where file_id is not null")
    assert {row["symbol"] for row in by_file} == {*STOCKS}
