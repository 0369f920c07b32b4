"""One flat file is read row by row: what is wrong with a row spoils its ticker's day and nothing else."""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.polygon.day_file import DayBars, read_day
from market_data_pipeline.polygon.flat_files import Dataset

HEADER = "ticker,volume,open,close,high,low,window_start,transactions"
SESSION = calendar_for(AssetClass.US_EQUITY).session_on(date(2026, 3, 10))
assert SESSION is not None
OPEN_NS = to_us(SESSION.start) * 1000
MINUTE_NS = 60 * 10**9


def row(
    ticker: str, minute: int, *, close: object = 11, volume: object = 100, low: object = 9, trades: object = 7
) -> str:
    return f"{ticker},{volume},10,{close},12,{low},{OPEN_NS + minute * MINUTE_NS},{trades}"


def read(tmp_path: Path, *rows: str, header: str = HEADER, dataset: Dataset = Dataset.MINUTES) -> DayBars:
    assert SESSION is not None
    file = tmp_path / "day.csv.gz"
    file.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    return read_day(file, dataset, SESSION, "2026-03-10.csv.gz")


def test_minutes_become_5m_bars_of_each_ticker(tmp_path: Path) -> None:
    bars = read(tmp_path, row("A", 0), row("A", 1, close=11.5, low=8), row("A", 5), row("B", 4, trades=""))
    assert bars.tickers == ("A", "B")
    assert bars.offsets.tolist() == [0, 2, 3]
    starts = (bars.ts_us - OPEN_NS // 1000) // 60_000_000
    assert starts.tolist() == [0, 5, 0]
    o, h, low, c, v, vwap, trades = bars.values
    assert (o[0], h[0], low[0], c[0], v[0], trades[0]) == (10, 12, 8, 11.5, 200, 14)
    assert np.isnan(vwap).all()
    assert np.isnan(trades[2])


def test_fractions_of_a_share_add_up_to_the_decimals_that_the_vendor_prints(tmp_path: Path) -> None:
    bars = read(tmp_path, *(row("A", minute, volume=0.1) for minute in range(3)))
    assert bars.values[4].tolist() == [0.3], "0.1 + 0.1 + 0.1 is 0.30000000000000004 in floats"


def test_rows_in_any_order_are_sorted(tmp_path: Path) -> None:
    rows = [row("B", 7), row("A", 3, close=11.25), row("A", 1)]
    shuffled, ordered = read(tmp_path, *rows), read(tmp_path, *sorted(rows))
    assert shuffled.tickers == ordered.tickers == ("A", "B")
    np.testing.assert_array_equal(shuffled.values, ordered.values)
    assert ordered.values[3].tolist() == [11.25, 11]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("BAD", 3, low=-1), "a price is not above 0"),
        (row("BAD", 3, close=13), "low <= open, close <= high"),
        (row("BAD", 3, volume=-5), "volume is infinite or below 0"),
        (row("BAD", 3, close=""), "a price is not above 0"),
        (row("BAD", 3, close="eleven"), "'eleven' is not a number"),
        (row("BAD", 3) + ",1", "9 values instead of 8"),
        (f"BAD,1,10,11,12,9,{OPEN_NS + 1},1", "is not the start of a minute"),
        (f"BAD,1,10,11,12,9,{OPEN_NS + 2000 * MINUTE_NS},1", "is not on 2026-03-10"),
        (f"BAD,1,10,11,12,9,{OPEN_NS}99999,1", "is not on 2026-03-10"),
        (row("BAD", 1, close=11.5), "comes twice, with different values"),
    ],
)
def test_a_row_that_cannot_be_used_refuses_its_tickers_day_and_no_other(tmp_path: Path, bad: str, says: str) -> None:
    bars = read(tmp_path, row("A", 0), row("A", 9), row("BAD", 1), row("BAD", 8), row("C", 2), bad)
    assert bars.tickers == ("A", "C")
    assert list(bars.refused) == ["BAD"]
    assert says in bars.refused["BAD"]
    assert "2026-03-10.csv.gz" in bars.refused["BAD"]


def test_an_exact_repeat_counts_once_and_is_told(tmp_path: Path) -> None:
    bars = read(tmp_path, row("A", 0), row("A", 0), row("B", 0))
    assert bars.values[4].tolist() == [100, 100]
    assert not bars.refused
    assert "a row of A came twice with the same values" in bars.odd["A"]


def test_a_count_of_trades_that_is_none_is_unknown(tmp_path: Path) -> None:
    bars = read(tmp_path, row("A", 0, trades=-3))
    assert np.isnan(bars.values[6]).all()
    assert "n is not a count" in bars.odd["A"]


def test_a_day_bar_starts_at_midnight(tmp_path: Path) -> None:
    assert SESSION is not None
    midnight = to_us(SESSION.day_start) * 1000
    rows = (f"A,1,10,11,12,9,{midnight},1", f"B,1,10,11,12,9,{midnight + MINUTE_NS},1")
    bars = read(tmp_path, *rows, dataset=Dataset.DAYS)
    assert bars.tickers == ("A",)
    assert "is not the start of a day" in bars.refused["B"]


def test_a_file_that_is_none_is_refused_whole(tmp_path: Path) -> None:
    assert SESSION is not None
    with pytest.raises(DataError, match=r"2026-03-10\.csv\.gz cannot be used .*; it should be gzipped CSV"):
        read(tmp_path, "A,1", header="ticker,volume")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path)
    with pytest.raises(DataError, match="holds another day than 2026-03-10: 1 of 1 rows, the first of 2026-03-09"):
        read(tmp_path, f"A,1,10,11,12,9,{OPEN_NS - 1440 * MINUTE_NS},1")
    file = tmp_path / "cut.csv.gz"
    whole = gzip.compress("\n".join([HEADER, *(row("A", minute) for minute in range(900)), ""]).encode())
    for content, why in ((whole[: len(whole) // 2], "Truncated compressed stream"), (b"no gzip", "header check")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=why):
            read_day(file, Dataset.MINUTES, SESSION, "cut.csv.gz")
