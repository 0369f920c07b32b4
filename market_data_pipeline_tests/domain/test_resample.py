"""Coarser bars against loops and worked examples, on the grid of the exchange's clock."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import COLUMNS, TS_DTYPE, VALUES, bar_frame, empty, ts_us
from market_data_pipeline.domain.calendar import SessionCalendar, calendar_for, from_us, to_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.resample import bucket_start_us, resample
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain.strategies import COARSE, CRYPTO, EQUITIES, bar_frames, instants, laws, new_york

Sample = tuple[pd.DataFrame, AssetClass]


def literal_bucket(ts: datetime, timeframe: Timeframe, calendar: SessionCalendar) -> datetime:
    """The grid read off a clock: from the last 04:00 New York (00:00 UTC) on, in steps of absolute time."""
    local = ts.astimezone(calendar.tz)
    anchor = local.replace(hour=4 if calendar is EQUITIES else 0, minute=0, second=0, microsecond=0, fold=0)
    if local.replace(tzinfo=None) < anchor.replace(tzinfo=None):
        anchor = (anchor.replace(tzinfo=None) - timedelta(days=1)).replace(tzinfo=calendar.tz)
    start = anchor.astimezone(UTC)
    return start + (ts - start) // timeframe.span * timeframe.span


def literal_resample(bars: pd.DataFrame, timeframe: Timeframe, calendar: SessionCalendar) -> list[dict[str, object]]:
    """Resampling as one would do it with pencil and paper, bar by bar."""
    buckets: dict[datetime, list[dict[Any, Any]]] = {}
    for row in bars.to_dict("records"):
        buckets.setdefault(literal_bucket(row["ts"].to_pydatetime(), timeframe, calendar), []).append(row)
    made: list[dict[str, object]] = []
    for start, rows in buckets.items():
        volume = sum(row["volume"] for row in rows)
        made.append(
            {
                "ts": start,
                "open": rows[0]["open"],
                "high": max(row["high"] for row in rows),
                "low": min(row["low"] for row in rows),
                "close": rows[-1]["close"],
                "volume": volume,
                "vwap": sum(row["vwap"] * row["volume"] for row in rows) / volume if volume else math.nan,
                "trades": sum(row["trades"] for row in rows),
            }
        )
    return made


@laws
@given(st.sampled_from([EQUITIES, CRYPTO]), st.sampled_from(COARSE), st.lists(instants, max_size=30))
def test_a_bucket_starts_on_the_grid_of_the_exchanges_clock(
    calendar: SessionCalendar, timeframe: Timeframe, some: list[datetime]
) -> None:
    found = bucket_start_us(np.array([to_us(ts) for ts in some], dtype="int64"), timeframe, calendar)
    assert [from_us(us) for us in found] == [literal_bucket(ts, timeframe, calendar) for ts in some]


@laws
@given(bar_frames(), st.sampled_from(COARSE))
def test_resampling_does_what_pencil_and_paper_do(sample: Sample, timeframe: Timeframe) -> None:
    bars, calendar = sample[0], calendar_for(sample[1])
    made = resample(bars, timeframe, calendar)
    assert tuple(made.columns) == COLUMNS
    assert isinstance(made.index, pd.RangeIndex)
    assert [str(kind) for kind in made.dtypes] == [TS_DTYPE] + ["float64"] * len(VALUES)
    expected = literal_resample(bars, timeframe, calendar)
    assert [ts.to_pydatetime() for ts in made["ts"]] == [row["ts"] for row in expected]
    for name in VALUES:
        np.testing.assert_allclose(made[name], np.array([row[name] for row in expected], dtype=float), rtol=1e-12)


@laws
@given(bar_frames(gaps=False), st.sampled_from(COARSE))
def test_volume_and_trades_are_preserved_and_prices_stay_within_their_envelope(
    sample: Sample, timeframe: Timeframe
) -> None:
    bars, calendar = sample[0], calendar_for(sample[1])
    made = resample(bars, timeframe, calendar)
    assert made["volume"].sum() == bars["volume"].sum()
    assert made["trades"].sum() == bars["trades"].sum()
    assert (made["volume"] * made["vwap"]).sum() == pytest.approx((bars["volume"] * bars["vwap"]).sum(), rel=1e-12)
    assert made["high"].max() == bars["high"].max() or bars.empty
    assert made["low"].min() == bars["low"].min() or bars.empty
    for name in ("open", "close"):
        assert ((made["low"] <= made[name]) & (made[name] <= made["high"])).all()
    assert ((made["low"] - 1e-9 <= made["vwap"]) & (made["vwap"] <= made["high"] + 1e-9)).all()
    assert made["ts"].is_monotonic_increasing
    assert made["ts"].is_unique


@laws
@given(bar_frames())
def test_an_hour_is_the_same_resampled_from_five_or_from_fifteen_minutes(sample: Sample) -> None:
    bars, calendar = sample[0], calendar_for(sample[1])
    direct = resample(bars, Timeframe.H1, calendar)
    by_steps = resample(resample(bars, Timeframe.M15, calendar), Timeframe.H1, calendar)
    exact = [name for name in COLUMNS if name != "vwap"]
    pd.testing.assert_frame_equal(direct[exact], by_steps[exact], check_exact=True)


@laws
@given(bar_frames(), st.sampled_from(COARSE), st.integers(0, 8 * 24 * 60))
def test_a_bucket_that_is_over_never_changes_as_later_bars_arrive(
    sample: Sample, timeframe: Timeframe, minutes: int
) -> None:
    bars, calendar = sample[0], calendar_for(sample[1])
    if bars.empty:
        return
    until = bars["ts"].iloc[0].to_pydatetime() + timedelta(minutes=minutes)
    known_then = bars[bars["ts"] < until].reset_index(drop=True)
    then, now = (resample(known, timeframe, calendar) for known in (known_then, bars))
    over_then, over_now = (made[made["ts"] + timeframe.span <= until].reset_index(drop=True) for made in (then, now))
    pd.testing.assert_frame_equal(over_then, over_now, check_exact=True)


def minutes_of(day: date) -> pd.DataFrame:
    start = EQUITIES.midnight(day)
    slots = EQUITIES.slots_between(Timeframe.M5, Interval(start, start + timedelta(days=1)))
    return bar_frame(slots, {name: np.ones(len(slots)) for name in VALUES})


@pytest.mark.parametrize("day", [date(2025, 7, 15), date(2025, 1, 15), date(2025, 3, 10), date(2025, 11, 3)])
def test_four_hour_bars_start_at_the_same_new_york_hours_in_summer_and_winter(day: date) -> None:
    made = resample(minutes_of(day), Timeframe.H4, EQUITIES)
    assert made["ts"].dt.tz_convert("America/New_York").dt.hour.tolist() == [4, 8, 12, 16]
    assert made["volume"].tolist() == [48.0] * 4


def test_an_early_closes_last_four_hour_bar_holds_one_hour_and_is_over_at_eight() -> None:
    made = resample(minutes_of(date(2025, 11, 28)), Timeframe.H4, EQUITIES)
    assert made["volume"].tolist() == [48.0, 48.0, 48.0, 12.0]
    assert made["ts"].iloc[-1] + Timeframe.H4.span == new_york("2025-11-28 20:00")


def test_vwap_and_trades_are_unknown_when_any_bar_lacks_them_and_vwap_when_nothing_traded() -> None:
    values = {name: np.ones(6) for name in VALUES}
    values["vwap"] = np.array([1.0, 2.0, 3.0, np.nan, 5.0, 6.0])
    values["trades"] = np.array([1.0, np.nan, 1.0, 1.0, 1.0, 1.0])
    start = to_us(new_york("2025-07-15 09:30"))
    made = resample(bar_frame(start + np.arange(6) * 300_000_000, values), Timeframe.M15, EQUITIES)
    np.testing.assert_array_equal(made["vwap"], [2.0, np.nan])
    np.testing.assert_array_equal(made["trades"], [np.nan, 3.0])
    values["volume"] = np.zeros(6)
    idle = resample(bar_frame(start + np.arange(6) * 300_000_000, values), Timeframe.M15, EQUITIES)
    assert idle["vwap"].isna().all()


def test_fractions_of_a_coin_have_a_vwap() -> None:
    values = {name: np.full(3, 0.25) for name in VALUES} | {"vwap": np.array([100.0, 200.0, 300.0])}
    start = to_us(datetime(2025, 7, 15, tzinfo=UTC))
    made = resample(bar_frame(start + np.arange(3) * 300_000_000, values), Timeframe.M15, CRYPTO)
    assert (made["volume"].item(), made["vwap"].item()) == (0.75, 200.0)


def test_resampling_no_bars_gives_no_bars() -> None:
    pd.testing.assert_frame_equal(resample(empty(), Timeframe.H1, EQUITIES), empty())


def test_day_bars_are_never_resampled_from_minutes() -> None:
    with pytest.raises(ValueError, match="1d bars are fetched"):
        resample(minutes_of(date(2025, 7, 15)), Timeframe.D1, EQUITIES)


def test_resampling_leaves_its_input_as_it_was() -> None:
    bars = minutes_of(date(2025, 7, 15))
    before = bars.copy(deep=True)
    resample(bars, Timeframe.M15, EQUITIES)
    pd.testing.assert_frame_equal(bars, before)
    assert ts_us(bars)[0] == to_us(new_york("2025-07-15 04:00"))
