"""Answers that are well-formed and wrong: what they take away or change of stored days is not believed at once.

What the vendor really withdraws or corrects comes in one look later, as revisions.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline_tests.ingest.faults.conftest import NOON, MakeWorld
from market_data_pipeline_tests.ingest.faults.repertoire import doubled, of_rows
from market_data_pipeline_tests.ingest.faults.test_refused_days import refresh
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, Page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, differences

THURSDAY = date(2026, 11, 19)
DAY = timedelta(days=1)
SIXTEEN = timedelta(minutes=16)


def of_thursday(row: dict[str, Any]) -> bool:
    return datetime.fromtimestamp(row["t"] / 1000, NEW_YORK).date() == THURSDAY


def lossy(exchange: Exchange, page: Page) -> None:
    page["results"] = [row for row in page["results"] if not of_thursday(row) or row["t"] // 300_000 % 2]


def in_another_unit(exchange: Exchange, page: Page) -> None:
    for row in page["results"]:
        if of_thursday(row):
            row.update({name: row[name] * 10 for name in ("o", "h", "l", "c", "vw")})


def withdrawn(exchange: Exchange, page: Page) -> None:
    page["results"] = [row for row in page["results"] if not of_thursday(row)]


def bars_of(world: FaultyWorld) -> list[tuple[Any, ...]]:
    return [
        row for row in world.snapshot()["bars"] if row[1] == "5m" and row[2].astimezone(NEW_YORK).date() == THURSDAY
    ]


def status_of(world: FaultyWorld) -> tuple[object, ...]:
    of_the_day = "select status, rows from market_data.coverage where timeframe = '5m' and session_date = %s"
    (row,) = world.query(of_the_day, THURSDAY)
    return (row["status"], row["rows"])


@pytest.mark.parametrize(
    ("edit", "again", "rows"), [(lossy, {"full": True}, 96), (in_another_unit, {"reverify": True}, 192)]
)
def test_what_an_answer_takes_away_or_changes_of_a_settled_day_comes_in_one_look_later(
    make_world: MakeWorld, edit: Callable[[Exchange, Page], None], again: dict[str, bool], rows: int
) -> None:
    world = make_world()
    refresh(world)
    world.now = NOON + DAY  # Saturday noon: Thursday and Friday have settled
    refresh(world)
    before = bars_of(world)
    world.vendor.edit(edit)
    first = refresh(world, **again)
    assert {outcome.status for outcome in first.values()} <= {"ok", "unchanged"}
    assert "2026-11-19. The stored bars are kept until a second answer says the same." in str(first["AAPL|5m"].warning)
    assert (bars_of(world), status_of(world)) == (before, ("provisional", 192))
    assert world.query("select * from market_data.bar_revisions") == []

    world.now += SIXTEEN
    second = refresh(world)
    changed = len(before) - rows % len(before)
    assert second["AAPL|5m"].counters.rows_updated == changed
    assert status_of(world) == ("complete", rows)
    assert len(bars_of(world)) == rows
    assert (
        len(world.query("select * from market_data.bar_revisions where timeframe = '5m'")) == len(before) - rows % 192
    )

    world.vendor.heal()  # the mistake had lasted; the way back takes a second look too, unless bars only come back
    world.now += DAY
    refresh(world, reverify=True)
    world.now += SIXTEEN
    refresh(world)
    assert bars_of(world) == before


def test_a_lossy_answer_that_is_whole_again_at_the_second_look_leaves_no_trace(make_world: MakeWorld) -> None:
    world, undisturbed = make_world(), make_world()
    for each in (world, undisturbed):
        refresh(each)
        each.now = NOON + DAY
    world.vendor.edit(lossy)
    refresh(world, reverify=True)
    world.vendor.heal()
    world.now = undisturbed.now = NOON + DAY + SIXTEEN
    for each in (world, undisturbed):
        refresh(each)
    assert differences(world.snapshot(), undisturbed.snapshot()) == {}
    assert world.query("select * from market_data.bar_revisions where timeframe = '5m'") == []


def test_a_thin_symbols_only_bar_that_is_withdrawn_costs_no_refresh(make_world: MakeWorld) -> None:
    """Friday's only bar so far is gone a quarter of an hour later: kept, and in doubt until the day has settled."""
    world = make_world()
    friday = NOON.astimezone(NEW_YORK).date()

    def thin(exchange: Exchange, page: Page, *, hour: int | None = 10) -> None:
        def kept(row: dict[str, Any]) -> bool:
            local = datetime.fromtimestamp(row["t"] / 1000, NEW_YORK)
            return local.date() != friday or (local.hour, local.minute) == (hour, 0)

        page["results"] = [row for row in page["results"] if kept(row)]

    world.vendor.edit(thin)
    refresh(world, timeframes=(Timeframe.M5,))
    world.vendor.edit(lambda exchange, page: thin(exchange, page, hour=None))
    statuses = []
    for minutes in (15, 30, 45, 9 * 60, 23 * 60, 23 * 60 + 16, 23 * 60 + 32):
        world.now = NOON + timedelta(minutes=minutes)
        statuses.append(refresh(world, timeframes=(Timeframe.M5,))["AAPL|5m"].status)
    assert "failed" not in statuses
    coverage = world.query("select status, rows from market_data.coverage where session_date = %s", friday)
    assert coverage == [{"status": "empty_confirmed", "rows": 0}]
    assert len(world.query("select * from market_data.bar_revisions")) == 1


@pytest.mark.parametrize(("held", "added"), [(12, 192), (0, 192), (6, 12)])
def test_a_thin_day_that_gets_far_more_bars_than_any_other_is_doubted_and_a_hole_that_is_filled_is_not(
    make_world: MakeWorld, held: int, added: int
) -> None:
    """All of 192 slots traded on one settled day of a name that has a dozen bars a day: another symbol's, perhaps."""
    world = make_world(NOON + DAY)

    def thin(exchange: Exchange, page: Page, of_the_day: int) -> None:
        def kept(row: dict[str, Any]) -> bool:
            local = datetime.fromtimestamp(row["t"] / 1000, NEW_YORK)
            slot = (local.hour * 60 + local.minute - 10 * 60) // 5
            return 0 <= slot < 12 if not of_thursday(row) else of_the_day == 192 or 0 <= slot < of_the_day

        page["results"] = [row for row in page["results"] if kept(row)]

    def look(**more: Any) -> Any:
        return world.refresh("AAPL", history_days=12, timeframes=(Timeframe.M5,), **more)["AAPL|5m"]

    world.vendor.edit(lambda exchange, page: thin(exchange, page, held))
    for _ in range(2):
        assert look().warning is None
        world.now += SIXTEEN
    assert len(bars_of(world)) == held
    world.vendor.edit(lambda exchange, page: thin(exchange, page, added))
    first = look(reverify=True)
    is_doubted = added == 192
    assert len(bars_of(world)) == (held if is_doubted else added)
    assert (f"adds {added - held} bars to the {held} stored of 2026-11-19" in str(first.warning)) == is_doubted
    world.now += SIXTEEN
    assert look().status == ("ok" if is_doubted else "unchanged")
    assert (len(bars_of(world)), status_of(world)) == (added, ("complete", added))


def test_what_was_taken_in_although_it_was_odd_is_told(make_world: MakeWorld) -> None:
    world = make_world()
    world.vendor.inject(of_rows(doubled), times=ALWAYS)
    outcomes = refresh(world, timeframes=(Timeframe.M5,))
    assert "came twice with the same values" in str(outcomes["AAPL|5m"].warning)
    assert outcomes["AAPL|5m"].counters.days_refused == 0
