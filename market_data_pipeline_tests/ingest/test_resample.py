"""A coarse bar is made when nothing more can come for it, not from the half hour before a vendor fell silent."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

COARSE = ("15m", "1h", "4h")


def at(hour: int, minute: int = 0, day: int = 20) -> datetime:
    """Return an instant of November 2026, when New York has winter time; the 20th is a Friday."""
    return datetime(2026, 11, day, hour, minute, tzinfo=NEW_YORK)


def last_bars(world: World) -> dict[str, str]:
    rows = world.query("select timeframe, max(ts) as last_ts from market_data.bars group by timeframe")
    return {
        str(row["timeframe"]): row["last_ts"].astimezone(NEW_YORK).strftime("%a %H:%M")  # type: ignore[attr-defined]
        for row in rows
        if row["timeframe"] in ("5m", *COARSE)
    }


def bars(world: World) -> list[dict[str, object]]:
    return world.query(
        "select symbol, timeframe, ts, open, high, low, close, volume, vwap, trades from market_data.bars"
        " order by symbol, timeframe, ts"
    )


def late(world: World, now: datetime) -> set[str]:
    """Return the timeframes that readers see as late."""
    rows = world.query("select timeframe from market_data.series_state where next_due_at < %s", now)
    return {str(row["timeframe"]) for row in rows}


@pytest.fixture
def source() -> ChangingSource:
    return ChangingSource(open_source(None))


@pytest.fixture
def world(make_world: MakeWorld, source: ChangingSource) -> World:
    return make_world(at(10, 30) + timedelta(seconds=30), source=source)


def test_a_vendor_that_falls_silent_within_the_hour_leaves_no_bar_of_it_until_the_rest_has_come(
    world: World, source: ChangingSource
) -> None:
    world.refresh("AAPL", history_days=10)
    source.hidden.append(("AAPL", at(10, 35), at(23)))
    for hour, minute in ((10, 45), (11, 0), (12, 0)):
        world.now = at(hour, minute) + timedelta(seconds=30)
        outcomes = world.refresh("AAPL", history_days=10)
        assert not [outcome for outcome in outcomes.values() if outcome.failed]
    assert last_bars(world) == {"5m": "Fri 10:30", "15m": "Fri 10:15", "1h": "Fri 09:00", "4h": "Fri 04:00"}
    assert late(world, at(12, 5)) >= {"5m", "15m", "1h", "4h"}

    source.hidden.clear()
    world.now = at(12, 5)
    world.refresh("AAPL", history_days=10)
    assert last_bars(world) == {"5m": "Fri 12:00", "15m": "Fri 11:45", "1h": "Fri 11:00", "4h": "Fri 08:00"}
    assert late(world, at(12, 6)) == set()
    # Nothing was ever shown that had to be taken back.
    assert world.query("select * from market_data.bar_revisions") == []
    assert world.query("select * from market_data.bars_as_of('AAPL', '1h', %s) where ts >= %s", at(12), at(10)) == []


def test_the_last_bar_before_a_silence_comes_when_the_day_has_settled(world: World, source: ChangingSource) -> None:
    world.refresh("AAPL", history_days=10)
    source.hidden.append(("AAPL", at(15, 10), at(23)))
    world.now = at(20, 15)
    world.refresh("AAPL", history_days=10)
    assert last_bars(world) == {"5m": "Fri 15:05", "15m": "Fri 14:45", "1h": "Fri 14:00", "4h": "Fri 08:00"}
    world.now = at(11, day=21)
    world.refresh("AAPL", history_days=10)
    assert last_bars(world) == {"5m": "Fri 15:05", "15m": "Fri 15:00", "1h": "Fri 15:00", "4h": "Fri 12:00"}


def test_a_silence_no_longer_than_usual_holds_nothing_up(make_world: MakeWorld) -> None:
    """A preferred share that trades every seventh minute: its hours are made when they are over."""
    world = make_world(at(10, 0) + timedelta(seconds=30))
    world.refresh("KIMpL", history_days=20)
    quiet = world.query("select quiet_slots from market_data.series_state where timeframe = '5m'")[0]["quiet_slots"]
    assert isinstance(quiet, int)
    assert quiet > 1
    for hour in (11, 12, 13, 14, 15, 16):
        world.now = at(hour) + timedelta(seconds=30)
        world.refresh("KIMpL", history_days=20)
        assert last_bars(world)["1h"] == f"Fri {hour - 1:02}:00"


def test_a_stored_bar_follows_its_base_even_when_its_end_is_withdrawn(world: World, source: ChangingSource) -> None:
    world.now = at(11, 0) + timedelta(seconds=30)
    world.refresh("AAPL", history_days=10)
    assert last_bars(world)["1h"] == "Fri 10:00"
    source.hidden.append(("AAPL", at(10, 30), at(23)))
    world.now = at(11, 20)
    world.refresh("AAPL", history_days=10)
    assert last_bars(world) == {"5m": "Fri 10:25", "15m": "Fri 10:15", "1h": "Fri 10:00", "4h": "Fri 04:00"}
    kept = world.query(
        "select r.volume > b.volume as less from market_data.bar_revisions as r join market_data.bars as b"
        " using (symbol, timeframe, ts) where timeframe = '1h'"
    )
    assert kept == [{"less": True}]
    made_of = world.query(
        """
        select h.volume, sum(m.volume) as minutes from market_data.bars as h
        join market_data.bars as m on m.timeframe = '5m' and m.ts >= h.ts and m.ts < h.ts + interval '1 hour'
        where h.timeframe = '1h' and h.ts = %s group by h.volume
        """,
        at(10),
    )
    assert made_of[0]["volume"] == pytest.approx(made_of[0]["minutes"])


def test_bars_are_those_of_an_undisturbed_vendor_once_it_has_delivered_everything(
    world: World, source: ChangingSource, make_world: MakeWorld
) -> None:
    """Whatever silences came before, row for row."""
    for hidden, now in ((at(9, 20), at(10, 0)), (at(10, 50), at(11, 0)), (at(11, 55), at(12, 0)), (None, at(12, 15))):
        source.hidden[:] = [("AAPL", hidden, at(23))] if hidden else []
        world.now = now + timedelta(seconds=30)
        world.refresh("AAPL", history_days=3)
    disturbed = bars(world)
    with world.connect() as connection:
        connection.execute("truncate market_data.records, market_data.coverage")
        connection.execute("delete from market_data.series_state")
    world.refresh("AAPL", history_days=3)
    assert disturbed == bars(world)
