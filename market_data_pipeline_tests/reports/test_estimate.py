"""A plan is what then happens: calls, pages and bytes are compared with what the server counts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
import requests

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.estimate import BackfillPlan, plan_backfill
from market_data_pipeline.sandbox.bars import MINUTE_MS, Bars, to_step
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.ingest.conftest import REAL_SAMPLE, MakeWorld, World
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
    assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.02)
    thin = [one.estimate.bytes for one in planned.series if one.series == ("KIMpL", Timeframe.M5)]
    weighed = world.query("select bytes from market_data.ingest_log where symbol = 'KIMpL' and timeframe = '5m'")
    assert thin == [pytest.approx(weighed[0]["bytes"], rel=0.02)]
    assert planned.doubts == ()
    assert planned.cost.least == planned.cost.most == planned.total
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
    assert planned.doubts == ()
    calls = {(one.series.symbol, one.series.timeframe): one.estimate.calls for one in planned.series}
    assert (calls["AAPL", Timeframe.M5], calls["KIMpL", Timeframe.M5]) == (2, 1)


def another_vendor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the project ask the same server as one of which nothing is known."""
    monkeypatch.setenv("POLYGON_BASE_URL", world.base_url)
    monkeypatch.setenv("POLYGON_API_KEY", "a-key-of-somebody")
    monkeypatch.setenv("POLYGON_PLAN", "advanced")


def within(planned: BackfillPlan, happened: Counted) -> bool:
    """Say whether the plan's bounds hold what happened."""
    low, high = planned.cost.least, planned.cost.most
    return low.calls <= happened.calls <= high.calls and low.bytes <= happened.bytes <= high.bytes


def test_what_nobody_knows_of_another_vendor_is_said_within_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_vendor(world, monkeypatch)
    planned = plan(world, monkeypatch, 80)
    said = planned.document()
    assert said["unknown_symbols"] == sorted(UNIVERSE)
    assert said["doubts"] == [
        "nothing tells yet how often AAPL, BRK.B, KIMpL and 2 others trade, thin ones take less",
        "nothing tells yet how long the answers for the whole market are",
    ]
    assert said["calls"] == 5 + 4 * 2 + 3 + 1  # day bars, the stocks' minutes, Bitcoin's, and the splits
    assert said["at_least"]["calls"] == 5 + 5 + 1
    assert said["at_most"]["calls"] >= said["calls"]
    assert said["at_least"]["seconds"] <= said["seconds"] <= said["at_most"]["seconds"]
    assert within(planned, refreshed(world, 80))

    world.track("MSFT.WS")  # a stranger is taken for one like those that are held
    planned = plan(world, monkeypatch, 80)
    assert planned.document()["unknown_symbols"] == ["MSFT.WS"]
    assert planned.cost.least.bytes < planned.total.bytes < planned.cost.most.bytes


def test_a_vendor_that_compresses_is_planned_within_bounds_and_soon_closely(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer rows weigh more each, which only an answer of such a length tells."""
    with running_server(open_source(None), world.clock, gzip=True) as url:
        world.base_url = url
        another_vendor(world, monkeypatch)
        refreshed(world, 30)
        doubts = []
        for hour, minute in ((12, 15), (12, 30), (12, 45)):
            world.now = datetime(2026, 11, 19, hour, minute, 30, tzinfo=NEW_YORK)
            planned = plan(world, monkeypatch, 30)
            happened = refreshed(world, 30)
            assert within(planned, happened)
            doubts.append(planned.doubts)
        assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)
    assert doubts[0] == ("no compressed answer as short as some of these has been weighed yet",)
    assert doubts[-1] == ()


def test_another_vendor_is_planned_by_what_it_gave_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin names too: what is held of a day comes again, and each slot of the rest has a chance of its own."""
    another_vendor(world, monkeypatch)
    refreshed(world, 45)
    for hour, minute in ((12, 15), (12, 30), (15, 45), (20, 15)):
        world.now = datetime(2026, 11, 19, hour, minute, 30, tzinfo=NEW_YORK)
        planned = plan(world, monkeypatch, 45)
        (one,) = [each for each in planned.series if each.series == ("KIMpL", Timeframe.M5)]
        happened = refreshed(world, 45)
        assert planned.total.calls == happened.calls
        assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)
        assert within(planned, happened)
        got = world.query(
            "select bytes from market_data.ingest_log where symbol = 'KIMpL' and timeframe = '5m' order by id desc"
        )[0]["bytes"]
        assert one.cost.least.bytes <= got <= one.cost.most.bytes  # type: ignore[operator]
    planned = plan(world, monkeypatch, 90, full=True)
    happened = refreshed(world, 90, full=True)
    assert planned.total.calls == happened.calls
    assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)
    assert planned.doubts == ()


class HalfDense(SyntheticMarket):
    """Every other slot of five minutes holds a bar, of three minutes that have a trade."""

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        for minutes in super().intraday(ticker, MINUTE_MS, start_ms, end_ms, descending=descending):
            yield to_step(minutes.take(minutes.t // MINUTE_MS % 10 < 3), step_ms)


def test_pages_are_planned_by_what_earlier_answers_took(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar of five minutes does not tell in how many of them somebody traded; a page holds 50,000 of those."""
    world = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK), source=HalfDense())
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    another_vendor(world, monkeypatch)
    world.refresh("AAPL", history_days=365)
    logged = world.query("select requests, pages, rows_fetched from market_data.ingest_log where timeframe = '5m'")
    assert [(row["requests"], row["pages"]) for row in logged] == [(3, 2)]  # the first series counts the splits too
    planned = plan(world, monkeypatch, 365, full=True)
    before = counted(world)
    world.refresh("AAPL", history_days=365, full=True)
    assert planned.total.calls == planned.cost.least.calls == counted(world).calls - before.calls == 2 + 1


def test_a_recording_is_planned_by_what_was_recorded(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a year of AAPL it has three days' minutes, and of other symbols nothing."""
    world = make_world(datetime(2014, 6, 9, 15, 30, 30, tzinfo=UTC), replay=REAL_SAMPLE)
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    monkeypatch.setenv("MARKET_DATA_SANDBOX_REPLAY", str(REAL_SAMPLE))
    world.track("AAPL", "MSFT")
    for minutes in (0, 15, 24 * 60):
        world.now += timedelta(minutes=minutes)
        planned = plan(world, monkeypatch, 365)
        before = counted(world)
        world.refresh("AAPL", "MSFT", history_days=365)
        after = counted(world)
        assert planned.total.calls == after.calls - before.calls
        assert planned.total.bytes == pytest.approx(after.bytes - before.bytes, rel=0.05)


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


# The sandbox's market lists only the first two.
HALF_LISTED = ("AAPL", "MSFT", "SYN0001", "SYN0002", "SYN0003")


@pytest.mark.parametrize("known", [True, False], ids=["sandbox", "another vendor"])
def test_symbols_that_no_answer_for_the_market_lists_are_planned_for_themselves(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Of another vendor's first answer nobody can know whom it lists: the plan says so, and its bounds hold it."""
    world = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK))
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    if not known:
        another_vendor(world, monkeypatch)
    world.track(*HALF_LISTED)
    world.refresh(*HALF_LISTED, history_days=10)
    for day, first in ((20, True), (21, False)):
        world.now = datetime(2026, 11, day, 0, 15, 30, tzinfo=NEW_YORK)
        planned = plan(world, monkeypatch, 10)
        before = counted(world)
        world.refresh(*HALF_LISTED, history_days=10)
        happened = Counted(*(after - then for after, then in zip(counted(world), before, strict=True)))
        if first:
            assert happened.calls == 1 + 1 + 5 + 3  # splits, the market's day, minutes, three day bars
        if known or not first:
            assert planned.total.calls == happened.calls
            assert planned.total.bytes == pytest.approx(happened.bytes, rel=0.05)
            assert planned.doubts == ()
        else:
            assert planned.document()["perhaps_unlisted_symbols"] == sorted(HALF_LISTED)
            assert "whether the answer for the whole market lists AAPL, MSFT, SYN0001 and 2 others" in planned.doubts[0]
        assert known or within(planned, happened)
