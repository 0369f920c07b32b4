"""A plan is what then happens: calls, pages and bytes are compared with what the server counts."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import pytest
import requests

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.domain.sessions import NEW_YORK
from market_data_pipeline.operations.plan import BackfillPlan, plan_backfill
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.conftest import make_world as make_world

# All tickers trade in nearly every minute but KIMpL, a preferred share that trades in every seventh.
UNIVERSE = ("AAPL", "MSFT", "BRK.B", "KIMpL", "X:BTCUSD")


class Counted(NamedTuple):
    """What the server has seen."""

    calls: int
    bytes: int


@pytest.fixture
def world(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK))
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    world.track(*UNIVERSE)
    return world


def counted(world: World) -> Counted:
    """Return what the server counted; its status page weighs itself too, which is less than 600 bytes."""
    status = requests.get(f"{world.base_url}/_sandbox/status", timeout=10).json()
    return Counted(status["requests"], status["sent_bytes"])


def plan(world: World, monkeypatch: pytest.MonkeyPatch, days: int, **arguments: bool) -> BackfillPlan:
    monkeypatch.setenv("MARKET_DATA_AS_OF", world.now.isoformat())
    return plan_backfill(load_settings(), days=days, **arguments)


def refreshed(world: World, days: int, **arguments: bool) -> Counted:
    before = counted(world)
    world.refresh(*UNIVERSE, history_days=days, **arguments)
    after = counted(world)
    return Counted(after.calls - before.calls, after.bytes - before.bytes)


def test_a_first_backfill_costs_what_was_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(world, monkeypatch, 45)
    assert planned.market_days == ()
    assert planned.reads_splits
    assert counted(world).calls == 0, "a plan sends nothing"
    happened = refreshed(world, 45)
    assert planned.total.calls == planned.total.pages == happened.calls
    assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.15)  # nobody could know how thin KIMpL is
    assert plan(world, monkeypatch, 45).is_empty


def test_another_server_on_this_machine_is_planned_as_the_sandbox_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for address in ("", world.base_url, "https://api.polygon.io"):
        monkeypatch.setenv("POLYGON_BASE_URL", address)
        monkeypatch.setenv("POLYGON_PLAN", "advanced")
        weights.append(plan(world, monkeypatch, 45).total.bytes)
    assert weights[0] == weights[1] > 2 * weights[2]


def test_what_is_held_tells_how_full_the_answers_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshed(world, 45)
    planned = plan(world, monkeypatch, 120, full=True)
    happened = refreshed(world, 120, full=True)
    assert planned.total.calls == pytest.approx(happened.calls, rel=0.05)
    assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)


def test_a_tick_a_night_and_a_quiet_hour_cost_what_was_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshed(world, 10)
    for now, calls, market_days in (
        ((19, 12, 15), 5, 0),  # one for each symbol
        ((19, 20, 15), 6, 0),  # and Bitcoin's day bar: UTC's day is over
        ((20, 0, 15), 3, 1),  # Bitcoin's minutes, the new day's splits, and Thursday's day bars at once
        ((20, 0, 16), 0, 0),
        ((20, 11, 0), 7, 1),  # the days settle, Bitcoin's for itself
        ((21, 11, 0), 8, 1),  # the splits, Bitcoin's other day bar, and Friday settled on a Saturday
    ):
        world.now = datetime(2026, 11, *now, 30, tzinfo=NEW_YORK)
        planned = plan(world, monkeypatch, 10)
        happened = refreshed(world, 10)
        assert (now, planned.total.calls, len(planned.market_days)) == (now, calls, market_days)
        assert (now, happened.calls) == (now, planned.total.calls)
        assert (now, planned.is_empty) == (now, calls == 0)


def test_time_is_what_the_limit_makes_of_the_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_CALLS_PER_MINUTE", "5")
    planned = plan(world, monkeypatch, 10)
    assert planned.total.calls == 11
    assert planned.seconds == pytest.approx(10 * 12.2)
    assert planned.document()["seconds"] == planned.seconds


def test_timeframes_need_their_base_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_AS_OF", world.now.isoformat())
    planned = plan_backfill(load_settings(), ["AAPL"], [Timeframe.H4], 10)
    assert [one.series for one in planned.series] == [("AAPL", Timeframe.M5)]
