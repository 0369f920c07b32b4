"""Recorded bars are served as they are."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.sandbox.replay import Replay
from market_data_pipeline_tests.recorded import SAMPLE
from market_data_pipeline_tests.sandbox.vendor import MINUTE, NEW_YORK, Vendor, ms, vendor

COLUMNS = "ticker,volume,open,close,high,low,window_start,transactions"
SPLIT = (2014, 6, 9)


def recorded(kind: str) -> list[dict[str, float]]:
    """Return the sample's rows as the wire names them."""
    with gzip.open(SAMPLE / kind / "AAPL.csv.gz", "rt", encoding="utf-8") as stream:
        return [
            {
                "v": float(row["volume"]),
                "o": float(row["open"]),
                "c": float(row["close"]),
                "h": float(row["high"]),
                "l": float(row["low"]),
                "t": int(row["window_start"]) // 1_000_000,
            }
            for row in csv.DictReader(stream)
        ]


def write(folder: Path, kind: str, *rows: str) -> Path:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / kind / "bars.csv.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join([COLUMNS, *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def replay() -> Iterator[Vendor]:
    with vendor(Replay(SAMPLE), now=datetime(2021, 4, 1, 12, tzinfo=NEW_YORK)) as client:
        yield client


def test_minutes_and_days_equal_the_files(replay: Vendor) -> None:
    for kind in ("minute", "day"):
        rows = recorded(kind)
        assert replay.bars("AAPL", f"1/{kind}", rows[0]["t"], rows[-1]["t"]) == rows


def test_coarser_bars_are_made_of_the_recorded_minutes(replay: Vendor) -> None:
    rows, step = recorded("minute"), 5 * MINUTE
    for bar in replay.bars("AAPL", "5/minute", "2014-06-05", "2014-06-09"):
        parts = [row for row in rows if row["t"] // step * step == bar["t"]]
        assert bar == {
            "v": sum(p["v"] for p in parts),
            "o": parts[0]["o"],
            "c": parts[-1]["c"],
            "h": max(p["h"] for p in parts),
            "l": min(p["l"] for p in parts),
            "t": bar["t"],
        }


def test_what_was_not_recorded_has_no_key(replay: Vendor) -> None:
    page = replay.page("AAPL", "1/day", "2014-06-09", "2014-06-09")
    assert list(page["results"][0]) == ["v", "o", "c", "h", "l", "t"]


def test_adjusted_prices_follow_the_recorded_splits() -> None:
    with vendor(Replay(SAMPLE), now=datetime(2014, 6, 20, 12, tzinfo=NEW_YORK)) as client:
        raw = client.bars("AAPL", "1/day", "2014-06-05", "2014-06-10")
        adjusted = client.bars("AAPL", "1/day", "2014-06-05", "2014-06-10", adjusted="true")
    for bar, new in zip(raw, adjusted, strict=True):
        factor = 7 if bar["t"] < ms(*SPLIT) else 1
        assert new["c"] == round(bar["c"] / factor, 4)
        assert new["v"] == bar["v"] * factor


def test_splits_appear_two_weeks_before_their_day() -> None:
    def listed(day: int) -> Any:
        with vendor(Replay(SAMPLE), now=datetime(2014, 5, day, 12, tzinfo=NEW_YORK)) as client:
            return client.get("/v3/reference/splits", **{"execution_date.gte": "2014-01-01", "limit": 1000}).json()[
                "results"
            ]

    assert listed(25) == []
    (row,) = listed(26)
    row.pop("id")
    assert row == {"execution_date": "2014-06-09", "split_from": 1, "split_to": 7, "ticker": "AAPL"}


def test_the_clock_hides_what_comes_after_it() -> None:
    with vendor(Replay(SAMPLE), now=datetime(2014, 6, 6, 11, 0, tzinfo=NEW_YORK)) as client:
        rows = [row for row in recorded("minute") if row["t"] < ms(2014, 6, 6, 11)]
        assert client.bars("AAPL", "1/minute", "2014-06-01", "2014-06-30") == rows
        days = client.bars("AAPL", "1/day", "2014-06-01", "2014-06-30")
        assert [day["t"] for day in days] == [ms(2014, 6, n) for n in (2, 3, 4, 5, 6)]
        today = [row for row in rows if row["t"] >= ms(2014, 6, 6)]
        assert days[-1]["v"] == sum(row["v"] for row in today)


def test_a_ticker_with_one_kind_of_bars_has_none_of_the_other(tmp_path: Path) -> None:
    write(tmp_path, "day", f"ONLYD,1500000.0,10,11,12,9,{ms(2014, 6, 5)}000000,7")
    write(tmp_path, "minute", f"ONLYM,100.0,10,11,12,9,{ms(2014, 6, 5, 10)}000000,7")
    with vendor(Replay(tmp_path)) as client:
        assert client.page("ONLYD", "1/minute", "2014-06-05", "2014-06-05")["resultsCount"] == 0
        assert client.page("ONLYM", "1/day", "2014-06-05", "2014-06-05")["resultsCount"] == 0
        assert client.bars("ONLYM", "1/hour", "2014-06-05", "2014-06-05")[0]["n"] == 7
        text = client.get("/v2/aggs/ticker/ONLYD/range/1/day/2014-06-05/2014-06-05").text
        assert '"results":[{"v":1.5e+06,"o":10,"c":11,"h":12,"l":9,"t":' in text


def test_prices_of_any_precision_are_served_exactly(tmp_path: Path) -> None:
    start = ms(2014, 6, 5)
    write(tmp_path, "day", f"X:TINY,123456789.12345678,0.00001234,0.00001235,0.1,0.000001,{start}000000,")
    with vendor(Replay(tmp_path)) as client:
        (bar,) = client.bars("X:TINY", "1/day", start, start)
        assert bar == {"v": 123456789.12345678, "o": 1.234e-05, "c": 1.235e-05, "h": 0.1, "l": 1e-06, "t": start}


def test_a_folder_without_bars_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{tmp_path} holds no recorded bars"):
        Replay(tmp_path)
    (tmp_path / "day").mkdir()
    with pytest.raises(ConfigurationError, match=r"it needs \*\.csv\.gz files .* in us_stocks_sip/day_aggs_v1/ or"):
        Replay(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "broken.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(ConfigurationError, match=r"broken\.csv\.gz is not a flat file"):
        Replay(tmp_path)
    (tmp_path / "day" / "broken.csv.gz").unlink()
    with gzip.open(tmp_path / "day" / "short.csv.gz", "wt") as stream:
        stream.write("ticker,open\nA,1\n")
    with pytest.raises(ConfigurationError, match=r"short\.csv\.gz is not a flat file"):
        Replay(tmp_path)


def test_a_row_that_comes_twice_counts_once(tmp_path: Path) -> None:
    start = ms(2014, 6, 5)
    again = [f"TWICE,{volume},10,11,12,9,{start}000000,7" for volume in (100, 100, 250)]
    with vendor(Replay(write(tmp_path, "day", *again, f"B,5,10,11,12,9,{start}000000,7"))) as client:
        assert [bar["v"] for bar in client.bars("TWICE", "1/day", start, start)] == [250]
        assert [bar["v"] for bar in client.bars("B", "1/day", start, start)] == [5]


def test_the_vendors_own_folders_are_read(tmp_path: Path) -> None:
    for day in (5, 6):
        for kind, start in (("day", ms(2014, 6, day)), ("minute", ms(2014, 6, day, 10))):
            folder = f"us_stocks_sip/{kind}_aggs_v1/2014/06"
            rows = [f"{ticker},{day},10,11,12,9,{start}000000,7" for ticker in ("AA", "BB")]
            with gzip.open(write(tmp_path, folder) / folder / f"2014-06-0{day}.csv.gz", "wt") as stream:
                stream.write("\n".join([COLUMNS, *rows]) + "\n")
    replay = Replay(tmp_path)
    assert replay.tickers() == ("AA", "BB")
    with vendor(replay) as client:
        for kind in ("day", "minute"):
            assert [bar["v"] for bar in client.bars("BB", f"1/{kind}", "2014-06-05", "2014-06-06")] == [5, 6]


def test_a_bad_list_of_splits_is_named(tmp_path: Path) -> None:
    write(tmp_path, "day", f"A,100,10,11,12,9,{ms(2014, 6, 5)}000000,7")
    (tmp_path / "splits.csv").write_text("ticker,execution_date\nA,2014-06-05\n")
    with pytest.raises(ConfigurationError, match=r"splits\.csv is not a list of splits"):
        Replay(tmp_path)
