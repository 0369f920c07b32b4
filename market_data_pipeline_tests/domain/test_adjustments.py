"""Split adjustment against the adjusted closes that vendors publish, and its rules for the list of splits."""

from __future__ import annotations

import csv
from datetime import date, timedelta
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.adjustments import Split, adjust, digest, in_force, price_factor
from market_data_pipeline.domain.bars import PRICES, VALUES, bar_frame, ts_us
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.resample import resample
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain.strategies import COARSE, EQUITIES, bar_frames, days, laws, new_york
from market_data_pipeline_tests.recorded import SAMPLE

Sample = tuple[pd.DataFrame, AssetClass]
LATER = date(2030, 1, 1)
terms = st.sampled_from([1.0, 2.0, 3.0, 4.0, 8.0, 10.0, 1.5, 25.0])
splits = st.lists(st.builds(Split, days, terms, terms), max_size=5)


def one_bar(text: str, price: float, volume: float) -> pd.DataFrame:
    values = {name: np.full(1, price) for name in VALUES} | {"volume": np.full(1, volume), "trades": np.full(1, 7.0)}
    return bar_frame(np.array([to_us(new_york(text))]), values)


# Raw closes as printed on the last day at the old terms, and the adjusted ones that data vendors show since
# (Yahoo Finance, "close price adjusted for splits").
@pytest.mark.parametrize(
    ("split", "last_day", "raw", "adjusted"),
    [
        (Split(date(2020, 8, 31), 1, 4), "2020-08-28", 499.23, 124.8075),  # AAPL
        (Split(date(2022, 8, 25), 1, 3), "2022-08-24", 891.29, 297.096667),  # TSLA
        (Split(date(2024, 6, 10), 1, 10), "2024-06-07", 1208.88, 120.888),  # NVDA
        (Split(date(2021, 8, 2), 8, 1), "2021-07-30", 12.95, 103.60),  # GE, reverse
    ],
)
def test_closes_before_a_split_become_what_vendors_show_since(
    split: Split, last_day: str, raw: float, adjusted: float
) -> None:
    bar = adjust(one_bar(f"{last_day} 00:00", raw, 1000.0), [split], LATER)
    for name in (*PRICES, "vwap"):
        assert bar[name].item() == pytest.approx(adjusted, rel=1e-6)
    assert bar["volume"].item() == pytest.approx(1000.0 * split.split_to / split.split_from)
    assert bar["trades"].item() == 7.0


def test_a_split_takes_effect_at_midnight_in_new_york_on_its_day() -> None:
    split = Split(date(2024, 6, 10), 1, 10)
    instants = [new_york("2024-06-09 23:59"), new_york("2024-06-10 00:00"), new_york("2024-06-10 04:00")]
    factor = price_factor(np.array([to_us(ts) for ts in instants]), [split], LATER)
    assert factor.tolist() == [0.1, 1.0, 1.0]


def test_a_listed_split_is_ignored_until_its_day_comes() -> None:
    bars = one_bar("2024-06-07 00:00", 1208.88, 1000.0)
    split = Split(date(2024, 6, 10), 1, 10)
    assert adjust(bars, [split], date(2024, 6, 9)) is bars
    assert digest([split], date(2024, 6, 9)) == digest([], LATER) == ""
    assert adjust(bars, [split], date(2024, 6, 10))["close"].item() == pytest.approx(120.888)


def test_a_split_that_the_vendor_lists_twice_counts_once() -> None:
    split = Split(date(2024, 6, 10), 1, 10)
    bars = one_bar("2024-06-07 00:00", 1208.88, 1000.0)
    pd.testing.assert_frame_equal(adjust(bars, [split, split], LATER), adjust(bars, [split], LATER))
    assert (
        digest([split, split], LATER) == digest([split], LATER) == digest([Split(date(2024, 6, 10), 1.0, 10.0)], LATER)
    )


def test_apples_real_day_bars_show_no_jump_at_its_seven_for_one_split() -> None:
    rows = pd.read_csv(SAMPLE / "day" / "AAPL.csv.gz")
    listed = csv.DictReader((SAMPLE / "splits.csv").read_text().splitlines())
    some = [
        Split(date.fromisoformat(row["execution_date"]), float(row["split_from"]), float(row["split_to"]))
        for row in listed
    ]
    columns = {name: rows[name].to_numpy(dtype="float64") for name in (*PRICES, "volume")}
    unknown = np.full(len(rows), np.nan)
    bars = bar_frame(rows["window_start"].to_numpy() // 1000, {**columns, "vwap": unknown, "trades": unknown})
    assert np.log(bars["close"]).diff().abs().max() > 1.9
    for today in (date(2014, 12, 31), LATER):
        adjusted = adjust(bars, some, today)
        assert np.log(adjusted["close"]).diff().abs().max() < 0.09
        assert np.log(adjusted["volume"]).diff().abs().max() < np.log(7)


def test_the_order_in_which_splits_arrive_changes_nothing() -> None:
    some = [Split(date(2024, 6, 10), 1, 10), Split(date(2021, 7, 20), 1, 4), Split(date(2021, 7, 20), 1, 5)]
    assert len({in_force(order, LATER) for order in permutations(some)}) == 1
    assert len({digest(order, LATER) for order in permutations(some)}) == 1


@laws
@given(splits, splits)
def test_digests_are_equal_exactly_when_the_splits_in_force_are(a: list[Split], b: list[Split]) -> None:
    today = date(2025, 1, 1)
    assert (digest(a, today) == digest(b, today)) == (in_force(a, today) == in_force(b, today))


@laws
@given(bar_frames(), splits, days)
def test_each_bar_is_scaled_by_every_later_split_in_force(sample: Sample, some: list[Split], today: date) -> None:
    bars = sample[0]
    expected = []
    for us in ts_us(bars):
        factor = 1.0
        for split in in_force(some, today):
            if us < to_us(EQUITIES.midnight(split.execution_date)):
                factor *= split.split_from / split.split_to
        expected.append(factor)
    np.testing.assert_allclose(price_factor(ts_us(bars), some, today), expected, rtol=1e-14)


@laws
@given(bar_frames(gaps=False), splits)
def test_adjusting_keeps_the_money_traded_and_the_shape_of_every_bar(sample: Sample, some: list[Split]) -> None:
    bars = sample[0]
    adjusted = adjust(bars, some, LATER)
    np.testing.assert_allclose(adjusted["vwap"] * adjusted["volume"], bars["vwap"] * bars["volume"], rtol=1e-13)
    np.testing.assert_allclose(adjusted["high"] / adjusted["low"], bars["high"] / bars["low"], rtol=1e-13)
    assert list(adjusted.columns) == list(bars.columns)
    assert adjusted["ts"].equals(bars["ts"])


@laws
@given(bar_frames(), st.sampled_from(COARSE), st.data())
def test_adjusting_coarse_bars_equals_resampling_adjusted_ones(
    sample: Sample, timeframe: Timeframe, data: st.DataObject
) -> None:
    bars, calendar = sample[0], calendar_for(AssetClass.US_EQUITY)
    if sample[1] is not AssetClass.US_EQUITY or bars.empty:
        return
    first = calendar.session_date(bars["ts"].iloc[0].to_pydatetime())
    near = st.builds(Split, st.integers(-1, 8).map(lambda i: first + timedelta(days=i)), terms, terms)
    some = data.draw(st.lists(near, max_size=4))
    after = adjust(resample(bars, timeframe, calendar), some, LATER)
    before = resample(adjust(bars, some, LATER), timeframe, calendar)
    pd.testing.assert_frame_equal(after, before, check_exact=False, rtol=1e-12, atol=0)


def test_day_bars_adjust_on_the_same_dates_as_their_minutes() -> None:
    split = [Split(date(2025, 11, 3), 1, 2)]  # the Monday after the clocks went back
    day_bars = [to_us(EQUITIES.midnight(day)) for day in (date(2025, 10, 31), date(2025, 11, 3))]
    minutes = [to_us(new_york("2025-10-31 19:55")), to_us(new_york("2025-11-03 04:00"))]
    for starts in (day_bars, minutes):
        assert price_factor(np.array(starts), split, LATER).tolist() == [0.5, 1.0]
