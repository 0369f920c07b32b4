"""Unusual tickers all the way: from Dagster's partition to the vendor's address and into the tables."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import psycopg
import pytest

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.partitions import bars_key, features_key, range_tags, sync_partitions
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.universe import sync_universe

NOW = datetime(2026, 11, 20, 17, 0, 30, tzinfo=UTC)
TICKERS = ("BRK.B", "KIMpL", "X:BTCUSD")  # in the order of the partitions


@pytest.fixture
def settings(database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("POLYGON_API_KEY", SANDBOX_KEY)
    monkeypatch.setenv("POLYGON_PLAN", "advanced")
    monkeypatch.setenv("MARKET_DATA_AS_OF", NOW.isoformat())
    monkeypatch.setenv("MARKET_DATA_HISTORY_DAYS", "4")
    made = engine(database_url, as_of=NOW)
    sync_universe(made, {Tier.CRITICAL: TICKERS}, NOW)
    sync_partitions(instance, made)
    made.dispose()


@pytest.mark.usefixtures("settings")
def test_dots_lower_case_and_a_prefix_survive_partition_address_and_row(
    instance: dg.DagsterInstance, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build_defs().resolve_job_def("critical_refresh")
    with running_server(open_source(None), lambda: NOW) as url:
        monkeypatch.setenv("POLYGON_BASE_URL", url)
        assert job.execute_in_process(instance=instance, tags={"dagster/partition": "X:BTCUSD|5m"}).success
        assert instance.get_materialized_partitions(bars_key(Tier.CRITICAL)) == {"X:BTCUSD|5m"}
        assert job.execute_in_process(instance=instance, tags=range_tags(TICKERS)).success
    every = {f"{ticker}|{timeframe}" for ticker in TICKERS for timeframe in ("5m", "15m", "1h", "4h", "1d")}
    for key in (bars_key(Tier.CRITICAL), features_key(Tier.CRITICAL)):
        assert instance.get_materialized_partitions(key) == every
    with psycopg.connect(database_url) as connection:
        held = connection.execute(
            "select symbol || '|' || timeframe, count(*), count(f.*) from market_data.bars"
            " left join market_data.features as f using (symbol, timeframe, ts) group by 1"
        ).fetchall()
    assert {key for key, _, _ in held} == every
    assert all(bars == features > 0 for _, bars, features in held)
