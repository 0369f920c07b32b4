"""One request for the day bars of a whole universe, and never one that a series would not have made for itself."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
import requests

from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.ingest.fetch_plan import Timing
from market_data_pipeline.ingest.market import MOST_DAYS, MarketDay, cheapest_days
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

CALENDAR = calendar_for(AssetClass.US_EQUITY)
DAYS = (Timeframe.D1,)
UNIVERSE = ("AAPL", "MSFT", "BRK.B", "SPY")


def new_york(day: int, hour: int, minute: int = 0, second: int = 30) -> datetime:
    return datetime(2026, 11, day, hour, minute, second, tzinfo=NEW_YORK)


# Thursday 19 November: Wednesday's day bar is stored for all symbols and settled.
BEFORE = new_york(19, 12)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(BEFORE)


def sent(world: World) -> int:
    answer: int = requests.get(f"{world.base_url}/_sandbox/status", timeout=10).json()["requests"]
    return answer


def day_bars(world: World) -> list[dict[str, object]]:
    return world.query(
        "select symbol, ts, open, high, low, close, volume, vwap, trades from market_data.bars"
        " where timeframe = '1d' order by symbol, ts"
    )


def coverage(world: World, day: date) -> dict[str, tuple[str, datetime]]:
    rows = world.query(
        "select symbol, status, fetched_at from market_data.coverage where timeframe = '1d' and session_date = %s", day
    )
    return {str(row["symbol"]): (str(row["status"]), row["fetched_at"]) for row in rows}  # type: ignore[misc]


def test_after_the_close_one_request_brings_the_day_bars_of_all_symbols(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    before = sent(world)
    world.now = new_york(20, 0, 15)
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS)
    assert {outcome.counters.rows_inserted for outcome in outcomes.values()} == {1}
    assert (
        sum(outcome.counters.requests for outcome in outcomes.values()) == sent(world) - before == 3
    )  # and the new day's splits and dividends
    assert {status for status, _ in coverage(world, date(2026, 11, 19)).values()} == {"provisional"}
    world.now = new_york(20, 11)
    assert sum(outcome.counters.requests for outcome in world.refresh(*UNIVERSE, timeframes=DAYS).values()) == 1
    assert set(coverage(world, date(2026, 11, 19)).values()) == {("complete", world.now)}


def test_the_rows_are_those_that_each_symbol_would_have_been_given(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 11)
    world.refresh(*UNIVERSE, timeframes=DAYS)
    together = day_bars(world)
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS, full=True)
    assert sum(outcome.counters.rows_updated + outcome.counters.rows_inserted for outcome in outcomes.values()) == 0
    assert day_bars(world) == together
    assert {row["ts"].astimezone(NEW_YORK).hour for row in together} == {0}  # type: ignore[attr-defined]


def test_tiers_that_run_one_after_the_other_share_the_answer(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    for now in (new_york(20, 0, 15), new_york(20, 11)):
        world.now = now
        before = sent(world)
        world.refresh("AAPL", "MSFT", timeframes=DAYS)
        world.now += timedelta(minutes=10)
        late = world.refresh("BRK.B", timeframes=DAYS)
        world.refresh("SPY", timeframes=DAYS)
        assert sent(world) - before <= 3
        assert late["BRK.B|1d"].counters.requests == 0
        held = coverage(world, date(2026, 11, 19))
        assert held["BRK.B"] == held["SPY"] == held["AAPL"], "held as of the request, not as of the run"


def test_an_answer_from_before_the_day_settled_does_not_settle_it(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 0, 15)
    world.refresh("AAPL", "MSFT", timeframes=DAYS)
    world.now = new_york(20, 11, 30)
    outcomes = world.refresh("BRK.B", "SPY", timeframes=DAYS)
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 1
    assert set(coverage(world, date(2026, 11, 19)).values()) == {
        ("provisional", new_york(20, 0, 15)),
        ("complete", world.now),
    }


def test_a_first_backfill_requests_symbol_by_symbol(world: World) -> None:
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS, history_days=60)
    assert sorted(outcome.counters.requests for outcome in outcomes.values()) == [
        1,
        1,
        1,
        7,
    ]  # the first counts splits, dividends and what was asked about the four securities
    assert world.query("select * from market_data.market_days") == []


def test_a_symbol_that_the_answer_does_not_name_is_requested_on_its_own(world: World) -> None:
    """Absence proves nothing, and the others still cost one request. One that the vendor does not know waits a day."""
    world.refresh("AAPL", "MSFT", "ZZZZ", timeframes=DAYS)
    world.now = new_york(20, 12, 1)
    outcomes = world.refresh("AAPL", "MSFT", "ZZZZ", timeframes=DAYS)
    # Splits, dividends, the market, and of ZZZZ its bars and the lists of active and inactive tickers.
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 6
    assert outcomes["ZZZZ|1d"].counters.requests >= 3
    assert outcomes["ZZZZ|1d"].counters.rows_fetched == 0
    assert outcomes["MSFT|1d"].counters.rows_inserted == 1
    assert "ZZZZ" not in {row["symbol"] for row in day_bars(world)}


def test_crypto_is_requested_on_its_own(world: World) -> None:
    symbols = ("X:BTCUSD", "X:ETHUSD", "AAPL", "MSFT")
    world.refresh(*symbols, timeframes=DAYS)
    world.now = new_york(20, 11)
    outcomes = world.refresh(*symbols, timeframes=DAYS)
    assert outcomes["X:BTCUSD|1d"].counters.rows_fetched > 0
    assert outcomes["X:ETHUSD|1d"].counters.requests >= 1
    assert {row["symbol"] for row in world.query("select symbol from market_data.market_days")} == {"AAPL", "MSFT"}


def test_an_absence_of_several_days_costs_a_request_for_each_day_while_that_is_fewer(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(23, 12)  # Thursday's and Friday's bars are new
    before = sent(world)
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS)
    assert sent(world) - before == 4  # two days, splits and dividends
    assert {outcome.counters.rows_inserted for outcome in outcomes.values()} == {2}


def test_a_reopened_day_is_requested_again(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 11)
    world.refresh(*UNIVERSE, timeframes=DAYS)
    with world.connect() as connection:
        # What the vendor corrected since: the cached answer is as wrong as what is stored.
        connection.execute("update market_data.bars set close = close * 0.999 where ts = '2026-11-19 05:00Z'")
        connection.execute("update market_data.market_days set close = close * 0.999")
        connection.execute("update market_data.coverage set status = 'provisional' where session_date = '2026-11-19'")
    world.now = new_york(20, 12)
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS)
    assert {outcome.counters.rows_updated for outcome in outcomes.values()} == {1}
    assert sum(outcome.counters.requests for outcome in outcomes.values()) == 1


def test_two_runs_at_once_send_one_request(world: World) -> None:
    from threading import Thread

    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 11)
    world.refresh("KIMpL", timeframes=DAYS)  # the day's splits are read
    before = sent(world)
    tiers = (UNIVERSE[:2], UNIVERSE[2:])
    threads = [Thread(target=world.refresh, args=tier, kwargs={"timeframes": DAYS}) for tier in tiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent(world) - before == 2  # and the day's dividends, which none of them has read
    assert set(coverage(world, date(2026, 11, 19)).values()) == {("complete", world.now)}


def test_a_replay_of_an_earlier_instant_does_not_know_a_later_answer(world: World) -> None:
    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 11)
    world.refresh("AAPL", "MSFT", timeframes=DAYS)
    world.now = new_york(20, 0, 15)
    world.refresh("BRK.B", "SPY", timeframes=DAYS)
    assert coverage(world, date(2026, 11, 19))["SPY"] == ("provisional", world.now)


def test_without_market_days_each_symbol_is_requested_on_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from market_data_pipeline.domain.errors import DataError
    from market_data_pipeline.polygon.client import PolygonClient

    world.refresh(*UNIVERSE, timeframes=DAYS)
    world.now = new_york(20, 11)
    before = sent(world)

    def contradicts_itself(*_: object, **__: object) -> None:
        raise DataError("US stocks on 2026-11-19: ticker 'AAPL' occurs twice.")

    monkeypatch.setattr(PolygonClient, "grouped_daily", contradicts_itself)
    outcomes = world.refresh(*UNIVERSE, timeframes=DAYS)
    assert {outcome.counters.rows_inserted for outcome in outcomes.values()} == {1}
    assert sent(world) - before == 6  # four symbols, splits and dividends


@pytest.mark.parametrize(
    ("missing", "requested"),
    [
        ([{1}], set()),
        ([{1}, {1}], {1}),
        ([{1}, {2}], set()),
        ([{1, 2}, {1, 2}], set()),
        ([{1, 2}, {1, 2}, {1, 2}], {1, 2}),
        ([{2}, {2}, {1, 2}], {2}),
        ([{2, 9}, {2}, {2}, {8, 2}, {7}], {2}),
        ([set(range(30))] * 25, set()),
        ([set(range(MOST_DAYS))] * 25, set(range(MOST_DAYS))),
    ],
)
def test_the_fewest_requests_are_chosen(missing: list[set[int]], requested: set[int]) -> None:
    def day(number: int) -> date:
        return date(2026, 1, 1) + timedelta(days=number)

    chosen = cheapest_days([[day(number) for number in days] for days in missing])
    assert chosen == {day(number) for number in requested}


@pytest.mark.parametrize(
    ("fetched", "now", "known", "serves"),
    [
        ((20, 0, 0), (20, 0, 10), None, True),
        ((20, 0, 0), (20, 0, 15), None, False),  # late trades have come in since
        ((20, 0, 15), (20, 10, 59), None, True),
        ((20, 0, 15), (20, 11, 0), None, False),  # settled since
        ((20, 11, 0), (23, 11, 0), None, True),
        ((20, 11, 0), (20, 12, 0), (20, 0, 15), True),
        ((20, 11, 0), (20, 12, 0), (20, 11, 5), False),  # reopened after it had settled
        ((20, 11, 0), (20, 10, 0), None, False),  # from the future
    ],
)
def test_an_answer_serves_as_long_as_a_series_that_had_it_would_not_fetch_again(
    fetched: tuple[int, int, int], now: tuple[int, int, int], known: tuple[int, int, int] | None, serves: bool
) -> None:
    session = CALENDAR.session_on(date(2026, 11, 19))
    assert session is not None
    timing = Timing(CALENDAR, lambda end: end, new_york(*now, 0))
    held = Coverage(session.date, CoverageStatus.PROVISIONAL, 1, new_york(*known, 0)) if known else None
    assert MarketDay(session, new_york(*fetched, 0), {}).serves(held, timing) is serves
