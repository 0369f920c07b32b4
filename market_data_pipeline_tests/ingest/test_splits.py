"""The market's splits: which rows of the vendor's list count, and what happens while the list cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from math import prod

import numpy as np
import pytest

from market_data_pipeline.domain.adjustments import Split, adjust
from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.sandbox.bars import Bars, SplitRow
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.view import to_ms
from market_data_pipeline.store.bars import read_bars
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.reference import listed_splits, read_splits, write_splits
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
TUESDAY, WEDNESDAY, FRIDAY = date(2026, 11, 17), date(2026, 11, 18), date(2026, 11, 20)
NEW, OLD = "/stocks/v1/splits", "/v3/reference/splits"
US = calendar_for(AssetClass.US_EQUITY)
DAYS = (Timeframe.D1,)


class TradedSource(ChangingSource):
    """A source whose prices show `moves`: by (ticker, day), what raw prices are multiplied by from that day on."""

    moves: dict[tuple[str, date], float]

    def _changed(self, ticker: str, bars: Bars) -> Bars:
        bars, factor = super()._changed(ticker, bars), np.ones(len(bars))
        for (name, day), move in self.moves.items():
            if name == ticker:
                factor[bars.t >= to_ms(US.midnight(day))] *= move
        prices = {name: getattr(bars, name) * factor for name in ("o", "h", "low", "c", "vw")}
        return replace(bars, v=bars.v / factor, **prices)


@pytest.fixture
def vendor() -> TradedSource:
    source = TradedSource(open_source(None))
    source.moves = {}
    return source


@pytest.fixture
def world(make_world: MakeWorld, vendor: TradedSource) -> World:
    return make_world(NOON, source=vendor)


def factors(world: World, symbol: str = "AAPL") -> dict[date, float]:
    """Return by which factor each day bar is adjusted, by session date."""
    rows = world.query(
        "select (b.ts at time zone 'America/New_York')::date as day, a.close / b.close as factor"
        " from market_data.bars_adjusted as a inner join market_data.bars as b using (symbol, timeframe, ts)"
        " where b.symbol = %s and b.timeframe = '1d' order by b.ts",
        symbol,
    )
    return {row["day"]: round(float(row["factor"]), 9) for row in rows}  # type: ignore[arg-type, misc]


def list_split(vendor: TradedSource, day: date, *terms: tuple[float, float], happens: bool = True) -> None:
    """List splits of AAPL on a day; with `happens`, prices show them."""
    for old, new in terms:
        vendor.more_splits.append(SplitRow("AAPL", day, old, new))
        if happens:
            vendor.moves["AAPL", day] = vendor.moves.get(("AAPL", day), 1.0) * old / new


def test_two_splits_of_one_day_multiply_everywhere(world: World, vendor: TradedSource) -> None:
    """A cash-out of small holders: 500 shares become 1, and each of these 100."""
    list_split(vendor, WEDNESDAY, (500, 1), (1, 100))
    outcomes = world.refresh("AAPL", timeframes=DAYS)
    assert {outcome.warning for outcome in outcomes.values()} == {None}
    assert factors(world) == {day: 5.0 if day < WEDNESDAY else 1.0 for day in factors(world)}
    with StoreConnection(world.database_url) as connection:
        splits = read_splits(connection, "AAPL")
        raw = read_bars(connection, Series("AAPL", Timeframe.D1), NOON - timedelta(days=30), NOON)
    read = adjust(raw, splits, FRIDAY)
    assert (read["close"] / raw["close"]).round(9).tolist() == list(factors(world).values())
    stored = world.query("select split_from, split_to, vendor_id is not null as named from market_data.splits"
                         " where symbol = 'AAPL' and execution_date = %s order by 1", WEDNESDAY)  # fmt: skip
    assert [tuple(row.values()) for row in stored] == [(1.0, 100.0, True), (500.0, 1.0, True)]


def test_two_splits_within_days_of_each_other_both_count(world: World, vendor: TradedSource) -> None:
    list_split(vendor, TUESDAY, (1, 2))
    list_split(vendor, FRIDAY, (1, 2))
    world.refresh("AAPL", timeframes=(Timeframe.M5, Timeframe.D1))
    found = factors(world)
    assert {day: found[day] for day in (date(2026, 11, 16), TUESDAY, date(2026, 11, 19))} == {
        date(2026, 11, 16): 0.25, TUESDAY: 0.5, date(2026, 11, 19): 0.5,
    }  # fmt: skip


def test_a_split_listed_under_two_dates_counts_on_the_one_that_prices_show(world: World, vendor: TradedSource) -> None:
    list_split(vendor, TUESDAY, (1, 4))
    list_split(vendor, WEDNESDAY, (1, 4), happens=False)
    world.refresh("AAPL", timeframes=DAYS)
    assert factors(world) == {day: 0.25 if day < TUESDAY else 1.0 for day in factors(world)}


@pytest.mark.parametrize("right", [(15.0, 1.0), (1.0, 15.0)])
def test_prices_decide_between_rows_that_contradict_each_other(
    world: World, vendor: TradedSource, right: tuple[float, float]
) -> None:
    list_split(vendor, WEDNESDAY, right)
    list_split(vendor, WEDNESDAY, right[::-1], happens=False)
    outcomes = world.refresh("AAPL", timeframes=DAYS)
    assert outcomes["AAPL|1d"].warning is None
    factor = round(right[0] / right[1], 9)
    assert factors(world) == {day: factor if day < WEDNESDAY else 1.0 for day in factors(world)}


def test_rows_that_contradict_each_other_and_prices_that_decide_nothing_are_reported(
    world: World, vendor: TradedSource
) -> None:
    list_split(vendor, WEDNESDAY, (15, 1), (1, 15), happens=False)
    vendor.moves["AAPL", WEDNESDAY] = 3.0
    outcomes = world.refresh("AAPL", timeframes=(Timeframe.M5, Timeframe.D1))
    for outcome in outcomes.values():
        assert "AAPL: The vendor lists splits that may contradict each other" in str(outcome.warning)
    assert set(factors(world).values()) == {1.0}
    vendor.moves["AAPL", WEDNESDAY] = 15.0  # the vendor corrects its bars
    for _ in range(2):  # which is believed when it is said twice
        world.now += timedelta(minutes=16)
        outcome = world.refresh("AAPL", timeframes=DAYS, full=True)["AAPL|1d"]
    assert outcome.warning is None
    assert factors(world)[TUESDAY] == 15.0


def test_what_prices_were_adjusted_by_can_be_read_after_prices_have_decided(world: World, vendor: TradedSource) -> None:
    """Until there are prices, rows that contradict each other change nothing; what was read then can be read again."""
    thursday = date(2026, 11, 19)
    world.now = datetime(2026, 11, 19, 3, 0, tzinfo=NEW_YORK)
    list_split(vendor, thursday, (1, 15))
    list_split(vendor, thursday, (15, 1), happens=False)
    before = world.refresh("AAPL")["AAPL|1d"]
    assert "there are no prices around them yet" in str(before.warning)
    then, world.now = world.now, NOON.astimezone(NEW_YORK)
    assert world.refresh("AAPL")["AAPL|1d"].warning is None
    with StoreConnection(world.database_url) as connection:
        assert [split.factor for split in read_splits(connection, "AAPL")] == [1 / 15]
        assert prod(split.factor for split in read_splits(connection, "AAPL", then)) == 1.0


def test_a_list_read_again_changes_nothing_and_another_id_is_not_another_split(world: World) -> None:
    rows = [("AAPL", WEDNESDAY, 500.0, 1.0, "a"), ("AAPL", WEDNESDAY, 1.0, 100.0, "b"), ("KO", FRIDAY, 1.0, 2.0, None)]
    again = [(*row[:2], 2 * row[2], 2 * row[3], "other") for row in rows]
    with StoreConnection(world.database_url) as connection:
        for listed in (rows, again):
            write_splits(connection, listed, since=date(2026, 1, 1), now=world.now)
            world.now += timedelta(days=1)
        connection.commit()
        assert [row.split for row in listed_splits(connection, "AAPL")] == [
            Split(WEDNESDAY, 1.0, 100.0), Split(WEDNESDAY, 500.0, 1.0),
        ]  # fmt: skip
    assert world.query("select * from market_data.split_revisions") == []
    assert {row["vendor_id"] for row in world.query("select vendor_id from market_data.splits")} == {"other"}


@contextmanager
def retiring(world: World, vendor: TradedSource, *paths: str) -> Iterator[set[str]]:
    """Serve the world from a vendor without these endpoints; yield them, to change them."""
    gone = set(paths)
    with running_server(vendor, world.clock, gone=gone) as world.base_url:
        yield gone


@pytest.mark.parametrize("missing", [OLD, NEW])
def test_splits_are_read_from_whichever_list_the_vendor_still_has(
    world: World, vendor: TradedSource, missing: str
) -> None:
    list_split(vendor, WEDNESDAY, (1, 4))
    with retiring(world, vendor, missing):
        outcomes = world.refresh("AAPL", timeframes=DAYS)
    assert (outcomes["AAPL|1d"].status, outcomes["AAPL|1d"].warning) == ("ok", None)
    assert factors(world)[TUESDAY] == 0.25


def test_bars_are_stored_while_no_list_of_splits_can_be_had_and_the_doubt_is_reported(
    world: World, vendor: TradedSource
) -> None:
    vendor.moves["AAPL", WEDNESDAY] = 0.25
    with retiring(world, vendor, NEW, OLD) as gone:
        first = world.refresh("AAPL", timeframes=DAYS)["AAPL|1d"]
        assert (first.status, first.bar_count) == ("ok", 8)
        assert "The market's splits could not be read, so prices are adjusted by none" in str(first.warning)
        assert "HTTP 404" in str(first.warning)

        gone.clear()
        list_split(vendor, WEDNESDAY, (1, 4), happens=False)
        world.now += timedelta(minutes=15)
        assert world.refresh("AAPL", timeframes=DAYS)["AAPL|1d"].warning is None
        assert factors(world)[TUESDAY] == 0.25
        assert world.query("select * from market_data.reference_failures") == []

        gone |= {NEW, OLD}
        for _ in range(9):  # more than a week
            world.now += timedelta(days=1)
            late = world.refresh("AAPL", timeframes=DAYS)["AAPL|1d"]
            assert late.status in {"ok", "unchanged"}
            assert "prices are adjusted by the list of 2026-11-20" in str(late.warning)
        (failure,) = world.query("select since, error from market_data.reference_failures")
        assert failure["since"] == world.now - timedelta(days=8)
        assert factors(world)[TUESDAY] == 0.25


def listings_read(world: World) -> int:
    """Return how often the list of splits was read: the only request of a run that finds no new bar."""
    (row,) = world.query("select coalesce(sum(requests), 0)::int as sent from market_data.ingest_log")
    assert isinstance(row["sent"], int)
    return row["sent"]


def at(hour: int, minute: int = 0, day: date = FRIDAY) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, 30, tzinfo=NEW_YORK)


def day_return(world: World) -> float:
    (row,) = world.query(
        "select return_1d from market_data.features where symbol = 'AAPL' and timeframe = '5m' order by ts desc limit 1"
    )
    return float(row["return_1d"])  # type: ignore[arg-type]


def test_a_split_listed_during_its_day_adjusts_within_the_cadence(world: World, vendor: TradedSource) -> None:
    vendor.moves["AAPL", FRIDAY] = 0.1
    for world.now in (at(0), at(6)):  # the day's list, and then prices that a list of midnight does not explain
        world.refresh("AAPL")
    assert day_return(world) == pytest.approx(-0.9, abs=0.02)
    world.now = at(7, 45)
    warning = str(world.refresh("AAPL")["AAPL|5m"].warning)
    assert "AAPL trades at 0.09" in warning
    assert "which resembles a 10:1 split, and the vendor's list does not explain it" in warning

    list_split(vendor, FRIDAY, (1, 10), happens=False)
    world.now = at(8)
    assert world.refresh("AAPL")["AAPL|5m"].warning is None
    assert abs(day_return(world)) < 0.05
    assert factors(world)[date(2026, 11, 19)] == 0.1


def test_a_split_cancelled_on_its_morning_is_not_applied_any_more(world: World, vendor: TradedSource) -> None:
    list_split(vendor, FRIDAY, (1, 4), happens=False)
    world.now = at(0, 15)
    world.refresh("AAPL")
    assert factors(world)[date(2026, 11, 19)] == 0.25
    for world.now in (at(4, 30), at(9)):
        world.refresh("AAPL")
    assert day_return(world) == pytest.approx(3.0, abs=0.2)
    vendor.more_splits.clear()
    world.now = at(9, 15)
    world.refresh("AAPL")
    assert set(factors(world).values()) == {1.0}
    assert abs(day_return(world)) < 0.05


def test_the_list_is_read_once_a_cadence_around_a_listed_day_and_once_a_day_otherwise(
    world: World, vendor: TradedSource
) -> None:
    """At night, when no bar is new, the list is all that a run may request."""
    list_split(vendor, WEDNESDAY, (1, 4))
    reads = {}
    monday, thursday, saturday = date(2026, 11, 16), date(2026, 11, 19), date(2026, 11, 21)
    for day in (monday, TUESDAY, thursday, FRIDAY, saturday):
        world.now = at(1, 0, day)
        world.refresh("AAPL", "KO", timeframes=DAYS)
        before = listings_read(world)
        for minutes in (5, 10, 15, 22, 30):
            world.now = at(1, minutes, day)
            world.refresh("AAPL", "KO", timeframes=DAYS)
        world.refresh("KO", timeframes=DAYS)
        reads[day] = listings_read(world) - before
    assert reads == {monday: 0, TUESDAY: 2, thursday: 2, FRIDAY: 0, saturday: 0}


def test_a_list_that_lacks_most_splits_withdraws_none_and_a_short_one_does(world: World) -> None:
    with StoreConnection(world.database_url) as connection:

        def held(*rows: tuple[str, date, float, float, None]) -> int:
            write_splits(connection, rows, since=date(2026, 1, 1), now=world.now)
            return len(connection.rows("select * from market_data.splits"))

        many = [(f"SYN{number:04}", FRIDAY, 1.0, 2.0, None) for number in range(30)]
        assert held(*many) == 30
        assert held() == held(many[0]) == held(*many[:14]) == 30
        assert held(*many[:16]) == 16
        assert held(*many[:8]) == 8
        assert held() == 0


def test_a_jump_that_no_split_explains_is_told_with_the_series(world: World, vendor: TradedSource) -> None:
    vendor.moves["META", date(2026, 11, 11)] = 15.0
    outcomes = world.refresh("META", "AAPL", timeframes=DAYS, history_days=60)
    warning = str(outcomes["META|1d"].warning)
    assert "The adjusted close of META jumped from " in warning
    assert "which resembles a 1:15 split on 2026-11-11, and no known split explains it" in warning
    assert outcomes["AAPL|1d"].warning is None
    world.now += timedelta(days=3)
    assert world.refresh("META", timeframes=DAYS, history_days=60)["META|1d"].warning is None  # told once
