"""One symbol failing never stops the others, and is never silent."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.features import compute as features
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.polygon.retry import CUT_OFF_AFTER
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

if TYPE_CHECKING:
    import pandas as pd

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(NOON)


def break_features_of(world: World, symbol: str) -> None:
    """Make the database refuse the symbol's 1h features, as a full disk or a broken index would."""
    with world.connect() as connection:
        number = connection.execute("select market_data.series_id(%s, '1h') as id", (symbol,)).fetchone()["id"]
        connection.execute(f"alter table market_data.records_1h add constraint broken check (series <> {number})")


def test_a_failing_symbol_leaves_the_others_committed(world: World) -> None:
    break_features_of(world, "MSFT")
    outcomes = world.refresh("AAPL", "MSFT", "NVDA")
    failed = {key for key, outcome in outcomes.items() if outcome.failed}
    assert failed == {"MSFT|1h"}
    assert len(outcomes) == 15
    assert outcomes["MSFT|1h"].error is not None
    assert "broken" in outcomes["MSFT|1h"].error
    held = world.query("select symbol, count(*) as bars from market_data.bars where timeframe = '1h' group by 1")
    assert {row["symbol"] for row in held} == {"AAPL", "NVDA"}


def test_a_failed_series_has_its_audit_log_row_and_its_reason_and_no_data(world: World) -> None:
    break_features_of(world, "MSFT")
    world.refresh("MSFT")
    rows = world.query("select status, error_class, error from market_data.ingest_log where timeframe = '1h'")
    assert [row["status"] for row in rows] == ["failed"]
    state = world.query(
        "select bar_count, consecutive_failures, last_error from market_data.series_state where timeframe = '1h'"
    )
    assert state == [{"bar_count": 0, "consecutive_failures": 1, "last_error": rows[0]["error"]}]


def test_the_next_run_completes_what_failed_without_a_request(world: World) -> None:
    break_features_of(world, "MSFT")
    world.refresh("MSFT")
    with world.connect() as connection:
        connection.execute("alter table market_data.records_1h drop constraint broken")
    outcomes = world.refresh("MSFT")
    assert outcomes["MSFT|1h"].status == "ok"
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 0
    state = world.query(
        "select consecutive_failures, last_error, bar_count > 0 as held from market_data.series_state"
        " where timeframe = '1h'"
    )
    assert state == [{"consecutive_failures": 0, "last_error": None, "held": True}]


def test_a_refused_key_stops_the_run_at_once_and_says_what_to_do(world: World) -> None:
    world.key = "wrong-secret-key"
    outcomes = world.refresh("AAPL", "MSFT", "NVDA", "AMZN", "META", "TSLA")
    assert len(outcomes) == 30
    assert all(outcome.failed for outcome in outcomes.values())
    assert sum(outcome.counters.requests for outcome in outcomes.values()) <= 3
    sentence = outcomes["AAPL|5m"].error or ""
    assert "POLYGON_API_KEY" in sentence
    everything = str(world.query("select * from market_data.ingest_log")) + str(
        world.query("select * from market_data.series_state")
    )
    assert "wrong-secret-key" not in everything + str(outcomes)
    assert len(world.query("select * from market_data.ingest_log")) == 30


def test_an_unreachable_vendor_soon_gets_no_more_calls(world: World) -> None:
    world.refresh("AAPL")  # the splits are known after this
    world.base_url = "http://127.0.0.1:9"
    symbols = ("MSFT", "NVDA", "AMZN", "META", "TSLA", "KO", "SPY", "XOM", "PG", "PEP")
    outcomes = world.refresh(*symbols)
    assert len(outcomes) == 50
    assert all(outcome.failed for outcome in outcomes.values())
    assert {outcome.error_class for outcome in outcomes.values()} == {"VendorUnreachableError"}
    assert all("http://127.0.0.1:9 cannot be reached" in (outcome.error or "") for outcome in outcomes.values())
    sentences = {outcome.error for outcome in outcomes.values()}  # each names its request; the last one's is shared
    assert len(sentences) <= CUT_OFF_AFTER + world.threads


def test_a_system_exit_in_a_library_fails_its_symbol_and_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread Python ignores a SystemExit silently."""
    compute = features.features_from

    def leave(bars: pd.DataFrame, first: int, timeframe: Timeframe, asset_class: AssetClass) -> pd.DataFrame:
        if timeframe is Timeframe.H1:
            sys.exit("leaving")
        return compute(bars, first, timeframe, asset_class)

    monkeypatch.setattr(features, "features_from", leave)
    outcomes = world.refresh("AAPL", "MSFT")
    assert {key for key, outcome in outcomes.items() if outcome.failed} >= {"AAPL|1h", "MSFT|1h"}
    assert outcomes["AAPL|5m"].status == "ok"
    assert "SystemExit: leaving" in (outcomes["MSFT|1h"].error or "")
    assert len(world.query("select * from market_data.ingest_log")) == len(outcomes) == 10


def test_an_unknown_ticker_is_missing_not_failed(world: World) -> None:
    """An empty answer proves nothing, so nothing is stored and the series is still missing the bars that were due."""
    outcomes = world.refresh("ZZZZ", "AAPL")
    assert outcomes["ZZZZ|5m"].status == "unchanged"
    assert outcomes["ZZZZ|5m"].bar_count == 0
    assert outcomes["AAPL|5m"].status == "ok"
    state = world.query("select next_due_at from market_data.series_state where symbol = 'ZZZZ' and timeframe = '5m'")
    assert state[0]["next_due_at"] < world.now  # type: ignore[operator]


def test_two_runs_at_once_do_the_work_once(world: World) -> None:
    from threading import Thread

    import requests

    world.track("AAPL")
    results: list[dict[str, object]] = []
    threads = [Thread(target=lambda: results.append(dict(world.refresh("AAPL")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = requests.get(f"{world.base_url}/_sandbox/status", timeout=10).json()["requests"]
    world.refresh("AAPL")
    assert len(results) == 2
    assert sent == 5  # the security, splits, dividends, 5m, 1d
    written = world.query("select sum(rows_inserted)::int as n from market_data.ingest_log")
    held = world.query("select count(*)::int as n from market_data.bars")
    assert written == held


def test_every_requested_series_has_one_outcome_and_one_audit_log_row(world: World) -> None:
    outcomes = world.refresh("AAPL", "MSFT", timeframes=(Timeframe.M5, Timeframe.D1))
    assert set(outcomes) == {"AAPL|5m", "AAPL|1d", "MSFT|5m", "MSFT|1d"}
    assert len(world.query("select * from market_data.ingest_log")) == 4
