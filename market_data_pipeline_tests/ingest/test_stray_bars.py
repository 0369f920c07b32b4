"""What lies in no session is not part of a series, however it was fetched; it is kept apart and told."""

from __future__ import annotations

from datetime import datetime, timedelta

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Scenario, Stray
from market_data_pipeline.sandbox.staged import StagedMarket
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.stray_bars import KEPT, write_stray_bars
from market_data_pipeline_tests.domain.feature_series import flat_frame
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.test_refresh import stored
from market_data_pipeline_tests.reports.test_gaps import gaps

MONDAY_EVENING = datetime(2026, 11, 9, 20, 20, tzinfo=NEW_YORK)
SATURDAY_NOON = datetime(2026, 11, 14, 12, 0, 30, tzinfo=NEW_YORK)


def stray(local: datetime, price: float, timespan: str = "minute") -> Stray:
    return Stray.model_validate(
        {"ticker": "AAPL", "bar": local, "timespan": timespan, **dict.fromkeys(("open", "high", "low", "close"), price)}
    )


NIGHTS = tuple(
    stray(datetime(2026, 11, day, hour, minute, tzinfo=NEW_YORK), 5.0)
    for day in (10, 11, 12, 13)
    for hour, minute in ((0, 5), (3, 55), (20, 0), (21, 30))
)
SATURDAY = stray(datetime(2026, 11, 14, tzinfo=NEW_YORK), 499.0, "day")


def staged(make_world: MakeWorld, now: datetime, *strays: Stray) -> World:
    clock: list[World] = []
    source = StagedMarket(SyntheticMarket(), Scenario(strays=strays), lambda: clock[0].now)
    world = make_world(now, source=source)
    clock.append(world)
    return world


def refresh(world: World, **more: bool) -> dict[str, str]:
    days = (world.now.astimezone(NEW_YORK).date() - datetime(2026, 11, 9, tzinfo=NEW_YORK).date()).days
    outcomes = world.refresh("AAPL", history_days=days, **more)
    assert not [key for key, outcome in outcomes.items() if outcome.failed]
    return {key: outcome.warning or "" for key, outcome in outcomes.items()}


def outside(world: World, timeframe: str) -> int:
    rows = world.query("select ts from market_data.stray_bars where timeframe = %s", timeframe)
    return len(rows)


def test_history_loaded_at_once_followed_live_and_reloaded_are_equal(make_world: MakeWorld) -> None:
    world = staged(make_world, SATURDAY_NOON, *NIGHTS, SATURDAY)
    world.now = MONDAY_EVENING
    while world.now < SATURDAY_NOON:
        refresh(world)
        world.now += timedelta(hours=9)
    world.now = SATURDAY_NOON + timedelta(days=3)
    refresh(world)
    live = stored(world)

    def emptied() -> None:
        with world.connect() as connection:
            connection.execute("truncate market_data.records, market_data.coverage")
            connection.execute("truncate market_data.stray_bars")
            connection.execute("delete from market_data.series_state")

    emptied()
    warnings = refresh(world)
    assert "bars lie in no session, first 2026-11-10T05:05:00+00:00; left out." in warnings["AAPL|5m"]
    assert "A bar lies in no session, first 2026-11-14T05:00:00+00:00; left out." in warnings["AAPL|1d"]
    assert (outside(world, "5m"), outside(world, "1d")) == (len(NIGHTS), 1)
    assert gaps(world, Timeframe.M5, days=8)["stray_bars"] == len(NIGHTS)
    at_once = stored(world)
    assert at_once[0] == live[0]
    refresh(world, full=True)
    assert stored(world)[0] == at_once[0]

    undisturbed = staged(make_world, world.now)
    emptied()
    undisturbed.refresh("AAPL", history_days=8)
    assert stored(undisturbed)[:2] == at_once[:2]


def test_no_more_than_the_newest_thousand_are_kept(make_world: MakeWorld) -> None:
    world, series = make_world(SATURDAY_NOON), Series("AAPL", Timeframe.M5)
    starts = [SATURDAY_NOON.replace(second=0) + at * timedelta(minutes=5) for at in range(KEPT + 7)]
    with StoreConnection(world.database_url, world.now) as connection:
        write_stray_bars(connection, series, flat_frame(starts[:20], [1.0] * 20), world.now)
        write_stray_bars(connection, series, flat_frame(starts[10:], [2.0] * (KEPT - 3)), world.now)
        connection.commit()
    rows = world.query("select ts, close, vwap from market_data.stray_bars order by ts")
    assert [row["ts"] for row in rows] == starts[7:]
    assert {(row["close"], row["vwap"] is None) for row in rows[:3]} <= {(1.0, True), (1.0, False)}
    assert {row["close"] for row in rows[3:]} == {2.0}
