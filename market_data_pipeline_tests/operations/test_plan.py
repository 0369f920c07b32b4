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


def test_how_often_a_sandboxes_symbol_trades_is_known_before_anything_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 55 sessions are 52,800 minutes: two pages for AAPL, one for a name that trades in 7 of 8 minutes.
    planned = plan(world, monkeypatch, 80)
    happened = refreshed(world, 80)
    assert planned.total.calls == happened.calls
    assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)
    assert planned.least == planned.total
    calls = {(one.series.symbol, one.series.timeframe): one.estimate.calls for one in planned.series}
    assert (calls["AAPL", Timeframe.M5], calls["KIMpL", Timeframe.M5]) == (2, 1)


def test_what_nobody_knows_of_another_vendor_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_BASE_URL", "https://api.polygon.io")
    monkeypatch.setenv("POLYGON_API_KEY", "a-key-of-somebody")
    said = plan(world, monkeypatch, 80).document()
    assert said["unknown_symbols"] == sorted(UNIVERSE)
    assert said["calls"] == 5 + 4 * 2 + 3 + 1  # day bars, the stocks' minutes, Bitcoin's, and the splits
    assert said["at_least"]["calls"] == 5 + 5 + 1
    assert said["at_least"]["bytes"] < said["bytes"] / 50

    refreshed(world, 14)  # what is held tells, and a stranger is taken for one like those that are held
    world.track("MSFT.WS")
    said = plan(world, monkeypatch, 80).document()
    assert said["unknown_symbols"] == ["MSFT.WS"]
    assert said["at_least"]["calls"] <= said["calls"]


def test_answers_for_the_whole_market_are_planned_as_they_were_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed(world, 10)
    world.now = datetime(2026, 11, 20, 0, 15, 30, tzinfo=NEW_YORK)
    refreshed(world, 10)
    world.now = datetime(2026, 11, 21, 0, 15, 30, tzinfo=NEW_YORK)
    planned = plan(world, monkeypatch, 10)
    assert (len(planned.market_days), planned.reads_splits) == (2, True)
    assert planned.total.bytes == pytest.approx(refreshed(world, 10).bytes, rel=0.05)


def test_symbols_that_no_answer_for_the_market_lists_are_planned_for_themselves(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK))
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    symbols = ("AAPL", "MSFT", "SYN0001", "SYN0002")  # the sandbox's market lists only the first two
    asked = []
    for day in (19, 20, 21):
        world.now = datetime(2026, 11, day, 11, 0, 30, tzinfo=NEW_YORK)
        world.track(*symbols)
        planned = plan(world, monkeypatch, 5)
        before = counted(world)
        world.refresh(*symbols, history_days=5)
        asked.append((planned.total.calls, counted(world).calls - before.calls))
    assert asked[-1] == (1 + 1 + 4 + 2, 1 + 1 + 4 + 2)  # splits, the market's day, minutes, two day bars
