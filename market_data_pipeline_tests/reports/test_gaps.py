"""Every gap in a symbol's history with its reason, on a vendor that leaves things out."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.calendar import NEW_YORK, Session, calendar_for, to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.ingest.fetch_plan import Reach, Timing
from market_data_pipeline.reports.gaps import Reason, find_gaps, gaps_report, table_rows
from market_data_pipeline.reports.models import GapReport, SeriesGaps
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock

# Thanksgiving was the day before; the session closes at 17:00.
FRIDAY_NOON = datetime(2026, 11, 27, 12, 0, 30, tzinfo=NEW_YORK)
CALENDAR = calendar_for(AssetClass.US_EQUITY)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=NEW_YORK).astimezone(UTC)


def session(day: int) -> Session:
    found = CALENDAR.session_on(date(2026, 11, day))
    assert found is not None
    return found


@pytest.fixture
def vendor() -> ChangingSource:
    return ChangingSource(open_source(None))


def gaps(world: World, timeframe: Timeframe, *, days: int = 10, symbol: str = "AAPL") -> dict[str, Any]:
    settings = Settings(
        base_url=world.base_url,
        api_key=SecretStr("sandbox"),
        plan=world.plan,
        database_url=world.database_url,
        as_of=world.now,
        history_days=days,
    )
    database = engine(world.database_url)
    try:
        (one,) = gaps_report(database, settings, symbol, (timeframe,)).model_dump()["timeframes"]
    finally:
        database.dispose()
    assert one["bars_missing"] == sum(stretch["bars"] for stretch in one["stretches"])
    return one


def explained_by(document: dict[str, Any]) -> list[tuple[datetime, datetime, int, str]]:
    return [(s["start"], s["end"], s["bars"], s["explanation"]) for s in document["stretches"]]


def test_a_session_in_progress_a_holiday_and_gaps_of_all_kinds(make_world: MakeWorld, vendor: ChangingSource) -> None:
    world = make_world(FRIDAY_NOON, source=vendor)
    vendor.hidden = [
        ("AAPL", at(24, 10), at(24, 10, 15)),  # Tuesday, settled
        ("AAPL", session(23).start, session(23).end),  # Monday, a whole day
        ("AAPL", at(27, 9), at(27, 9, 10)),  # today
    ]
    world.refresh("AAPL")
    world.now += timedelta(minutes=20)
    assert explained_by(gaps(world, Timeframe.M5)) == [
        (at(23, 4), at(23, 20), 192, "provisional: vendor gave none at 2026-11-27 12:00, will be asked a second time"),
        (at(24, 10), at(24, 10, 15), 3, "vendor gave none (confirmed on 2026-11-27)"),
        (at(26, 0), at(27, 0), 0, "no session"),
        (at(27, 9), at(27, 9, 10), 2, "provisional: vendor gave none so far, settles 2026-11-28 11:00"),
        (at(27, 12), at(27, 12, 20), 4, "not asked since 2026-11-27 12:00"),
        (at(27, 12, 20), at(27, 12, 25), 1, "not yet due on this plan (from 2026-11-27 12:25)"),
    ]
    assert explained_by(gaps(world, Timeframe.D1)) == [
        (at(26, 0), at(27, 0), 0, "no session"),
        (at(27, 0), at(28, 0), 1, "not yet due on this plan (from 2026-11-28 00:00)"),
    ]
    world.refresh("AAPL")
    monday = gaps(world, Timeframe.M5)["stretches"][0]
    assert (monday["reason"], monday["confirmed_on"]) == ("vendor_none", date(2026, 11, 27))
    vendor.hidden = []
    world.now += timedelta(days=1)  # Saturday noon, settled; there is no trading
    world.refresh("AAPL", reverify=True)
    closed = gaps(world, Timeframe.M5)
    assert explained_by(closed) == [
        (at(26, 0), at(27, 0), 0, "no session"),
        (at(27, 17), at(27, 20), 0, "early close"),
    ]
    assert (closed["bars_missing"], closed["weekends"]) == (0, 2)


def test_what_the_plan_does_not_reach_and_does_not_serve_yet(make_world: MakeWorld) -> None:
    world = make_world(FRIDAY_NOON, plan="basic")
    world.track("AAPL")
    asked = gaps(world, Timeframe.D1, days=740)
    assert [(s["reason"], s["bars"]) for s in asked["stretches"] if s["bars"]] == [
        ("before_plan", 7),
        ("never_asked", len(CALENDAR.sessions(date(2024, 11, 27), date(2026, 11, 27)))),
        ("not_due", 1),
    ]
    world.refresh("AAPL", timeframes=(Timeframe.D1,), history_days=740)
    held = gaps(world, Timeframe.D1, days=740)
    assert [(s["reason"], s["bars"]) for s in held["stretches"] if s["bars"]] == [("before_plan", 7), ("not_due", 1)]
    intraday = gaps(world, Timeframe.M5, days=1)["stretches"][-1]
    assert (intraday["start"], intraday["bars"], intraday["reason"]) == (at(27, 4), 97, "not_due")
    assert intraday["due_at"] == at(28, 0)


def test_a_failure_names_its_error_and_the_next_try(make_world: MakeWorld) -> None:
    world = make_world(FRIDAY_NOON)
    address, world.base_url = world.base_url, "http://127.0.0.1:9"
    world.refresh("AAPL", timeframes=(Timeframe.M5,))
    (failed,) = [s for s in gaps(world, Timeframe.M5)["stretches"] if s["reason"] == "failed"]
    assert failed["start"] == at(17, 4)
    assert failed["next_try_by"] == world.now + timedelta(minutes=15)
    assert failed["error"].split(":")[0].endswith("Error")
    assert failed["error"] in failed["explanation"]
    assert "next try by 2026-11-27 12:15" in failed["explanation"]
    world.base_url = address
    world.refresh("AAPL", timeframes=(Timeframe.M5,))
    assert "failed" not in gaps(world, Timeframe.M5)["summary"]


def test_a_round_the_clock_market_has_no_closed_days(make_world: MakeWorld) -> None:
    world = make_world(FRIDAY_NOON)
    world.refresh("X:BTCUSD", history_days=3)
    document = gaps(world, Timeframe.M5, symbol="X:BTCUSD", days=3)
    assert set(document["summary"]) <= {"vendor_none", "provisional", "not_due"}
    assert document["sessions"] == 4
    assert document["weekends"] == 0


def test_a_symbol_that_is_not_followed_is_refused_with_a_sentence(make_world: MakeWorld) -> None:
    world = make_world(FRIDAY_NOON)
    world.track("AAPL")
    with pytest.raises(UsageError, match="Not followed: ZZZ"):
        gaps(world, Timeframe.M5, symbol="ZZZ")


def test_many_gaps_of_a_day_are_one_row_for_people() -> None:
    reason = "vendor gave none (confirmed on 2026-11-27)"
    several = [
        GapReport(start=at(24, 10 + i), end=at(24, 10 + i, 5), bars=1, reason="vendor_none", explanation=reason)
        for i in range(3)
    ]
    assert table_rows("AAPL", [SeriesGaps.model_construct(timeframe="5m", stretches=several)]) == [
        ("5m", "Tue 2026-11-24 10:00", "Tue 2026-11-24 12:05", 3, f"{reason} (3 gaps)")
    ]


def test_gaps_and_bars_together_are_all_slots_of_a_year() -> None:
    """A thinly traded symbol: every slot of a year is either held or explained once."""
    now = FRIDAY_NOON.astimezone(UTC)
    timing = Timing(CALENDAR, lambda end: end + timedelta(minutes=15), now)
    sessions = CALENDAR.sessions(date(2025, 11, 27), date(2026, 11, 28))
    slots = np.concatenate([CALENDAR.slots_us(Timeframe.M5, each) for each in sessions])
    slots = slots[slots < to_us(now)]
    held = slots[np.random.default_rng(7).random(len(slots)) < 0.4]
    statuses = [CoverageStatus.COMPLETE, CoverageStatus.FAILED, CoverageStatus.PROVISIONAL, None]
    coverage = {
        each.date: Coverage(each.date, status, 1, now - timedelta(minutes=90))
        for i, each in enumerate(sessions)
        if (status := statuses[i % 4]) is not None
    }
    found = find_gaps(Timeframe.M5, Reach(sessions[40:], sessions[:40]), coverage, held, timing)
    explained = [np.arange(to_us(each.start), to_us(each.end), 300_000_000) for each in found if each.bars]
    assert [len(one) for one in explained] == [each.bars for each in found if each.bars]
    assert np.array_equal(np.sort(np.concatenate([held, *explained])), slots)
    assert {each.reason for each in found} == set(Reason) - {
        Reason.BEFORE_FIRST,
        Reason.NOT_EXPECTED,
        Reason.OTHER_SECURITY,
        Reason.ANNOUNCED,
    }

    # Of a series that the vendor says has ended, nothing after the last bar is asked for any more.
    ended = find_gaps(Timeframe.M5, Reach(sessions[40:], sessions[:40]), coverage, held, timing, ended=True)
    assert sum(each.bars for each in ended) == sum(each.bars for each in found)
    assert {each.reason for each in ended if each.bars and to_us(each.start) > held[-1]} == {Reason.NOT_EXPECTED}
