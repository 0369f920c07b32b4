"""Bars of the regular hours alone, from every place that bars are read from, against pandas over New York's clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline import iter_bars, read_bars, read_features, read_records
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.http_client import Client
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.lake.tables import table_named
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.serving.conftest import Api, serve

# A Monday after Thanksgiving and the early close that followed, at a quarter past an hour bar of the regular hours.
NOW = datetime(2026, 11, 30, 12, 45, 30, tzinfo=NEW_YORK)
VALUES = ("open", "high", "low", "close", "volume", "vwap", "trades")


@pytest.fixture(scope="module")
def filled(
    postgres_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Path]]:
    """A database and a lake of a week of a stock, an index and a crypto pair."""
    name, lake = copy_database(postgres_url, migrated_template), tmp_path_factory.mktemp("lake")
    world = World("", with_database(postgres_url, name), NOW.astimezone(UTC))
    with running_server(open_source(None), world.clock, plan="advanced") as world.base_url:
        outcomes = world.refresh("AAPL", "I:SPX", "X:BTCUSD", history_days=8)
    assert not [outcome.error for outcome in outcomes.values() if outcome.failed]
    settings = load_settings(database_url=world.database_url, as_of=world.now, lake_url=str(lake))
    kinds = ("bars", "features", "bar_revisions")
    sync(settings, tables=[table_named(f"{k}_{t}") for k in kinds for t in ("5m", "1h")], until_now=True)
    yield world, lake
    drop_database(postgres_url, name)


@pytest.fixture
def world(filled: tuple[World, Path], monkeypatch: pytest.MonkeyPatch) -> World:
    world, lake = filled
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", world.now.isoformat())
    monkeypatch.setenv("MARKET_DATA_LAKE_URL", str(lake))
    return world


def expected(symbol: str, span: str) -> pd.DataFrame:
    """The bars of the regular hours of settled days and of today, made by pandas; the one in progress is left out."""
    fives = read_bars(symbol, "5m").tz_convert(NEW_YORK).between_time("09:30", "15:55")
    early = (fives.index.strftime("%m-%d") == "11-27") & (fives.index.strftime("%H:%M") >= "13:00")
    fives = fives[~early].astype("float64")
    fives["turnover"] = fives["vwap"] * fives["volume"]
    made = fives.groupby(fives.index.date, group_keys=False).apply(
        lambda day: day.resample(span, origin=day.index[0].normalize() + timedelta(hours=9, minutes=30)).agg(
            {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "turnover": "sum",
             "trades": "sum"}
        )
    )  # fmt: skip
    made["vwap"] = made["turnover"] / made["volume"]
    in_progress = made.index > NOW - pd.Timedelta(span)
    return made[~in_progress]


def starts(bars: pd.DataFrame, day: int) -> list[str]:
    local = bars.index.tz_convert(NEW_YORK)
    return local[local.day == day].strftime("%H:%M").tolist()


@pytest.mark.parametrize("source", ["database", "lake"])
@pytest.mark.parametrize(("timeframe", "span"), [("5m", "5min"), ("15m", "15min"), ("1h", "1h"), ("4h", "4h")])
def test_bars_of_regular_hours_are_those_that_pandas_makes(
    world: World, timeframe: str, span: str, source: Any
) -> None:
    if (timeframe, source) in {("15m", "lake")}:
        return  # not synced here
    found = read_bars("AAPL", timeframe, session="regular", source=source)
    answer = expected("AAPL", span)
    assert found.index.tolist() == answer.index.tolist()
    for name in VALUES:
        np.testing.assert_allclose(found[name].astype("float64"), answer[name], rtol=1e-12, err_msg=name)


def test_an_hour_starts_at_half_past_nine_and_an_early_close_ends_the_last_one(world: World) -> None:
    hours = read_bars("AAPL", "1h", session="regular")
    assert starts(hours, 25) == ["09:30", "10:30", "11:30", "12:30", "13:30", "14:30", "15:30"]
    assert starts(hours, 26) == []  # Thanksgiving
    assert starts(hours, 27) == ["09:30", "10:30", "11:30", "12:30"]
    assert starts(hours, 30) == ["09:30", "10:30", "11:30"]  # that of 12:30 is in progress
    fours = read_bars("AAPL", "4h", session="regular")
    assert [starts(fours, day) for day in (25, 27, 30)] == [["09:30", "13:30"], ["09:30"], []]
    assert starts(read_bars("AAPL", "5m", session="regular"), 27)[-1] == "12:55"
    assert starts(read_bars("I:SPX", "1h", session="regular"), 27) == ["09:30", "10:30", "11:30", "12:30"]


def test_what_has_no_other_hours_and_day_bars_are_the_same(world: World) -> None:
    for symbol, timeframe in (("X:BTCUSD", "1h"), ("X:BTCUSD", "5m"), ("AAPL", "1d"), ("I:SPX", "1d")):
        both = [read_bars(symbol, timeframe, session=session) for session in ("regular", "extended")]
        pd.testing.assert_frame_equal(*both)
    assert len(read_bars("AAPL", "5m", session="extended")) == len(read_bars("AAPL", "5m"))


@pytest.mark.parametrize("source", ["database", "lake"])
def test_several_series_ranges_columns_and_pieces_are_parts_of_the_same(world: World, source: Any) -> None:
    options: dict[str, Any] = {"session": "regular", "source": source}
    asked = (["I:SPX", "X:BTCUSD", "AAPL"], ["1h", "5m"])
    together = read_bars(*asked, **options)
    for symbol in asked[0]:
        for timeframe in asked[1]:
            alone = read_bars(symbol, timeframe, **options)
            rows = together[(together["symbol"] == symbol) & (together["timeframe"] == timeframe)]
            pd.testing.assert_frame_equal(rows.drop(columns=["symbol", "timeframe"]), alone)
    pieces = list(iter_bars(*asked, rows=97, **options))
    assert max(map(len, pieces)) <= 97
    pd.testing.assert_frame_equal(pd.concat(pieces), together)

    hours = read_bars("AAPL", "1h", **options)
    begin, end = (datetime(2026, 11, 25, hour, 30, tzinfo=NEW_YORK) for hour in (10, 13))
    some = read_bars("AAPL", "1h", begin, end, columns=["vwap", "close"], **options)
    assert starts(some, 25) == ["10:30", "11:30", "12:30"]
    pd.testing.assert_frame_equal(some, hours.loc[some.index, ["vwap", "close"]])


def test_bars_as_of_an_instant_are_those_that_had_ended(world: World) -> None:
    stored_at = world.query("select min(ingested_at) as at from market_data.bars")[0]["at"]
    assert len(read_bars("AAPL", "1h", session="regular", as_of=stored_at))
    assert len(read_bars("AAPL", "1h", session="regular", as_of=stored_at - timedelta(seconds=1))) == 0  # type: ignore[operator]


def test_features_are_of_all_hours_so_there_are_none_of_bars_that_are_made_when_read(world: World) -> None:
    fives = read_records("AAPL", "5m", session="regular")
    pd.testing.assert_frame_equal(fives, read_records("AAPL", "5m").loc[fives.index])
    features = read_features("AAPL", ["5m", "1d"], session="regular", columns=["atr", "trend_direction"])
    assert (features["timeframe"] == "5m").sum() == len(fives)
    for read in (read_features, read_records):
        with pytest.raises(UsageError, match="no features of 1h bars of regular hours"):
            read("AAPL", ["5m", "1h"], session="regular")
    assert len(read_features("X:BTCUSD", "1h", session="regular")) == len(read_features("X:BTCUSD", "1h"))
    bars = read_records("AAPL", "1h", session="regular", columns=["close"])
    pd.testing.assert_frame_equal(bars, read_bars("AAPL", "1h", session="regular", columns=["close"]))
    with pytest.raises(UsageError, match="session must be one of extended, regular"):
        read_bars("AAPL", "5m", session="rth")  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def api(filled: tuple[World, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    world, _ = filled
    folder = tmp_path_factory.mktemp("project")
    with serve(Settings(database_url=world.database_url, project_root=folder, as_of=world.now)) as running:
        yield running


@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h", "4h", "1d"])
def test_over_http_they_are_the_same(world: World, api: Api, timeframe: str) -> None:
    symbols = ["AAPL", "X:BTCUSD", "I:SPX"]
    stored_at = world.query("select max(ingested_at) as at from market_data.bars")[0]["at"]
    for options in ({}, {"as_of": stored_at}, {"start": "2026-11-25", "end": "2026-11-30"}, {"adjusted": False}):
        arguments: dict[str, Any] = {"session": "regular", **options}
        ours = read_bars(symbols, timeframe, **arguments)
        theirs = Client(api.base).read_bars(symbols, timeframe, **arguments)
        pd.testing.assert_frame_equal(theirs, ours, rtol=1e-12)


def test_the_newest_records_over_http_are_those_of_regular_hours_page_by_page(world: World, api: Api) -> None:
    def page(**more: Any) -> dict[str, Any]:
        answer = api.get("/api/v1/bars/AAPL", timeframe="1h", session="regular", limit=3, **more)
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    newest = page()
    assert [bar["ts"] for bar in newest["bars"]] == [f"2026-11-30T{at}:30:00Z" for at in (14, 15, 16)]
    older = page(cursor=newest["cursor"])
    assert [bar["ts"] for bar in older["bars"]] == [f"2026-11-27T{at}:30:00Z" for at in (15, 16, 17)]
    assert api.get("/api/v1/bars/AAPL", timeframe="1h", limit=3).json()["bars"][-1]["ts"] == "2026-11-30T16:00:00Z"


def test_features_over_http_are_those_of_bars_in_regular_hours(world: World, api: Api) -> None:
    path = "/api/v1/features/quant/AAPL"
    found = api.get(path, timeframe="5m", session="regular", limit=200).json()["features"]
    assert [row["ts"] for row in found] == [
        f"{ts:%Y-%m-%dT%H:%M:%SZ}" for ts in read_bars("AAPL", "5m", session="regular").index[-200:]
    ]
    refused = api.get(path, timeframe="1h", session="regular")
    assert refused.status_code == 422
    assert "no features of 1h bars of regular hours" in refused.json()["detail"]
    assert api.get("/api/v1/features/quant/X:BTCUSD", timeframe="1h", session="regular").status_code == 200
    assert api.get("/api/v1/bars/AAPL", session="rth").status_code == 422


def test_a_ticker_that_is_not_followed_is_explained_over_http(api: Api) -> None:
    answers = {name: api.get(f"/api/v1/bars/{name}") for name in ("EURUSD", "O:SPY251219C00650000", "SPX")}
    assert {answer.status_code for answer in answers.values()} == {404}
    assert "Did you mean C:EURUSD?" in answers["EURUSD"].json()["detail"]
    assert "is an option" in answers["O:SPY251219C00650000"].json()["detail"]
    assert "Did you mean I:SPX?" in answers["SPX"].json()["detail"]
