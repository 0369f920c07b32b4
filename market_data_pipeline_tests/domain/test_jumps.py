"""Jumps between closes that nobody explains are found, with the ratio they resemble, and no market's own move is."""

from __future__ import annotations

import csv
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline.domain.adjustments import Split, adjust
from market_data_pipeline.domain.bars import PRICES, bar_frame
from market_data_pipeline.domain.calendar import from_us, to_us
from market_data_pipeline.domain.jumps import jumps, resembling
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.view import to_ms
from market_data_pipeline.settings import PACKAGED_UNIVERSE
from market_data_pipeline.store.universe import load_universe_file
from market_data_pipeline_tests import recorded
from market_data_pipeline_tests.domain.strategies import EQUITIES

LATER = date(2030, 1, 1)
JUNE_9 = date(2022, 6, 9)


def days(first: date, closes: np.ndarray, volumes: np.ndarray) -> pd.DataFrame:
    sessions = EQUITIES.sessions(first, first + timedelta(days=2 * len(closes) + 10))[: len(closes)]
    starts = np.array([to_us(session.day_start) for session in sessions], dtype="int64")
    values = dict.fromkeys((*PRICES, "vwap"), closes)
    return bar_frame(starts, {**values, "volume": volumes, "trades": np.full(len(closes), np.nan)})


def walk(seed: int, last: float, count: int, daily: float) -> np.ndarray:
    """Return closes that end at `last`."""
    steps = np.random.default_rng(seed).standard_t(4, count - 1) * daily
    closes: np.ndarray = last * np.exp(np.r_[-steps[::-1].cumsum()[::-1], 0.0])
    return closes


def reused_ticker() -> pd.DataFrame:
    """META's day bars: a fund until January 2022, which closed at 12.31, and from 9 June on another company."""
    fund = days(date(2021, 7, 1), walk(1, 12.31, 148, 0.014), np.full(148, 3e5))
    after = np.r_[184.0, 184.0 * np.exp(np.random.default_rng(2).standard_t(4, 59).cumsum() * 0.02)]
    return pd.concat((fund, days(JUNE_9, after, np.full(60, 3e7))), ignore_index=True)


def test_a_ticker_given_to_another_security_is_found() -> None:
    (found,) = jumps(reused_ticker())
    assert from_us(found.ts_us) == datetime(2022, 6, 9, 4, tzinfo=UTC)
    assert str(found) == "from 12.31 to 184, which resembles a 1:15 split"


@pytest.mark.parametrize(
    ("factor", "ratio"),
    [
        (0.5, "2:1"),
        (0.345, "3:1"),
        (0.1, "10:1"),
        (8.2, "1:8"),
        (2 / 3, "3:2"),
        (0.52, "2:1"),
        (0.56, None),
        (1.1, None),
    ],
)
def test_the_ratio_is_that_of_new_shares_for_old(factor: float, ratio: str | None) -> None:
    assert resembling(factor) == ratio


def test_the_largest_jump_comes_first() -> None:
    closes = np.r_[np.full(30, 100.0), np.full(30, 50.0), np.full(30, 5.0)]
    found = jumps(days(date(2025, 1, 2), closes, np.full(90, 1e6)))
    assert [jump.resembles for jump in found] == ["10:1", "2:1"]


@pytest.mark.parametrize(
    ("closes", "last_volume"),
    [
        ([*walk(3, 100.0, 40, 0.02), 48.0], 2e7),  # a crash: twenty times the shares
        ([*walk(3, 100.0, 40, 0.02), 70.0, 99.0], 1e6),  # a print that the next session takes back
        ([*walk(3, 100.0, 40, 0.02), 84.0], 1e6),
        ([5.0, 5.1], 1e6),
        ([5.0, 7.2], 1e6),  # 44 % up
        ([100.0, 58.0], 1e6),  # like no split
        ([100.0, 101.0, 50.0], 2e7),  # a crash
        ([5.0], 1e6),
        ([], 1e6),
    ],
)
def test_moves_of_the_market_and_wrong_prints_are_not_reported(closes: list[float], last_volume: float) -> None:
    volumes = np.full(len(closes), 1e6)
    volumes[-1:] = last_volume
    assert jumps(days(date(2025, 1, 2), np.array(closes, dtype="float64"), volumes)) == []


@pytest.mark.parametrize(
    ("closes", "like"),
    [([100.0, 50.0], "2:1"), ([7.0, 7.1, 0.69], "10:1"), ([3.0, 30.0, 30.5], "1:10"), ([12.0, 184.0], "1:15")],
)
def test_a_jump_like_a_split_is_found_before_there_are_habits_to_compare_it_with(
    closes: list[float], like: str
) -> None:
    (found,) = jumps(days(date(2025, 1, 2), np.array(closes), np.full(len(closes), 1e6)))
    assert found.resembles == like


def read_recorded(file: Path) -> pd.DataFrame:
    rows = pd.read_csv(file)
    unknown = np.full(len(rows), np.nan)
    values = {name: rows[name].to_numpy(dtype="float64") for name in (*PRICES, "volume")}
    return bar_frame(rows["window_start"].to_numpy() // 1000, {**values, "vwap": unknown, "trades": unknown})


def recorded_splits(ticker: str, folder: Path) -> list[Split]:
    rows = csv.DictReader((folder / "splits.csv").read_text().splitlines())
    return [
        Split(date.fromisoformat(row["execution_date"]), float(row["split_from"]), float(row["split_to"]))
        for row in rows
        if row["ticker"] == ticker
    ]


@pytest.mark.parametrize(
    ("ticker", "folder"),
    [
        pytest.param("AAPL", recorded.SAMPLE, id="sample"),
        *(
            pytest.param(each, recorded.FULL, marks=recorded.needs_full, id=each)
            for each in ("AAPL", "SPY", "QQQ", "GOOG")
        ),
    ],
)
def test_in_recorded_bars_each_missing_split_is_found_and_nothing_else(ticker: str, folder: Path) -> None:
    """AAPL lost 52 % on 29 September 2000, and GOOG's close of 30 September 2008 was corrected by the exchange."""
    bars, splits = read_recorded(folder / "day" / f"{ticker}.csv.gz"), recorded_splits(ticker, folder)
    assert jumps(adjust(bars, splits, LATER)) == []
    within = [
        split for split in splits if bars["ts"].iloc[0].date() < split.execution_date <= bars["ts"].iloc[-1].date()
    ]
    large = {split.execution_date for split in within if not 0.9 < split.factor < 1.1}
    assert {EQUITIES.session_date(from_us(jump.ts_us)) for jump in jumps(bars)} == large


def test_in_the_packaged_universe_each_missing_split_is_found_and_nothing_else() -> None:
    market, first, last = SyntheticMarket(), datetime(2025, 11, 1, tzinfo=UTC), datetime(2026, 11, 28, tzinfo=UTC)
    for ticker in load_universe_file(PACKAGED_UNIVERSE)[Tier.CRITICAL]:
        made = market.days(ticker, to_ms(first), to_ms(last))
        columns = {"open": made.o, "high": made.h, "low": made.low, "close": made.c, "volume": made.v}
        bars = bar_frame(made.t * 1000, {**columns, "vwap": made.vw, "trades": made.n})
        splits = [Split(*row[1:4]) for row in market.splits() if row.ticker == ticker]
        assert jumps(adjust(bars, splits, last.date())) == []
        known = {split.execution_date for split in splits if first.date() < split.execution_date < last.date()}
        assert {EQUITIES.session_date(from_us(jump.ts_us)) for jump in jumps(bars)} == known
