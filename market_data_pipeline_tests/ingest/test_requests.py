"""Not one request too many, and every one of them counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
import requests

from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe
from market_data_pipeline.ingest.coverage import status_after
from market_data_pipeline.ingest.fetch_plan import Timing, plan_fetch, reach
from market_data_pipeline.orchestration.metadata import summary
from market_data_pipeline.polygon.plans import Plan, available_at, plan_named
from market_data_pipeline.reports.health import vendor_requests
from market_data_pipeline.store.connection import engine, snapshot
from market_data_pipeline.store.coverage import Coverage
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

TICK = timedelta(minutes=15)
US = calendar_for(AssetClass.US_EQUITY)


def new_york(day: int, hour: int, minute: int = 0) -> datetime:
    """Return an instant of November 2026, half a minute after a tick of the schedule; Thanksgiving is the 26th."""
    return datetime(2026, 11, day, hour, minute, 30, tzinfo=NEW_YORK)


def requests_by_tick(plan: Plan, base: Timeframe) -> dict[datetime, int]:
    """Return the requests of each tick of the week from Monday the 23rd to Monday the 30th, both 00:00 New York.

    Coverage is kept as a refresh keeps it; the vendor has bars for every session.
    """
    held: dict[date, Coverage] = {}
    sent = {}
    now = new_york(22, 23, 45)
    while now <= new_york(30, 0):
        timing = Timing(US, lambda end: available_at(plan, US, end), now)
        found = plan_fetch(Series("AAPL", base), reach(timing, 10, plan.history), held, timing, last_ts=None)
        sent[now] = len(found.windows)
        for session in found.days:
            held[session.date] = Coverage(
                session.date, status_after(session, 1, held.get(session.date), timing), 1, timing.now
            )
        now = (now.astimezone(UTC) + TICK).astimezone(NEW_YORK)
    assert sent.pop(new_york(22, 23, 45)) == 1  # the first backfill
    assert len(sent) == 7 * 96 + 1
    return sent


@pytest.mark.parametrize("delay", [0, 15])
def test_a_week_of_ticks_sends_requests_while_bars_come_and_twice_afterwards(delay: int) -> None:
    sent = requests_by_tick(replace(plan_named("advanced"), delay=timedelta(minutes=delay)), Timeframe.M5)
    late = timedelta(minutes=delay)
    expected = set()
    for day, close, settled in ((23, 20, 24), (24, 20, 25), (25, 20, 26), (27, 17, 28)):
        tick = new_york(day, 4, 15) + late  # the first three bars
        while tick <= new_york(day, close, 15) + late:  # late trades of the last bar
            expected.add(tick)
            tick += TICK
        expected.add(new_york(settled, 11))  # on Thanksgiving and on Saturday too
    assert {tick for tick, calls in sent.items() if calls} == expected
    assert set(sent.values()) == {0, 1}


def test_a_week_of_ticks_on_an_end_of_day_plan_sends_requests_at_night_and_when_a_day_has_settled() -> None:
    sent = requests_by_tick(plan_named("basic"), Timeframe.M5)
    days = {tick for tick, calls in sent.items() if calls}
    assert days == {
        new_york(day, hour, minute) for day in (24, 25, 26, 28) for hour, minute in ((0, 0), (0, 15), (11, 0))
    }


def test_day_bars_are_fetched_at_midnight_for_late_trades_and_when_they_have_settled() -> None:
    for plan in ("basic", "advanced"):
        sent = requests_by_tick(plan_named(plan), Timeframe.D1)
        assert {tick for tick, calls in sent.items() if calls} == {
            new_york(day, hour, minute) for day in (24, 25, 26, 28) for hour, minute in ((0, 0), (0, 15), (11, 0))
        }


def test_a_run_sends_as_many_requests_and_records_every_execution(make_world: MakeWorld) -> None:
    """The same week through vendor and database, at the ticks where something begins or ends."""
    world = make_world(new_york(25, 12))
    world.refresh("AAPL", history_days=8)
    five, day = (requests_by_tick(plan_named("advanced"), base) for base in (Timeframe.M5, Timeframe.D1))
    ticks = [
        *(new_york(25, 12, 15), new_york(25, 20), new_york(25, 20, 15), new_york(25, 20, 30)),
        *(new_york(26, 0), new_york(26, 0, 15), new_york(26, 4, 15), new_york(26, 11), new_york(26, 15)),
        *(new_york(27, 0), new_york(27, 4), new_york(27, 4, 15), new_york(27, 17), new_york(27, 17, 15)),
        *(new_york(27, 19), new_york(28, 0), new_york(28, 0, 15), new_york(28, 11), new_york(29, 12), new_york(30, 0)),
    ]
    dates = {world.now.astimezone(NEW_YORK).date()}
    for world.now in ticks:
        new_day = world.now.date() not in dates  # the first run of a day reads the market's splits and dividends
        dates.add(world.now.date())
        outcomes = world.refresh("AAPL", history_days=8)
        family = sum(
            outcome.counters.requests for outcome in outcomes.values() if outcome.series.timeframe is not Timeframe.D1
        )
        assert (world.now, family) == (world.now, five[world.now] + 2 * new_day)
        assert (world.now, outcomes["AAPL|1d"].counters.requests) == (world.now, day[world.now])
        assert {outcome.verified_at for outcome in outcomes.values()} == {world.now}
    state = world.query(
        "select distinct verified_at, next_due_at >= verified_at as fresh from market_data.series_state"
    )
    assert state == [{"verified_at": world.now, "fresh": True}]
    assert len(world.query("select * from market_data.ingest_log")) == 5 * (1 + len(ticks))


@pytest.mark.parametrize("when", ["night", "weekend", "holiday"])
def test_a_tick_when_nothing_can_be_new_costs_nothing_and_is_recorded(make_world: MakeWorld, when: str) -> None:
    world = make_world(
        {
            "night": datetime(2026, 11, 19, 1, 0, 30, tzinfo=NEW_YORK),
            "weekend": datetime(2026, 11, 22, 15, 0, 30, tzinfo=NEW_YORK),
            "holiday": datetime(2026, 11, 26, 15, 0, 30, tzinfo=NEW_YORK),
        }[when]
    )
    world.refresh("AAPL", "MSFT")
    world.now += TICK
    outcomes = world.refresh("AAPL", "MSFT")
    assert {(outcome.status, outcome.counters.requests) for outcome in outcomes.values()} == {("unchanged", 0)}
    verified = world.query(
        "select distinct verified_at, next_due_at > verified_at as ahead from market_data.series_state"
    )
    assert verified == [{"verified_at": world.now, "ahead": True}]
    assert len(world.query("select * from market_data.ingest_log where run_id = 'run-2' and requests = 0")) == 10


def answered(world: World) -> Counter[str]:
    return Counter(requests.get(f"{world.base_url}/_sandbox/status", timeout=10).json()["answered"])


def logged(world: World, after: int) -> tuple[int, int]:
    """Return the requests and the refusals among them in the audit log rows after an id."""
    (row,) = world.query(
        "select coalesce(sum(requests), 0)::int as requests, coalesce(sum(rate_limited), 0)::int as rate_limited"
        " from market_data.ingest_log where id > %s",
        after,
    )
    return row["requests"], row["rate_limited"]  # type: ignore[return-value]


@pytest.mark.parametrize("taken", [0, 2, 4, 5])
def test_every_answer_of_a_storm_of_429_is_counted_once(make_world: MakeWorld, taken: int) -> None:
    """Five calls a minute, some taken by others: it begins in the splits, in the market's day or among the symbols."""
    calm = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK))
    symbols = ("AAPL", "MSFT", "BRK.B", "X:BTCUSD")
    calm.refresh(*symbols)
    (row,) = calm.query("select max(id) as id from market_data.ingest_log")
    stormy = make_world(datetime(2026, 11, 20, 11, 0, 30, tzinfo=NEW_YORK), plan="basic")
    for _ in range(taken):
        requests.get(f"{stormy.base_url}/v3/reference/splits?apiKey={stormy.key}", timeout=10).raise_for_status()
    before = answered(stormy)
    outcomes = stormy.refresh(*symbols).values()
    answers = answered(stormy) - before
    assert answers["429"] >= 5
    assert logged(stormy, row["id"]) == (answers.total(), answers["429"])  # type: ignore[arg-type]
    assert sum(outcome.counters.requests for outcome in outcomes) == answers.total()
    assert sum(outcome.counters.rate_limited for outcome in outcomes) == answers["429"]
    shown = summary(Tier.CRITICAL, list(outcomes)).metadata
    assert (shown["requests"].value, shown["rate_limited"].value) == (answers.total(), answers["429"])
    with snapshot(engine(stormy.database_url, as_of=stormy.now)) as connection:  # as the health report and /metrics
        sent = vendor_requests(connection)
    assert (sent.total_requests, sent.rate_limited) == (answered(calm).total() + answers.total(), answers["429"])


def test_requests_for_the_market_are_counted_once_however_many_threads_start_together(make_world: MakeWorld) -> None:
    world = make_world(datetime(2026, 11, 20, 11, 0, 30, tzinfo=NEW_YORK))
    world.threads = 8
    outcomes = world.refresh(*(f"SYN{number:04}" for number in range(8)), timeframes=(Timeframe.D1,), history_days=1)
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == answered(world).total()
    assert logged(world, 0) == (answered(world).total(), 0)
