"""What the vendor changes after a day has settled is found, stored, reported, and known as of either instant."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pytest

from market_data_pipeline.domain.calendar import NEW_YORK, Session, calendar_for
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.sandbox.bars import SplitRow
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.test_refresh import stored

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)  # a Friday
DAY = timedelta(days=1)
TUESDAY = date(2026, 11, 17)
TEN = datetime(2026, 11, 17, 10, 0, tzinfo=NEW_YORK).astimezone(UTC)


def session(day: date) -> Session:
    found = calendar_for(AssetClass.US_EQUITY).session_on(day)
    assert found is not None
    return found


@pytest.fixture
def vendor() -> ChangingSource:
    return ChangingSource(open_source(None))


@pytest.fixture
def world(make_world: MakeWorld, vendor: ChangingSource) -> World:
    return make_world(NOON, source=vendor)


def volume_as_of(world: World, ts: datetime, at: datetime, timeframe: str = "5m") -> list[object]:
    rows = world.query("select volume from market_data.bars_as_of('AAPL', %s, %s) where ts = %s", timeframe, at, ts)
    return [row["volume"] for row in rows]


def statuses(world: World, day: date) -> dict[object, object]:
    rows = world.query("select timeframe, status from market_data.coverage where session_date = %s", day)
    return {row["timeframe"]: row["status"] for row in rows}


def test_a_correction_of_a_settled_day_is_found_and_everything_that_depends_on_it_follows(
    world: World, vendor: ChangingSource
) -> None:
    vendor.volumes["AAPL", TEN] = 1.0
    world.refresh("AAPL")
    first = world.now
    vendor.volumes.clear()
    world.now += DAY  # a Saturday: nothing is expected
    assert sum(outcome.counters.rows_updated for outcome in world.refresh("AAPL").values()) == 0

    reverified = world.refresh("AAPL", reverify=True)

    assert {key: outcome.counters.rows_updated for key, outcome in reverified.items()} == {
        "AAPL|5m": 1,
        "AAPL|15m": 1,
        "AAPL|1h": 1,
        "AAPL|4h": 1,
        "AAPL|1d": 0,
    }
    (change,) = reverified["AAPL|5m"].changes
    (now,) = world.query("select volume from market_data.bars where timeframe = '5m' and ts = %s", TEN)
    assert (change.ts, change.kind, change.column, change.old) == (TEN, "corrected", "volume", 1.0)
    assert change.new == now["volume"]
    revisions = world.query("select timeframe, run_id, superseded_at from market_data.bar_revisions")
    assert {(row["timeframe"], row["run_id"]) for row in revisions} == {
        (timeframe, "run-3") for timeframe in ("5m", "15m", "1h", "4h")
    }
    # Half-open: the old value until just before the correction was stored, the new one from then on.
    moment = timedelta(microseconds=1)
    assert volume_as_of(world, TEN, first - moment) == []
    assert volume_as_of(world, TEN, first) == volume_as_of(world, TEN, world.now - moment) == [1.0]
    assert volume_as_of(world, TEN, world.now) == [now["volume"]]
    hour = world.query("select ts, volume from market_data.bar_revisions where timeframe = '1h'")[0]
    assert volume_as_of(world, TEN, first, "1h") == [hour["volume"]]
    # What depends on the corrected bar is as if it had been right from the start.
    corrected = stored(world)
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    world.refresh("AAPL", history_days=11)
    undisturbed = stored(world)
    assert corrected[0] == undisturbed[0]
    pd.testing.assert_frame_equal(pd.DataFrame(corrected[1]), pd.DataFrame(undisturbed[1]), rtol=1e-9, atol=0)


def test_a_gap_that_the_vendor_fills_later_is_found_and_reported(world: World, vendor: ChangingSource) -> None:
    vendor.hidden.append(("AAPL", TEN, TEN + timedelta(minutes=15)))
    world.refresh("AAPL")
    assert statuses(world, TUESDAY) == {"5m": "complete", "1d": "complete"}
    vendor.hidden.clear()
    world.now += DAY

    reverified = world.refresh("AAPL", reverify=True)

    five = reverified["AAPL|5m"]
    assert (five.rows_filled, five.counters.rows_updated) == (3, 0)
    assert [(change.ts, change.kind, change.old) for change in five.changes] == [
        (TEN + i * timedelta(minutes=5), "filled", None) for i in range(3)
    ]
    assert reverified["AAPL|15m"].rows_filled == 1
    assert reverified["AAPL|1h"].counters.rows_updated == 1  # it had been made of nine bars
    assert volume_as_of(world, TEN, world.now - timedelta(seconds=1)) == []
    assert len(volume_as_of(world, TEN, world.now)) == 1


def test_a_withdrawn_bar_is_kept_as_a_revision_and_known_until_then(world: World, vendor: ChangingSource) -> None:
    world.refresh("AAPL")
    vendor.hidden.append(("AAPL", TEN, TEN + timedelta(minutes=5)))
    world.now += DAY
    five = world.refresh("AAPL", reverify=True)["AAPL|5m"]
    assert [(change.ts, change.kind, change.new) for change in five.changes] == [(TEN, "withdrawn", None)]
    assert volume_as_of(world, TEN, world.now) == []
    assert len(volume_as_of(world, TEN, world.now - timedelta(seconds=1))) == 1


def test_an_empty_day_is_fetched_twice_then_confirmed_and_found_when_the_vendor_fills_it_later(
    world: World, vendor: ChangingSource
) -> None:
    day = session(TUESDAY)
    vendor.hidden.append(("AAPL", day.day_start, day.day_end))
    world.refresh("AAPL")
    assert statuses(world, TUESDAY) == {"5m": "provisional", "1d": "provisional"}
    world.now += timedelta(minutes=16)
    world.refresh("AAPL")
    assert statuses(world, TUESDAY) == {"5m": "empty_confirmed", "1d": "empty_confirmed"}

    world.now += DAY
    still = world.refresh("AAPL", reverify=True)
    assert {outcome.status for outcome in still.values()} <= {"ok", "unchanged"}
    assert still["AAPL|5m"].rows_filled == still["AAPL|1d"].rows_filled == 0
    assert statuses(world, TUESDAY) == {"5m": "empty_confirmed", "1d": "empty_confirmed"}

    vendor.hidden.clear()
    world.now += DAY
    found = world.refresh("AAPL", reverify=True)
    assert (found["AAPL|5m"].rows_filled, found["AAPL|1d"].rows_filled) == (192, 1)
    assert statuses(world, TUESDAY) == {"5m": "complete", "1d": "complete"}


def bars_of(world: World, day: date) -> dict[object, object]:
    of_day = "select timeframe, count(*) as bars from market_data.bars where ts >= %s and ts < %s group by 1"
    rows = world.query(of_day, session(day).day_start, session(day).day_end)
    return {row["timeframe"]: row["bars"] for row in rows}


def test_a_day_that_the_vendor_withdraws_is_kept_until_a_second_look_and_then_as_revisions(
    world: World, vendor: ChangingSource
) -> None:
    world.refresh("AAPL")
    before, held_until = bars_of(world, TUESDAY), world.now
    day = session(TUESDAY)
    vendor.hidden.append(("AAPL", day.day_start, day.day_end))
    vendor.volumes["AAPL", TEN - DAY] = 1.0  # what else the answer says is stored
    world.now += DAY
    world.query(
        "update market_data.coverage set status = 'provisional' where timeframe = '1d' and session_date = %s "
        "returning 1",
        TUESDAY,
    )  # as `reconcile` opens a day bar that differs
    first = world.refresh("AAPL", reverify=True)
    assert {outcome.status for outcome in first.values()} == {"ok"}
    assert first["AAPL|5m"].counters.rows_updated == 1
    assert "2026-11-17" in (first["AAPL|5m"].warning or "")
    assert "2026-11-17" in (first["AAPL|1d"].warning or "")
    assert first["AAPL|1h"].warning is None
    assert bars_of(world, TUESDAY) == before
    assert statuses(world, TUESDAY) == {"5m": "provisional", "1d": "provisional"}

    world.now += timedelta(minutes=16)
    second = world.refresh("AAPL")
    assert {key: outcome.counters.rows_updated for key, outcome in second.items()} == {
        f"AAPL|{timeframe}": bars for timeframe, bars in before.items()
    }
    assert bars_of(world, TUESDAY) == {}
    assert statuses(world, TUESDAY) == {"5m": "empty_confirmed", "1d": "empty_confirmed"}
    assert len(volume_as_of(world, TEN, held_until)) == 1
    assert volume_as_of(world, TEN, world.now) == []

    world.now += timedelta(minutes=16)
    assert sum(outcome.counters.requests for outcome in world.refresh("AAPL").values()) == 0


def test_a_day_that_an_answer_lost_is_whole_again_after_the_second_look(world: World, vendor: ChangingSource) -> None:
    world.refresh("AAPL")
    before = bars_of(world, TUESDAY)
    day = session(TUESDAY)
    vendor.hidden.append(("AAPL", day.day_start, day.day_end))
    world.now += DAY
    world.refresh("AAPL", timeframes=(Timeframe.M5,), reverify=True)
    vendor.hidden.clear()
    world.now += timedelta(minutes=16)
    again = world.refresh("AAPL", timeframes=(Timeframe.M5,))["AAPL|5m"]
    assert (again.counters.rows_inserted, again.counters.rows_updated, again.warning) == (0, 0, None)
    assert statuses(world, TUESDAY)["5m"] == "complete"
    assert bars_of(world, TUESDAY) == before


def test_a_ticker_that_the_vendor_lost_keeps_its_history(world: World, vendor: ChangingSource) -> None:
    world.refresh("AAPL")
    held = stored(world)
    vendor.hidden.append(("AAPL", NOON - 400 * DAY, NOON + 400 * DAY))
    for _ in range(2):
        world.now += DAY
        failed = world.refresh("AAPL", reverify=True)["AAPL|5m"]
        assert failed.error_class == "DataError"
        assert "the stored ones are kept" in (failed.error or "")
    assert stored(world)[:2] == held[:2]


def test_a_withdrawn_yesterday_does_not_keep_today_from_being_stored(world: World, vendor: ChangingSource) -> None:
    world.refresh("AAPL")
    world.now += timedelta(days=3)  # Monday noon
    world.refresh("AAPL")
    monday = session(date(2026, 11, 23))
    vendor.hidden.append(("AAPL", monday.day_start, monday.day_end))
    world.now += DAY
    first = world.refresh("AAPL")
    assert first["AAPL|5m"].counters.rows_inserted > 0
    assert bars_of(world, monday.date)["5m"] > 0
    world.now += timedelta(minutes=16)
    world.refresh("AAPL")
    assert bars_of(world, monday.date) == {}


def test_reverifying_costs_a_request_for_the_page_of_5m_bars_and_none_for_day_bars_read_this_week(world: World) -> None:
    world.refresh("AAPL", history_days=60)
    world.now += DAY
    again = world.refresh("AAPL", history_days=60, reverify=True)
    # Saturday noon: splits, dividends and announcements, a page of the list of tickers, Friday's bars with the page,
    # and Friday's day bar.
    assert {key: outcome.counters.requests for key, outcome in again.items() if outcome.counters.requests} == {
        "AAPL|5m": 5,
        "AAPL|1d": 1,
    }
    assert again["AAPL|5m"].counters.rows_fetched > 40 * 150


def test_the_plans_history_may_slide_over_the_first_days_that_are_held(make_world: MakeWorld) -> None:
    """What the plan no longer serves is kept and marked; the rest is read again as ever."""
    world = make_world(NOON, plan="starter")
    day_bars, history = (Timeframe.D1,), plan_named("starter").history
    assert history is not None
    days_of_history = history.days
    world.refresh("AAPL", timeframes=day_bars, history_days=days_of_history)
    held = stored(world)[0]
    for days in (8, 17):
        world.now = NOON.astimezone(UTC) + days * DAY
        outcome = world.refresh("AAPL", timeframes=day_bars, history_days=days_of_history, reverify=True)["AAPL|1d"]
        assert (outcome.status, outcome.warning) == ("ok", None)
        assert outcome.counters.rows_fetched > 1200
    assert stored(world)[0][: len(held)] == held
    (clamped,) = world.query(
        "select count(*) as days, min(rows) as rows, max(session_date) as last from market_data.coverage"
        " where status = 'clamped' and session_date >= %s",
        held[0]["ts"].date(),  # type: ignore[attr-defined]
    )
    assert (clamped["rows"], clamped["days"]) == (1, 11)
    assert world.now.date() - clamped["last"] >= timedelta(days=days_of_history)  # type: ignore[operator]


def test_a_changed_split_has_all_days_read_again(world: World, vendor: ChangingSource) -> None:
    old = session(date(2026, 10, 27)).day_start
    day_bars = (Timeframe.D1,)
    world.refresh("AAPL", timeframes=day_bars, history_days=60)
    world.now += DAY
    world.refresh("AAPL", timeframes=day_bars, history_days=60, reverify=True)  # records the splits in force
    vendor.volumes["AAPL", old] = 5.0
    world.now += DAY
    assert (
        world.refresh("AAPL", timeframes=day_bars, history_days=60, reverify=True)["AAPL|1d"].counters.rows_updated == 0
    )

    vendor.more_splits.append(SplitRow("AAPL", date(2026, 11, 23), 1.0, 2.0))
    world.now += DAY
    reverified = world.refresh("AAPL", timeframes=day_bars, history_days=60, reverify=True)["AAPL|1d"]
    assert reverified.counters.rows_updated == 1
    assert [change.ts for change in reverified.changes] == [old]
    world.now += DAY
    assert (
        world.refresh("AAPL", timeframes=day_bars, history_days=60, reverify=True)["AAPL|1d"].counters.rows_fetched <= 2
    )


def test_a_corrected_split_adjusts_once_and_what_was_known_before_can_still_be_read(
    world: World, vendor: ChangingSource
) -> None:
    monday, tuesday = date(2026, 11, 16), date(2026, 11, 17)
    for listed in (("AAPL", monday, 1.0, 4.0), ("AAPL", tuesday, 1.0, 4.0), ("KO", tuesday, 1.0, 2.0)):
        vendor.more_splits = [SplitRow(*listed)]
        world.refresh("AAPL", timeframes=(Timeframe.D1,), history_days=10)
        world.now += DAY

    def known(at: datetime) -> list[tuple[object, ...]]:
        rows = "select execution_date, split_from, split_to from market_data.splits_as_of(%s) where symbol = 'AAPL'"
        return [tuple(row.values()) for row in world.query(rows, at)]

    first = NOON.astimezone(UTC)
    assert known(first - timedelta(seconds=1)) == []
    assert known(first) == known(first + DAY - timedelta(seconds=1)) == [(monday, 1.0, 4.0)]
    assert known(first + DAY) == [(tuesday, 1.0, 4.0)]
    assert known(first + 2 * DAY) == known(datetime(2100, 1, 1, tzinfo=UTC)) == []
    factors = world.query(
        "select distinct a.close / b.close as factor from market_data.bars_adjusted as a"
        " inner join market_data.bars as b using (symbol, timeframe, ts) where symbol = 'AAPL'"
    )
    assert factors == [{"factor": 1.0}]


def test_bars_corrected_at_one_instant_are_known_in_their_last_version_from_it_on(
    world: World, vendor: ChangingSource
) -> None:
    """With a clock that stands still, a value that was replaced at the instant it was stored was never in effect."""
    for volume in (1.0, 2.0, 3.0):
        vendor.volumes["AAPL", TEN] = volume
        world.refresh("AAPL", timeframes=(Timeframe.M5,), full=True)
    assert volume_as_of(world, TEN, world.now) == [3.0]
    assert volume_as_of(world, TEN, world.now - timedelta(microseconds=1)) == []
    assert len(world.query("select * from market_data.bar_revisions")) == 2


def test_a_clock_set_back_leaves_one_bar_for_every_instant(world: World, vendor: ChangingSource) -> None:
    hours = [10, 11, 9, 12]
    for hour in hours:
        vendor.volumes["AAPL", TEN] = float(hour)
        world.now = NOON.astimezone(UTC).replace(hour=hour + 5)
        world.refresh("AAPL", timeframes=(Timeframe.M5,), full=True)
    known = [volume_as_of(world, TEN, NOON.astimezone(UTC).replace(hour=hour + 5, minute=30)) for hour in range(9, 13)]
    assert known == [[9.0], [9.0], [9.0], [12.0]]
