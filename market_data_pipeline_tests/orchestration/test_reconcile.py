"""A day bar that the vendor corrected after it settled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.orchestration.reconcile import reconcile
from market_data_pipeline.store.database import engine
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock

NOW = datetime(2026, 3, 11, 20, 0, tzinfo=UTC)


def found(world: World) -> list[tuple[str, str]]:
    with world.pipeline(15) as pipeline, engine(world.database_url, as_of=world.now).connect() as connection:
        return [(difference.symbol, difference.column) for difference in reconcile(pipeline, connection, 3)]


def test_a_settled_day_that_differs_is_opened_again_and_mended_by_the_next_refresh(make_world: MakeWorld) -> None:
    world = make_world(NOW)
    world.refresh("AAPL", "MSFT", timeframes=(Timeframe.D1,), history_days=15)
    assert found(world) == []

    (bar,) = world.query(
        "select ts, close from market_data.bars where symbol = 'AAPL' order by ts desc offset 1 limit 1"
    )
    world.query("update market_data.bars set close = 1 where symbol = 'AAPL' and ts = %s returning 1", bar["ts"])
    assert found(world) == [("AAPL", "close")]
    opened = world.query("select symbol, session_date from market_data.coverage where status = 'provisional'")
    assert ("AAPL", bar["ts"].date()) in {(row["symbol"], row["session_date"]) for row in opened}  # type: ignore[attr-defined]

    world.now += timedelta(hours=1)
    world.refresh("AAPL", timeframes=(Timeframe.D1,), history_days=15)
    (mended,) = world.query("select close from market_data.bars where symbol = 'AAPL' and ts = %s", bar["ts"])
    assert mended["close"] == bar["close"]
    assert [row["close"] for row in world.query("select close from market_data.bar_revisions")] == [1]
    assert found(world) == []
