"""The values of the features: against an independent oracle, against other libraries, and by hand."""

from __future__ import annotations

import gzip
import math
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import talib
from hypothesis import given, settings

from market_data_pipeline.domain.errors import FeatureError
from market_data_pipeline.domain.features.compute import compute_features
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, FEATURES, bars_per_year
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain import compare_with_oracle
from market_data_pipeline_tests.domain.answers import feature_oracle
from market_data_pipeline_tests.domain.feature_series import (
    NEW_YORK,
    Case,
    assert_same,
    cases,
    flat_frame,
    frame,
    oracle_frame,
    random_bars,
    real_series,
)
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.recorded import FULL, SAMPLE, needs_full

ROOT = Path(__file__).parents[2]
ANSWERS = Path(__file__).parent / "answers"
EQUITY, CRYPTO = AssetClass.US_EQUITY, AssetClass.CRYPTO
MONDAY = datetime(2024, 6, 3, 9, 30, tzinfo=NEW_YORK)


def every(minutes: int, count: int, start: datetime = MONDAY) -> list[datetime]:
    return [start + timedelta(minutes=minutes) * i for i in range(count)]


def answer_file(name: str) -> pd.DataFrame:
    with gzip.open(ANSWERS / name, "rt") as file:
        answer = pd.read_csv(file)
    for name_ in ("hh", "hl", "lh", "ll"):
        answer[name_] = answer[name_].astype("boolean")
    return answer


@settings(laws, max_examples=80)
@given(cases(0, 130))
def test_every_value_follows_from_the_definitions(case: Case) -> None:
    assert_same(compute_features(*case), oracle_frame(case))


def test_the_long_comparison_finds_no_difference_in_its_first_bars() -> None:
    found = compare_with_oracle.main(bars=4_000, root=SAMPLE)
    assert found["random"]["bars"] == 4_000
    assert found["recorded"]["bars"] == 836
    assert found["differences"] == 0


@pytest.mark.parametrize(
    ("folder", "answer"), [("day", "features_aapl_1d.csv.gz"), ("minute", "features_aapl_5m.csv.gz")]
)
def test_real_bars_give_what_polars_and_talipp_give(folder: str, answer: str) -> None:
    case, expected = real_series(SAMPLE, folder, "AAPL"), answer_file(answer)
    assert case.bars["ts"].astype("int64").tolist() == expected["ts"].tolist()
    # A feature that was added since has no column in these files until make_feature_answers.py computes it, too.
    assert set(FEATURE_NAMES[:17]) <= set(expected)
    assert_same(compute_features(*case), expected, features=[f for f in FEATURES if f.name in expected])


@pytest.mark.parametrize(
    ("root", "folder", "symbol"),
    [
        (SAMPLE, "day", "AAPL"),
        (SAMPLE, "minute", "AAPL"),
        pytest.param(FULL, "day", "GOOG", marks=needs_full),
        pytest.param(FULL, "minute", "SPY", marks=needs_full),
    ],
)
def test_recorded_bars_give_what_the_oracle_gives(root: Path, folder: str, symbol: str) -> None:
    case = real_series(root, folder, symbol)
    case = case._replace(bars=case.bars.iloc[:1_200])
    assert_same(compute_features(*case), oracle_frame(case))


def migrations() -> str:
    return "\n".join(file.read_text() for file in sorted((ROOT / "sql").glob("*.sql")))


def test_the_table_has_the_declared_columns_in_order() -> None:
    table = re.search(r"create table market_data\.features \((.*?)\n\)", migrations(), re.DOTALL)
    assert table
    kinds = "(double precision|boolean|text|timestamptz)"
    columns = re.findall(rf"^    (\w+) {kinds}( not null)?,$", table[1], re.MULTILINE)
    added = re.findall(rf"^alter table market_data\.features add column (\w+) {kinds}( not null)?;", migrations(), re.M)
    declared = [(f.name, f.sql_type, "") for f in FEATURES]
    key = [("symbol", "text", " not null"), ("timeframe", "text", " not null"), ("ts", "timestamptz", " not null")]
    assert columns[-1] == ("features_computed_at", "timestamptz", " not null")
    assert [*columns[:-1], *added] == [*key, *declared]


def test_every_column_of_the_table_is_commented() -> None:
    commented = re.findall(r"comment on column market_data\.features\.(\w+) is", migrations())
    assert set(FEATURE_NAMES) <= set(commented)


def test_the_published_seventeen_come_first_and_two_of_them_scale_with_a_split() -> None:
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES))
    assert FEATURE_NAMES[:17] == (
        *("log_return", "return_1h", "return_1d", "volatility_20", "volatility_50", "atr"),
        *("rolling_volume_20", "volume_ratio", "hh", "hl", "lh", "ll", "trend_direction", "structure_label"),
        *("volatility_regime", "trend_regime", "compression_regime"),
    )
    assert [f.name for f in FEATURES[:17] if f.price_scaled] == ["atr", "rolling_volume_20"]
    assert all((f.dtype == "text") == bool(f.labels) and f.description for f in FEATURES)


@pytest.mark.parametrize("asset_class", AssetClass)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_a_year_has_as_many_bars_as_the_market_is_open(timeframe: Timeframe, asset_class: AssetClass) -> None:
    assert bars_per_year(timeframe, asset_class) == feature_oracle.BARS_PER_YEAR[asset_class, timeframe]


@pytest.mark.parametrize("timeframe", Timeframe)
def test_values_begin_with_the_declared_bar(timeframe: Timeframe) -> None:
    bars = random_bars(7, "walk", timeframe, EQUITY, 130, first=MONDAY.date(), presence=1.0)
    bars["volume"] += 1
    features = compute_features(bars, timeframe, EQUITY)
    for feature in FEATURES:
        if feature.warm_up is not None:
            known = features[feature.name].notna().to_numpy()
            assert not known[: feature.warm_up].any(), feature.name
            assert known[feature.warm_up :].all(), feature.name


def test_columns_have_the_promised_types_and_labels() -> None:
    bars = random_bars(3, "walk", Timeframe.M5, EQUITY, 400, first=MONDAY.date(), presence=0.9)
    features = compute_features(bars, Timeframe.M5, EQUITY)
    assert list(features.columns) == ["ts", *FEATURE_NAMES]
    assert features["ts"].equals(bars["ts"])
    for feature in FEATURES:
        column = features[feature.name]
        if feature.dtype == "float":
            assert column.dtype == "float64"
        elif feature.dtype == "bool":
            assert column.dtype == "boolean"
        else:
            assert column.dtype == pd.CategoricalDtype(list(feature.labels))


def test_arrow_gets_strings_booleans_and_nulls() -> None:
    bars = random_bars(3, "walk", Timeframe.M5, EQUITY, 120, first=MONDAY.date(), presence=1.0)
    features = compute_features(bars, Timeframe.M5, EQUITY)
    types = {"float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
    table = pa.table({f.name: pa.array(features[f.name], types[f.dtype], from_pandas=True) for f in FEATURES})
    assert [table[f.name].null_count for f in FEATURES if f.warm_up is not None] == [
        f.warm_up for f in FEATURES if f.warm_up is not None
    ]
    assert table["structure_label"][5:].null_count == 0
    assert set(table["volatility_regime"].to_pylist()) <= {None, "low", "medium", "high"}


@pytest.mark.parametrize("asset_class", AssetClass)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_no_bars_have_no_features(timeframe: Timeframe, asset_class: AssetClass) -> None:
    features = compute_features(flat_frame([], []), timeframe, asset_class)
    assert list(features.columns) == ["ts", *FEATURE_NAMES]
    assert len(features) == 0


def test_one_bar_has_a_row_of_nulls() -> None:
    features = compute_features(flat_frame([MONDAY], [100.0]), Timeframe.M5, EQUITY)
    assert len(features) == 1
    assert features[list(FEATURE_NAMES)].isna().all(axis=None)


@pytest.mark.parametrize("price", [0.1, 1 / 3, 107.37, 1e-9, 1e12])
def test_a_price_that_never_moves_has_no_volatility_at_all(price: float) -> None:
    last = compute_features(flat_frame(every(5, 130), [price] * 130), Timeframe.M5, EQUITY).iloc[-1]
    assert last["volatility_20"] == last["volatility_50"] == last["atr"] == 0.0
    assert last["volatility_regime"] == "medium"
    assert last["compression_regime"] == "expanded"
    assert last["trend_regime"] == "ranging"
    assert last["trend_direction"] == "neutral"
    assert not any(last[name] for name in ("hh", "hl", "lh", "ll"))


def test_volume_ratio_is_null_when_nothing_was_traded() -> None:
    features = compute_features(flat_frame(every(5, 25), [100.0] * 25, volume=0.0), Timeframe.M5, EQUITY)
    assert features["rolling_volume_20"].iloc[19:].eq(0.0).all()
    assert features["volume_ratio"].isna().all()


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_extreme_prices_give_numbers_or_nulls_and_never_infinity(scale: float) -> None:
    rng = np.random.default_rng(5)
    ts = np.arange(200) * 300_000_000
    close = scale * np.exp(rng.normal(0, 3, 200))
    features = compute_features(frame(ts, close, close, close, close), Timeframe.M5, CRYPTO)
    floats = features[[f.name for f in FEATURES if f.dtype == "float"]].to_numpy()
    assert not np.isinf(floats).any()
    assert features["volatility_50"].iloc[50:].notna().all()
    assert features["compression_regime"].iloc[68:].notna().all()


def test_a_ratio_that_overflows_is_null() -> None:
    close = [1e-200] * 3 + [1e200] * 3
    features = compute_features(flat_frame(every(5, 6), close), Timeframe.M5, EQUITY)
    assert math.isnan(features["log_return"].iloc[3])
    assert features["log_return"].iloc[4] == 0.0
    assert features["trend_direction"].iloc[5] == "up"


def test_one_bad_window_leaves_the_next_ones_alone() -> None:
    close = np.full(300, 100.0)
    close[60] = 1e300  # overflows a squared deviation, nothing else
    close[61:] += np.random.default_rng(1).normal(0, 1, 239)
    spoiled = compute_features(flat_frame(every(5, 300), close.tolist()), Timeframe.M5, EQUITY)
    clean = compute_features(
        flat_frame(every(5, 239, MONDAY + timedelta(minutes=305)), close[61:].tolist()), Timeframe.M5, EQUITY
    )
    for name in ("volatility_50", "volatility_regime", "compression_regime"):
        assert spoiled[name].iloc[-100:].tolist() == clean[name].iloc[-100:].tolist()


def test_an_hour_back_is_the_latest_bar_that_ended_an_hour_before_or_earlier() -> None:
    starts = [MONDAY + timedelta(minutes=m) for m in (0, 5, 55, 60, 65, 70, 200)]
    got = compute_features(flat_frame(starts, [100, 101, 102, 103, 104, 105, 106]), Timeframe.M5, EQUITY)["return_1h"]
    assert got.iloc[:3].isna().all()
    assert got.iloc[3:].tolist() == [103 / 100 - 1, 104 / 101 - 1, 105 / 101 - 1, 106 / 105 - 1]


def test_an_hour_back_does_not_reach_into_the_session_before() -> None:
    starts = [MONDAY, MONDAY + timedelta(hours=2), MONDAY + timedelta(days=1), MONDAY + timedelta(days=1, hours=1)]
    got = compute_features(flat_frame(starts, [100, 101, 102, 103]), Timeframe.H1, EQUITY)["return_1h"]
    assert got.isna().tolist() == [True, False, True, False]
    assert got.iloc[3] == 103 / 102 - 1


@pytest.mark.parametrize("timeframe", [Timeframe.H4, Timeframe.D1])
def test_long_bars_have_no_return_over_an_hour(timeframe: Timeframe) -> None:
    starts = every(timeframe.minutes, 10)
    assert compute_features(flat_frame(starts, [100.0] * 10), timeframe, EQUITY)["return_1h"].isna().all()


def test_a_days_return_is_from_the_last_close_of_the_latest_earlier_session_with_bars() -> None:
    friday = MONDAY - timedelta(days=3)
    starts = [friday, friday + timedelta(hours=1), MONDAY, MONDAY + timedelta(hours=1), MONDAY + timedelta(days=2)]
    got = compute_features(flat_frame(starts, [100, 110, 120, 130, 140]), Timeframe.M5, EQUITY)["return_1d"]
    assert got.iloc[:2].isna().all()
    assert got.iloc[2:].tolist() == [120 / 110 - 1, 130 / 110 - 1, 140 / 130 - 1]


def test_sessions_end_at_midnight_in_new_york_and_in_utc_for_crypto() -> None:
    # 19:55 New York on both sides of the change to winter time is 23:55 UTC, then 00:55 UTC of the next day.
    starts = [datetime(2024, 11, day, hour, 55, tzinfo=NEW_YORK) for day in (1, 4) for hour in (18, 19)]
    close = [100.0, 110.0, 120.0, 130.0]
    equity = compute_features(flat_frame(starts, close), Timeframe.M5, EQUITY)
    assert equity["return_1d"].fillna(0).tolist() == [0, 0, 120 / 110 - 1, 130 / 110 - 1]
    assert equity["return_1h"].fillna(0).tolist() == [0, 110 / 100 - 1, 0, 130 / 120 - 1]
    crypto = compute_features(flat_frame(starts, close), Timeframe.M5, CRYPTO)
    assert crypto["return_1d"].fillna(0).tolist() == [0, 0, 120 / 110 - 1, 130 / 120 - 1]
    assert crypto["return_1h"].fillna(0).tolist() == [0, 110 / 100 - 1, 0, 0]


def test_averages_within_a_thousandth_of_the_price_are_ranging() -> None:
    # On a ramp of 1 a bar, EMA 20 stays 15 above EMA 50.
    features = compute_features(
        flat_frame(every(5, 16_000), [float(i) for i in range(1, 16_001)]), Timeframe.M5, CRYPTO
    )
    labels = dict(zip(range(1, 16_001), features["trend_regime"], strict=True))
    assert [labels[price] for price in (14_990, 14_999, 15_001, 15_010)] == ["uptrend"] * 2 + ["ranging"] * 2


@pytest.mark.parametrize(
    ("last", "label"), [(101.001, "up"), (100.999, "neutral"), (99.001, "neutral"), (98.999, "down")]
)
def test_five_bars_make_a_trend_beyond_one_percent(last: float, label: str) -> None:
    features = compute_features(flat_frame(every(5, 6), [100.0] * 5 + [last]), Timeframe.M5, EQUITY)
    assert features["trend_direction"].iloc[5] == label


def test_regimes_begin_exactly_at_their_thresholds() -> None:
    # Enough bars that some lie within a thousandth of each threshold.
    rng = np.random.default_rng(6)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, 20_000) * np.repeat(rng.uniform(0.3, 3, 500), 40)))
    features = compute_features(flat_frame(every(5, 20_000), close.tolist()), Timeframe.M5, CRYPTO)
    windows = np.lib.stride_tricks.sliding_window_view
    width = 4 * windows(close, 20).std(axis=1) / windows(close, 20).mean(axis=1)
    for name, values, thresholds in (
        ("volatility_regime", features["volatility_50"].to_numpy()[50:], {0.7: "low", 1.3: "high"}),
        ("compression_regime", width, {0.7: "compressed"}),
    ):
        relative = values[49:] / np.median(windows(values, 50), axis=1)
        labels = features[name].iloc[-len(relative) :].to_numpy()
        for threshold, label in thresholds.items():
            assert (np.abs(relative / threshold - 1) < 1e-3).sum() > 3
            beyond = relative < threshold if threshold < 1 else relative > threshold
            np.testing.assert_array_equal(labels == label, beyond)


def test_changed_settings_of_ta_lib_are_refused() -> None:
    talib.set_unstable_period("EMA", 10)
    try:
        with pytest.raises(FeatureError, match="set_unstable_period"):
            compute_features(flat_frame([MONDAY], [1.0]), Timeframe.M5, EQUITY)
    finally:
        talib.set_unstable_period("EMA", 0)


def test_the_page_of_the_features_says_what_the_code_declares() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert [(row[0].strip("`"), row[1], row[3], row[4]) for row in rows] == [
        (f.name, f.dtype, f.unit, "-" if f.warm_up is None else str(f.warm_up)) for f in FEATURES
    ]
    for feature, row in zip(FEATURES, rows, strict=True):
        assert [label for label in feature.labels if f"`{label}`" not in row[2]] == []
