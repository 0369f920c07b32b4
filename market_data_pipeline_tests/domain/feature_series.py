"""Bars to try features on: random series over real session hours, real samples, and what "the same features" means."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import bar_frame, ts_us
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain.answers import feature_oracle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from market_data_pipeline.domain.features.definitions import Feature

NEW_YORK = ZoneInfo("America/New_York")
UTC = ZoneInfo("UTC")
KINDS = ("walk", "cents", "constant", "halts", "ramp", "steps", "huge", "tiny", "mixed")


class Case(NamedTuple):
    """One series to compute."""

    bars: pd.DataFrame
    timeframe: Timeframe
    asset_class: AssetClass


def frame(ts: np.ndarray, high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray) -> pd.DataFrame:
    """Return a bar frame; the columns that no feature reads are NaN."""
    unused = np.full(len(ts), np.nan)
    values = {"open": unused, "high": high, "low": low, "close": close, "volume": volume}
    return bar_frame(
        np.asarray(ts, dtype="int64"),
        {n: np.asarray(v, dtype="float64") for n, v in values.items()} | {"vwap": unused, "trades": unused},
    )


def flat_frame(starts: list[datetime], close: list[float], volume: float = 100.0) -> pd.DataFrame:
    """Return bars whose high and low are their close."""
    ts = np.array([int(start.timestamp()) * 1_000_000 for start in starts], dtype="int64")
    prices = np.array(close, dtype="float64")
    return frame(ts, prices, prices, prices, np.full(len(ts), volume))


def slots_us(timeframe: Timeframe, asset_class: AssetClass, first: date, sessions: int, early: set[int]) -> np.ndarray:
    """Return the starts of all bars of `sessions` consecutive sessions; those in `early` close at 17:00 New York."""
    starts: list[int] = []
    day, held = first, 0
    while held < sessions:
        round_the_clock = asset_class in (AssetClass.CRYPTO, AssetClass.FOREX)
        if asset_class is AssetClass.CRYPTO or day.weekday() < 5:
            tz = UTC if round_the_clock else NEW_YORK
            hours = (0, 24) if round_the_clock else (4, 17 if held in early else 20)
            midnight = int(datetime.combine(day, time(), tz).timestamp())
            if timeframe is Timeframe.D1:
                starts.append(midnight)
            else:
                opening = int(datetime.combine(day, time(hours[0]), tz).timestamp())
                starts.extend(range(opening, opening + (hours[1] - hours[0]) * 3600, timeframe.minutes * 60))
            held += 1
        day += timedelta(days=1)
    return np.array(starts, dtype="int64") * 1_000_000


def prices(rng: np.random.Generator, kind: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return high, low and close of `n` bars."""
    move = rng.normal(0, rng.choice([1e-4, 3e-3, 3e-2]), n)
    if kind == "constant":
        move[:] = 0
    if kind == "halts":  # periods without any movement
        for start in rng.integers(0, max(n, 1), 4):
            move[start : start + rng.integers(20, 150)] = 0
    close = rng.uniform(5, 500) * np.exp(np.cumsum(move))
    if kind == "mixed" and n:  # jumps by orders of magnitude
        close *= 10.0 ** np.repeat(rng.integers(-3, 4, n // 40 + 1), 40)[:n]
    if kind == "ramp":
        close = rng.integers(1, 1000) + np.arange(n, dtype="float64")
    if kind == "steps":  # few distinct prices: ties everywhere
        close = rng.integers(99, 103, n).astype("float64")
    close *= {"huge": 1e120, "tiny": 1e-120}.get(kind, 1.0)
    spread = np.zeros(n) if kind == "constant" else rng.uniform(0, 0.01, n) * (move != 0)
    high, low = close * (1 + spread), close * (1 - spread)
    if kind == "cents":
        high, low, close = (np.round(x, 2) for x in (high, low, close))
    return high, low, close


def random_bars(
    seed: int, kind: str, timeframe: Timeframe, asset_class: AssetClass, count: int, *, first: date, presence: float
) -> pd.DataFrame:
    """Return at most `count` random bars; each slot of a session has one with probability `presence`."""
    rng = np.random.default_rng(seed)
    per_session = 1 if timeframe is Timeframe.D1 else 16 * 60 // timeframe.minutes
    sessions = int(count / (per_session * presence) * 1.3) + 2
    ts = slots_us(timeframe, asset_class, first, sessions, set(rng.integers(0, sessions, 2)))
    ts = ts[rng.random(len(ts)) < presence][:count]
    volume = rng.integers(0, 5_000, len(ts)).astype("float64")
    volume[rng.random(len(ts)) < rng.choice([0, 0.2, 0.97])] = 0
    if asset_class is AssetClass.INDEX:
        volume[:] = np.nan
    return frame(ts, *prices(rng, kind, len(ts)), volume)


@st.composite
def cases(draw: st.DrawFn, min_bars: int, max_bars: int, kinds: tuple[str, ...] = KINDS) -> Case:
    """Draw a series; half of them start a few days before New York's clocks change."""
    timeframe = draw(st.sampled_from(list(Timeframe)))
    asset_class = draw(st.sampled_from(list(AssetClass)))
    bars = random_bars(
        draw(st.integers(0, 2**32)),
        draw(st.sampled_from(kinds)),
        timeframe,
        asset_class,
        draw(st.integers(min_bars, max_bars) | st.just(max_bars)),
        first=draw(
            st.sampled_from([date(2024, 3, 8), date(2024, 10, 31)]) | st.dates(date(2000, 1, 1), date(2024, 1, 1))
        ),
        presence=draw(st.sampled_from([1.0, 0.9, 0.3, 0.05] if timeframe.minutes <= 60 else [1.0, 0.9])),
    )
    return Case(bars, timeframe, asset_class)


def oracle_frame(case: Case) -> pd.DataFrame:
    """Return the oracle's answer with the columns of the code under test, as objects and None for NULL."""
    bars = case.bars
    rows = zip(
        [ts.to_pydatetime() for ts in bars["ts"]],
        *(bars[n].tolist() for n in ("high", "low", "close", "volume")),
        strict=True,
    )
    answer = feature_oracle.features(list(rows), str(case.timeframe), str(case.asset_class))
    return pd.DataFrame({f.name: pd.Series([row[f.name] for row in answer], dtype=object) for f in FEATURES})


def assert_same(
    got: pd.DataFrame, expected: pd.DataFrame, *, tolerance: float = 1e-9, features: Sequence[Feature] = FEATURES
) -> None:
    """Assert that floats agree to `tolerance` relative and that labels, booleans and NULLs are equal."""
    assert len(got) == len(expected)
    for feature in features:
        ours, theirs = got[feature.name], expected[feature.name]
        missing = theirs.isna().to_numpy(dtype=bool)
        np.testing.assert_array_equal(ours.isna().to_numpy(dtype=bool), missing, err_msg=f"{feature.name}: NULLs")
        a, b = ours.to_numpy(dtype=object)[~missing], theirs.to_numpy(dtype=object)[~missing]
        if feature.dtype == "float":
            a, b = a.astype("float64"), b.astype("float64")
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=0, err_msg=feature.name)
        else:
            assert a.tolist() == b.tolist(), feature.name


def real_series(root: Path, folder: str, symbol: str) -> Case:
    """Return split-adjusted real bars: day bars as they are, minute bars as 5-minute ones."""
    rows = pd.read_csv(root / folder / f"{symbol}.csv.gz")
    splits = pd.read_csv(root / "splits.csv")
    ts = rows["window_start"].to_numpy() // 1000
    factor = np.ones(len(rows))
    for split in splits[splits["ticker"] == symbol].itertuples():
        midnight = datetime.combine(date.fromisoformat(split.execution_date), time(), NEW_YORK).timestamp() * 1_000_000
        factor[ts < midnight] *= split.split_from / split.split_to
    high, low, close = (rows[name].to_numpy("float64") * factor for name in ("high", "low", "close"))
    volume = rows["volume"].to_numpy("float64") / factor
    if folder == "day":
        return Case(frame(ts, high, low, close, volume), Timeframe.D1, AssetClass.US_EQUITY)
    minutes = pd.DataFrame({"ts": ts // 300_000_000 * 300_000_000, "h": high, "l": low, "c": close, "v": volume})
    fives = minutes.groupby("ts").agg({"h": "max", "l": "min", "c": "last", "v": "sum"})
    return Case(
        frame(fives.index.to_numpy(), *(fives[n].to_numpy() for n in "hlcv")), Timeframe.M5, AssetClass.US_EQUITY
    )


def take(bars: pd.DataFrame, start: int, stop: int) -> pd.DataFrame:
    """Return bars[start:stop] as a frame of its own, as if nothing else had ever been read."""
    part = bars.iloc[start:stop]
    return frame(ts_us(part), *(part[n].to_numpy(copy=True) for n in ("high", "low", "close", "volume")))
