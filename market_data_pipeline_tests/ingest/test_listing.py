"""A symbol whose history begins late: a new listing, or a plan that serves less than it says, is no outage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest import fetch_plan
from market_data_pipeline.reports.completeness import symbols_with_gaps
from market_data_pipeline.reports.freshness import alert_changes, series_freshness
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)  # a Friday
BEGINNING = datetime(2003, 1, 1, tzinfo=UTC)


def listed_on(make_world: MakeWorld, month: int, day: int) -> World:
    """Return a world in which AAPL begins to trade on a day of 2026."""
    listed = datetime(2026, month, day, tzinfo=NEW_YORK)
    return make_world(NOON, source=ChangingSource(open_source(None), hidden=[("AAPL", BEGINNING, listed)]))


def what_is_wrong(world: World) -> list[str]:
    """Return what would keep a first start from ending well, series by series, and what would be alerted."""
    database = engine(world.database_url, as_of=world.now)
    with database.connect() as connection:
        found = [f"{one.timeframe} {one.status}" for one in series_freshness(connection) if one.status != "FRESH"]
        found += [f"{one.timeframe} alerted" for one in alert_changes(connection).late]
    found += symbols_with_gaps(database, [f"run-{number + 1}" for number in range(world.runs)])
    database.dispose()
    return found


def statuses(world: World, until: str) -> dict[tuple[object, object], object]:
    rows = world.query(
        "select timeframe, status, count(*) as days from market_data.coverage where session_date < %s group by 1, 2",
        until,
    )
    return {(row["timeframe"], row["status"]): row["days"] for row in rows}


@pytest.mark.parametrize("part", [20_000, fetch_plan.PART_BASE_BARS])
def test_the_first_load_of_a_new_listing_is_fresh_and_complete(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Also where the days before the listing came with other requests, committed before the first bar arrived."""
    monkeypatch.setattr(fetch_plan, "PART_BASE_BARS", part)
    world = listed_on(make_world, 10, 30)
    world.refresh("AAPL", history_days=120)
    assert what_is_wrong(world) == []
    before = statuses(world, "2026-10-30")
    assert before == {("5m", "empty_confirmed"): 70, ("1d", "empty_confirmed"): 70}


def test_a_symbol_that_was_listed_today_is_fresh_although_yesterday_has_not_settled(make_world: MakeWorld) -> None:
    world = listed_on(make_world, 11, 20)
    world.now = datetime(2026, 11, 20, 10, 0, 30, tzinfo=NEW_YORK)
    world.refresh("AAPL", timeframes=(Timeframe.M5, Timeframe.H1))
    assert statuses(world, "2026-11-20")["5m", "provisional"] == 1
    database = engine(world.database_url, as_of=world.now)
    with database.connect() as connection:
        shown = {one.timeframe: one.status for one in series_freshness(connection) if one.status != "MISSING"}
    database.dispose()
    assert shown == {"5m": "FRESH", "1h": "FRESH"}
