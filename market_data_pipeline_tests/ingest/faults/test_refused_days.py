"""A day that the vendor spoils costs no other day and few requests, and comes in once the vendor has mended it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.reports.gaps import gaps_report, table_rows
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.faults.conftest import NOON, MakeWorld
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, Page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, differences
from market_data_pipeline_tests.polygon.faulty_server import Answer, reset, send

BAD = date(2026, 11, 19)  # a Thursday
EARLY = date(2026, 11, 6)  # in the other half of a first load
TEN = datetime(2026, 11, 19, 10, 0, tzinfo=NEW_YORK)
FIRST_DAY = date(2026, 11, 18)
HOUR = timedelta(hours=1)


def two_bars_at_ten(exchange: Exchange, page: Page) -> None:
    rows = page["results"]
    for at, row in enumerate(rows):
        if row["t"] == int(TEN.timestamp()) * 1000:
            rows.insert(at + 1, {**row, "c": row["l"], "v": row["v"] * 2})
            return


def refresh(world: FaultyWorld, **more: Any) -> dict[str, Any]:
    days = (world.now.astimezone(NEW_YORK).date() - FIRST_DAY).days
    return world.refresh("AAPL", history_days=days, **more)


def of_five_minutes(world: FaultyWorld) -> int:
    return sum(exchange.kind == "5m" for exchange in world.vendor.exchanges)


def failed_days(world: FaultyWorld) -> list[object]:
    rows = world.query(
        "select session_date from market_data.coverage where status = 'failed' and timeframe = '5m' order by 1"
    )
    return [row["session_date"] for row in rows]


def next_due(world: FaultyWorld) -> dict[str, datetime]:
    rows = world.query("select timeframe, next_due_at from market_data.series_state")
    return {str(row["timeframe"]): row["next_due_at"] for row in rows}  # type: ignore[misc]


def test_a_day_that_stays_bad_leaves_the_days_after_it_fresh_and_costs_ever_fewer_requests(
    make_world: MakeWorld,
) -> None:
    world, undisturbed = make_world(), make_world()
    world.vendor.edit(two_bars_at_ten)
    outcomes = refresh(world)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    assert outcomes["AAPL|5m"].counters.days_refused == 1
    assert of_five_minutes(world) == 3  # two pages, and the day alone once more
    assert failed_days(world) == [BAD]

    weekend = 0
    for hours in (1, 2, 4, 8, 12, *range(24, 49, 2), 71, 72):  # to Monday noon
        world.now = NOON + hours * HOUR
        before = of_five_minutes(world)
        refresh(world, timeframes=(Timeframe.M5,))
        weekend += of_five_minutes(world) - before if 24 < hours <= 48 else 0
    assert 1 <= weekend <= 4
    refresh(world)
    assert failed_days(world) == [BAD]
    assert all(due > world.now for due in next_due(world).values())

    settings = Settings(
        base_url=world.vendor.url,
        api_key=SecretStr(world.key),
        plan="advanced",
        database_url=world.database_url,
        as_of=world.now,
        history_days=5,
    )
    database = engine(world.database_url)
    try:
        report = gaps_report(database, settings, "AAPL", (Timeframe.M5,))
    finally:
        database.dispose()
    (gap,) = [gap for gap in report.timeframes[0].stretches if gap.reason == "failed"]
    session = calendar_for(AssetClass.US_EQUITY).session_on(BAD)
    assert session is not None
    assert (gap.start, gap.end, gap.bars) == (session.start, session.end, 192)
    words = (
        "refused (AAPL 5m, bar 73, field t: 2026-11-19T15:00:00+00:00 comes twice, with different values; next try by"
    )
    assert words in gap.explanation
    assert any(words in row[-1] for row in table_rows("AAPL", report.timeframes))

    world.vendor.heal()
    world.now += 8 * HOUR
    refresh(world)
    undisturbed.now = world.now
    refresh(undisturbed)
    differing = differences(world.snapshot(), undisturbed.snapshot())
    assert differing.keys() <= {"coverage"}, differing
    assert failed_days(world) == []


@pytest.mark.parametrize("again", [{"full": True}, {"reverify": True}])
def test_a_held_day_that_an_answer_spoils_stays_as_it_is_and_is_read_again(
    make_world: MakeWorld, again: dict[str, bool]
) -> None:
    world = make_world()
    refresh(world)
    held = world.snapshot()
    world.vendor.edit(two_bars_at_ten)
    world.now += 24 * HOUR  # Saturday noon
    outcomes = refresh(world, **again)
    assert {outcome.status for outcome in outcomes.values()} <= {"ok", "unchanged"}
    assert "2026-11-19 is refused" in (outcomes["AAPL|5m"].warning or "")
    of_the_day = "select status, rows, reason from market_data.coverage where timeframe = '5m' and session_date = %s"
    (row,) = world.query(of_the_day, BAD)
    assert (row["status"], row["rows"]) == ("provisional", 192)
    before = [row for row in held["bars"] if row[1] == "5m"]
    assert [row for row in world.snapshot()["bars"] if row[1] == "5m"][: len(before)] == before
    world.vendor.heal()
    world.now += HOUR
    refresh(world)
    assert world.query(of_the_day, BAD) == [{"status": "complete", "rows": 192, "reason": None}]


def no_stamp_at_four(exchange: Exchange, page: Page) -> None:
    """A bar that may be the last one of the day before or the first one of the bad day."""
    for row in page["results"]:
        if row["t"] == int(TEN.timestamp() - 6 * 3600) * 1000:
            row["t"] = None


def names(page: Page, *days: date) -> bool:
    """Return whether a page has the bar of 10:00 of one of the days."""
    tens = {int(datetime(day.year, day.month, day.day, 10, tzinfo=NEW_YORK).timestamp()) * 1000 for day in days}
    return any(row["t"] in tens for row in page.get("results") or ())


def adjusted_with(*days: date) -> Callable[[FaultyWorld], None]:
    """A fault of the whole answer whenever one of the days is in it: no row is to blame."""

    def edit(exchange: Exchange, page: Page) -> None:
        page["adjusted"] = names(page, *days)

    return lambda world: world.vendor.edit(edit)


def unreadable_with(*days: date) -> Callable[[FaultyWorld], None]:
    """A page that is no JSON whenever one of the days is in it: C's way to print a number that is none."""

    def make(exchange: Exchange) -> Answer:
        return send(200, exchange.body.replace(b'"v":', b'"a":-nan,"v":'), {"Content-Type": "application/json"})

    return lambda world: world.vendor.inject(make, lambda one: one.kind == "5m" and names(one.page, *days), ALWAYS)


def unanswered_with(answer: Answer, *days: date) -> Callable[[FaultyWorld], None]:
    """No answer whenever one of the days is in it: the vendor fails at something that it holds."""
    return lambda world: world.vendor.inject(
        lambda _: answer, lambda one: one.kind == "5m" and names(one.page, *days), ALWAYS
    )


@pytest.mark.parametrize(
    ("spoil", "days"),
    [
        (lambda world: world.vendor.edit(two_bars_at_ten), [BAD]),
        (lambda world: world.vendor.edit(no_stamp_at_four), [BAD]),
        (adjusted_with(BAD), [BAD]),
        (adjusted_with(EARLY, BAD), [EARLY, BAD]),
        (unreadable_with(BAD), [BAD]),
        (unreadable_with(EARLY, BAD), [EARLY, BAD]),
        (unanswered_with(send(503), BAD), [BAD]),
        (unanswered_with(reset(), EARLY, BAD), [EARLY, BAD]),
    ],
    ids=[
        "a row",
        "a row between days",
        "an answer",
        "answers about two days",
        "unreadable",
        "unreadable about two days",
        "unanswered",
        "unanswered about two days",
    ],
)
def test_a_first_load_holds_every_other_day(
    make_world: MakeWorld, spoil: Callable[[FaultyWorld], None], days: list[date]
) -> None:
    world = make_world(NOON + 5 * 24 * HOUR)
    spoil(world)
    outcomes = world.refresh("AAPL", history_days=20, timeframes=(Timeframe.M5,))
    assert outcomes["AAPL|5m"].status == "ok"
    assert failed_days(world) == days
    rows = world.query("select status, count(*) from market_data.coverage where timeframe = '5m' group by 1 order by 1")
    held = {"complete": 14 - len(days), "failed": len(days), "provisional": 1}
    assert {str(row["status"]): row["count"] for row in rows} == held
    assert next_due(world)["5m"] > world.now

    world.now += HOUR  # what is refused is requested alone
    assert refresh(world, timeframes=(Timeframe.M5,))["AAPL|5m"].status == "ok"
    assert failed_days(world) == days


def test_a_vendor_that_does_not_answer_about_a_bad_day_again_loses_no_other_day(make_world: MakeWorld) -> None:
    world = make_world()
    world.vendor.edit(two_bars_at_ten)
    begin = int(datetime(2026, 11, 19, 4, 0, tzinfo=NEW_YORK).timestamp()) * 1000
    world.vendor.inject(lambda _: send(503), lambda exchange: f"/5/minute/{begin}/" in exchange.target, ALWAYS)
    for hours in (0, 1):  # the second time, today comes in beside the day that is refused
        world.now = NOON + hours * HOUR
        outcome = refresh(world, timeframes=(Timeframe.M5,))["AAPL|5m"]
        assert (outcome.status, failed_days(world)) == ("ok", [BAD])


@pytest.mark.parametrize("spoil", [unanswered_with(send(503), BAD), unreadable_with(BAD)], ids=["503", "unreadable"])
def test_a_day_that_is_requested_alone_and_cannot_be_had_costs_no_other_window(
    make_world: MakeWorld, spoil: Callable[[FaultyWorld], None]
) -> None:
    world = make_world()
    refresh(world, timeframes=(Timeframe.M5,))
    with world.connect() as connection:
        connection.execute("delete from market_data.coverage where session_date = %s", (BAD,))
    spoil(world)
    world.now += timedelta(minutes=15)
    outcome = refresh(world, timeframes=(Timeframe.M5,))["AAPL|5m"]
    assert outcome.status == "ok"
    assert failed_days(world) == [BAD]
    assert next_due(world)["5m"] > world.now
    before = of_five_minutes(world)
    world.now += 2 * HOUR
    refresh(world, timeframes=(Timeframe.M5,))
    assert of_five_minutes(world) - before <= 10  # five attempts, today, and two to tell it from an outage


def test_an_outage_costs_few_more_requests_than_its_attempts_and_refuses_no_day(make_world: MakeWorld) -> None:
    world = make_world(NOON + 5 * 24 * HOUR)
    world.vendor.inject(lambda _: send(503), lambda exchange: exchange.kind == "5m", ALWAYS)
    outcome = world.refresh("AAPL", history_days=20, timeframes=(Timeframe.M5,))["AAPL|5m"]
    assert (outcome.status, outcome.error_class) == ("failed", "UnansweredError")
    assert of_five_minutes(world) <= 9
    assert world.query("select * from market_data.coverage where reason is not null") == []


@pytest.mark.parametrize(("most", "refreshes"), [(40, 1), (6, 3)])
def test_many_spoilt_days_are_requested_one_by_one_as_far_as_the_budget_allows_and_the_rest_next_time(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, most: int, refreshes: int
) -> None:
    """The vendor spoils every day in a long answer, and in one about a day alone nothing is wrong."""
    monkeypatch.setattr("market_data_pipeline.ingest.window._MOST_PARTS", most)
    world = make_world(NOON + 5 * 24 * HOUR)

    def without_stamps(exchange: Exchange, page: Page) -> None:
        rows = page["results"]
        days = sorted({datetime.fromtimestamp(row["t"] / 1000, NEW_YORK).date() for row in rows})
        spoilt = {int(datetime(day.year, day.month, day.day, 4, tzinfo=NEW_YORK).timestamp()) * 1000 for day in days}
        for row in rows if len(days) > 1 else ():
            if row["t"] in spoilt:
                row["t"] = None

    world.vendor.edit(without_stamps)
    held = "select count(*) from market_data.coverage where timeframe = '5m' and rows > 150"
    for _ in range(refreshes):
        assert world.query(held) != [{"count": 14}]
        world.refresh("AAPL", history_days=20, timeframes=(Timeframe.M5,))
        world.now += timedelta(minutes=15)
    assert failed_days(world) == []
    assert world.query(held) == [{"count": 14}]
