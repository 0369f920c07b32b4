"""Recorded market data through the whole ingestion: what is stored equals the files."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.recorded import FULL, SAMPLE, needs_full

Row = tuple[datetime, float, float, float, float, float]


def recorded(file: Path, since: datetime, until: datetime) -> list[Row]:
    """Return (start, open, high, low, close, volume) of a flat file's bars with since <= start < until."""
    with gzip.open(file, "rt", newline="") as lines:
        rows = [
            (
                datetime.fromtimestamp(int(row["window_start"]) // 10**9, UTC),
                *(float(row[name]) for name in ("open", "high", "low", "close", "volume")),
            )
            for row in csv.DictReader(lines)
        ]
    return [row for row in rows if since <= row[0] < until]  # type: ignore[misc]


def held(world: World, symbol: str, timeframe: str) -> list[Row]:
    rows = world.query(
        "select ts, open, high, low, close, volume from market_data.bars"
        " where symbol = %s and timeframe = %s order by ts",
        symbol,
        timeframe,
    )
    return [tuple(row.values()) for row in rows]  # type: ignore[misc]


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=NEW_YORK).astimezone(UTC)


def in_fives(minutes: list[Row]) -> list[Row]:
    """Return 5-minute bars of minute bars, bar by bar."""
    made: dict[datetime, Row] = {}
    for ts, opening, high, low, close, volume in minutes:
        start = ts - timedelta(minutes=ts.minute % 5)
        if start not in made:
            made[start] = (start, opening, high, low, close, volume)
        else:
            known = made[start]
            made[start] = (start, known[1], max(known[2], high), min(known[3], low), close, known[5] + volume)
    return list(made.values())


def check_days(world: World, folder: Path, symbol: str, days: int) -> None:
    today = world.now.astimezone(NEW_YORK).date()
    expected = recorded(folder / "day" / f"{symbol}.csv.gz", midnight(today - timedelta(days=days)), midnight(today))
    assert expected
    assert held(world, symbol, "1d") == expected


def test_a_sample_of_recorded_bars_is_stored_as_it_is(make_world: MakeWorld, files_folder: Path | None) -> None:
    world = make_world(datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK), replay=SAMPLE, files_folder=files_folder)
    world.refresh("AAPL", history_days=200)
    check_days(world, SAMPLE, "AAPL", 200)
    minutes = recorded(SAMPLE / "minute" / "AAPL.csv.gz", midnight(date(2014, 6, 5)), midnight(date(2014, 6, 10)))
    stored, expected = held(world, "AAPL", "5m"), in_fives(minutes)
    assert [row[:5] for row in stored] == [row[:5] for row in expected]
    assert [row[5] for row in stored] == pytest.approx([row[5] for row in expected])


def test_adjusted_prices_are_continuous_across_a_recorded_split(
    make_world: MakeWorld, files_folder: Path | None
) -> None:
    world = make_world(datetime(2014, 6, 10, 12, 0, tzinfo=NEW_YORK), replay=SAMPLE, files_folder=files_folder)
    world.refresh("AAPL", history_days=200)
    raw, adjusted = (
        world.query(
            f"select close from market_data.{relation} where timeframe = '1d' and ts >= '2014-06-06' order by ts"
        )
        for relation in ("bars", "bars_adjusted")
    )
    assert raw[0]["close"] == pytest.approx(645.57, abs=0.01)
    assert adjusted[0]["close"] == pytest.approx(645.57 / 7, abs=0.01)
    assert adjusted[1] == raw[1]
    returns = world.query(
        "select log_return from market_data.features where timeframe = '1d' and ts >= '2014-06-09' order by ts"
    )
    assert returns[0]["log_return"] == pytest.approx(0.0159, abs=0.001)


def test_a_split_that_comes_into_force_recomputes_what_depends_on_prices(make_world: MakeWorld) -> None:
    world = make_world(datetime(2014, 6, 6, 22, 0, tzinfo=NEW_YORK), replay=SAMPLE)
    world.refresh("AAPL", history_days=200)
    before = world.query("select ts, atr, log_return from market_data.features where timeframe = '1d' order by ts")
    world.now = datetime(2014, 6, 9, 6, 0, tzinfo=NEW_YORK).astimezone(UTC)
    outcomes = world.refresh("AAPL", history_days=203)
    assert outcomes["AAPL|1d"].counters.features_written >= len(before) - 14
    after = world.query("select ts, atr, log_return from market_data.features where timeframe = '1d' order by ts")
    for old, new in zip(before, after, strict=False):
        assert new["log_return"] == (None if old["log_return"] is None else pytest.approx(old["log_return"], rel=1e-9))
        assert new["atr"] == (None if old["atr"] is None else pytest.approx(old["atr"] / 7))  # type: ignore[operator]


@needs_full
@pytest.mark.parametrize("symbol", ["AAPL", "SPY", "QQQ", "GOOG"])
def test_twenty_years_of_recorded_days_equal_their_file(make_world: MakeWorld, symbol: str) -> None:
    world = make_world(datetime(2021, 3, 31, 12, 0, tzinfo=NEW_YORK), replay=FULL)
    world.refresh(symbol, history_days=8480)
    check_days(world, FULL, symbol, 8480)
