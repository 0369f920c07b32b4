"""The two laws of the features: incremental equals full, and nothing looks ahead."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import array, ts_us
from market_data_pipeline.domain.features.compute import (
    compute_features,
    features_from,
    features_of_many,
    warm_up_suffices,
)
from market_data_pipeline.domain.features.definitions import FEATURES, WARM_UP_BARS
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.store.feature_values import feature_table, stored_values
from market_data_pipeline_tests.domain.feature_series import (
    KINDS,
    Case,
    assert_same,
    cases,
    frame,
    prices,
    random_bars,
    real_series,
    take,
)
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.recorded import FULL, SAMPLE, needs_full

EQUITY = AssetClass.US_EQUITY
MOVING = ("walk", "cents", "halts", "ramp", "steps", "huge", "tiny", "mixed")
REMEMBERING = ("atr", "trend_regime")  # all others see a window, the session and the one before


class Store:
    """The feature rows of one series, kept as the pipeline keeps them: only from the first changed bar on."""

    def __init__(self, case: Case, start: int) -> None:
        self.timeframe, self.asset_class = case.timeframe, case.asset_class
        self.bars = take(case.bars, 0, start)
        self.rows = compute_features(self.bars, self.timeframe, self.asset_class)

    def change(self, bars: pd.DataFrame, first_changed: int) -> None:
        """Take in bars that differ from the stored ones from `first_changed` on; read only the warm-up before it."""
        begin = max(0, first_changed - WARM_UP_BARS)
        read = take(bars, begin, len(bars))
        new = features_from(read, first_changed - begin, self.timeframe, self.asset_class)
        self.bars, self.rows = bars, pd.concat((self.rows.iloc[:first_changed], new), ignore_index=True)

    def append(self, source: pd.DataFrame, count: int) -> None:
        self.change(take(source, 0, len(self.bars) + count), len(self.bars))

    def correct(self, at: int, factor: float) -> pd.DataFrame:
        """Scale the bar at `at`, as a vendor's correction does; return all bars."""
        bars = self.bars.copy()
        bars.loc[at, ["high", "low", "close"]] *= factor
        self.change(bars, at)
        return bars


@settings(laws, max_examples=40)
@given(cases(WARM_UP_BARS + 1, WARM_UP_BARS + 900, MOVING), st.data())
def test_appending_in_any_steps_leaves_what_one_computation_gives(case: Case, data: st.DataObject) -> None:
    first, *stops = sorted(data.draw(st.sets(st.integers(0, len(case.bars)), min_size=1, max_size=8), label="held"))
    store = Store(case, first)
    for stop in (*stops, len(case.bars)):
        store.append(case.bars, stop - len(store.bars))
    assert_same(store.rows, compute_features(*case))


@settings(laws, max_examples=30)
@given(cases(WARM_UP_BARS + 1, WARM_UP_BARS + 700, MOVING), st.data())
def test_corrections_leave_what_one_computation_gives(case: Case, data: st.DataObject) -> None:
    store = Store(case, len(case.bars))
    for _ in range(3):
        at = data.draw(st.integers(0, len(case.bars) - 1), label="corrected")
        store.correct(at, data.draw(st.sampled_from([0.9, 0.99, 1.0001, 1.5]), label="by"))
    assert_same(store.rows, compute_features(store.bars, case.timeframe, case.asset_class))


@settings(laws, max_examples=20)
@given(cases(WARM_UP_BARS + 1, WARM_UP_BARS + 700, MOVING), st.data())
def test_a_gap_filled_late_leaves_what_one_computation_gives(case: Case, data: st.DataObject) -> None:
    gap = data.draw(st.integers(0, len(case.bars) - 1), label="gap")
    gapped = case.bars.drop(index=gap).reset_index(drop=True)
    store = Store(case._replace(bars=gapped), len(gapped))
    store.change(case.bars, gap)
    assert_same(store.rows, compute_features(*case))


@settings(laws, max_examples=40)
@given(cases(1, 900), st.data())
def test_windows_are_the_same_to_the_last_bit_wherever_the_bars_start(case: Case, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(case.bars) - 1), label="start")
    first = start + 310  # past every window, and past a session and the bar before it
    full = compute_features(*case).iloc[first:].reset_index(drop=True)
    part = features_from(take(case.bars, start, len(case.bars)), 310, case.timeframe, case.asset_class)
    for feature in FEATURES:
        if feature.name not in REMEMBERING:
            pd.testing.assert_series_equal(part[feature.name], full[feature.name], check_exact=True)


@settings(laws, max_examples=40)
@given(cases(1, 900), st.data())
def test_computing_only_the_newest_rows_changes_none_of_them(case: Case, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(case.bars)), label="first new bar")
    newest = features_from(case.bars, first, case.timeframe, case.asset_class)
    pd.testing.assert_frame_equal(newest, compute_features(*case).iloc[first:].reset_index(drop=True), check_exact=True)


@settings(laws, max_examples=60)
@given(cases(1, 900), st.data())
def test_later_bars_do_not_change_earlier_features(case: Case, data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(case.bars)), label="bars known")
    known = compute_features(take(case.bars, 0, stop), case.timeframe, case.asset_class)
    pd.testing.assert_frame_equal(known, compute_features(*case).iloc[:stop], check_exact=True)


@settings(laws, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(["walk", "cents", "steps", "mixed"]), st.sampled_from([EQUITY, "crypto"]))
def test_after_the_warm_up_even_the_averages_are_the_same_to_the_last_bit(seed: int, kind: str, asset: str) -> None:
    # A computation that starts later ends with the same bits, so a label cannot fall to a threshold's other side.
    case = Case(
        random_bars(seed, kind, Timeframe.M15, AssetClass(asset), 3_000, first=date(2024, 1, 2), presence=1.0),
        Timeframe.M15,
        AssetClass(asset),
    )
    full = compute_features(*case).iloc[1_000 + WARM_UP_BARS :].reset_index(drop=True)
    part = features_from(take(case.bars, 1_000, len(case.bars)), WARM_UP_BARS, case.timeframe, case.asset_class)
    pd.testing.assert_frame_equal(part, full, check_exact=True)


@pytest.mark.parametrize("kind", ["walk", "cents", "mixed"])
def test_the_warm_up_is_long_enough_for_the_slowest_average_to_the_last_bit(kind: str) -> None:
    for seed in range(20):
        _, _, close = prices(np.random.default_rng(seed), kind, 3_000)
        full, part = talib.EMA(close, 50)[1_000:], talib.EMA(close[1_000:], 50)
        assert part[WARM_UP_BARS:].tolist() == full[WARM_UP_BARS:].tolist()


@pytest.mark.parametrize("asset_class", AssetClass)
def test_a_ramp_that_sits_on_the_ranging_threshold_gets_the_same_labels(asset_class: AssetClass) -> None:
    # On a ramp of 1 a bar, EMA 20 is 15 above EMA 50 for good: at 15,000 that is 0.001 of the price but for rounding.
    ts = np.arange(16_000) * 900_000_000
    close = np.arange(1.0, 16_001.0)
    bars = frame(ts, close, close, close, close)
    full = compute_features(bars, Timeframe.M15, asset_class)["trend_regime"]
    for start in (1, 7, 1_000, 13_000, 13_490):
        part = compute_features(take(bars, start, 16_000), Timeframe.M15, asset_class)["trend_regime"]
        assert part.iloc[WARM_UP_BARS:].tolist() == full.iloc[start + WARM_UP_BARS :].tolist()


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.M15, Timeframe.H1])
@pytest.mark.parametrize("asset_class", AssetClass)
def test_the_warm_up_holds_the_session_before(timeframe: Timeframe, asset_class: AssetClass) -> None:
    longest = (24 if asset_class is AssetClass.CRYPTO else 16) * 60 // timeframe.minutes
    assert longest + 1 <= WARM_UP_BARS


def test_a_split_scales_two_columns_and_leaves_the_others() -> None:
    case = real_series(SAMPLE, "day", "AAPL")
    later = case.bars.assign(
        **{name: case.bars[name] / 4 for name in ("high", "low", "close")}, volume=case.bars["volume"] * 4
    )
    before, after = compute_features(*case), compute_features(*case._replace(bars=later))
    after["atr"] *= 4
    after["rolling_volume_20"] /= 4
    assert_same(after, before)


@pytest.mark.parametrize("ratio", [7, 3, 1.0027, 1 / 30])
def test_a_split_of_any_ratio_leaves_the_scale_free_columns(ratio: float) -> None:
    case = real_series(SAMPLE, "minute", "AAPL")
    factor = 1 / ratio
    later = case.bars.assign(
        **{name: case.bars[name] * factor for name in ("high", "low", "close")}, volume=case.bars["volume"] / factor
    )
    before, after = compute_features(*case), compute_features(*case._replace(bars=later))
    after["atr"] /= factor
    after["rolling_volume_20"] *= factor
    for feature in FEATURES:  # a return of 1e-6 is the difference of two prices rounded to 1e-16 of themselves
        if feature.dtype == "float":
            np.testing.assert_allclose(after[feature.name], before[feature.name], rtol=1e-9, atol=1e-15)
        else:
            assert after[feature.name].equals(before[feature.name]), feature.name


@pytest.mark.parametrize(
    ("root", "folder", "symbol"),
    [
        (SAMPLE, "day", "AAPL"),
        (SAMPLE, "minute", "AAPL"),
        *(pytest.param(FULL, "day", symbol, marks=needs_full) for symbol in ("AAPL", "SPY", "QQQ")),
        pytest.param(FULL, "minute", "SPY", marks=needs_full),
    ],
)
def test_recorded_bars_in_steps_leave_what_one_computation_gives(root: Path, folder: str, symbol: str) -> None:
    case = real_series(root, folder, symbol)
    store = Store(case, 100)
    steps = np.random.default_rng(2).integers(1, 40 if root is SAMPLE else 400, len(case.bars))
    while (held := len(store.bars)) < len(case.bars):
        store.append(case.bars, min(int(steps[held]), len(case.bars) - held))
    assert_same(store.rows, compute_features(*case))


def test_a_ticker_that_stopped_moving_needs_its_whole_history() -> None:
    moving = random_bars(1, "walk", Timeframe.M15, EQUITY, 2_000, first=date(2024, 1, 2), presence=1.0)
    assert warm_up_suffices(moving, 1_900)
    assert not warm_up_suffices(moving, WARM_UP_BARS - 1)
    n = 4_000
    close = np.r_[moving["close"], np.full(n - 2_000, moving["close"].iloc[-1])]
    bars = frame(np.arange(n) * 900_000_000, close, close, close, np.ones(n))
    assert warm_up_suffices(take(bars, 500, 2_200), 1_600)
    assert not warm_up_suffices(take(bars, 2_300, n), 1_600)
    forgotten = compute_features(take(bars, 2_300, n), Timeframe.M15, EQUITY)["atr"]
    assert forgotten.iloc[-1] == 0.0
    assert compute_features(bars, Timeframe.M15, EQUITY)["atr"].iloc[-1] > 0.0


@laws
@given(
    timeframe=st.sampled_from(list(Timeframe)),
    asset_class=st.sampled_from(list(AssetClass)),
    some=st.lists(
        st.tuples(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(1, 300), st.sampled_from([0.05, 0.6, 1])),
        min_size=1,
        max_size=6,
    ),
)
def test_several_series_computed_at_once_get_what_each_gets_alone_to_the_last_bit(
    timeframe: Timeframe, asset_class: AssetClass, some: list[tuple[int, str, int, float]]
) -> None:
    first = date(2024, 3, 8)  # a Friday; clocks change on Sunday
    made = [
        random_bars(seed, kind, timeframe, asset_class, count, first=first, presence=presence)
        for seed, kind, count, presence in some
    ]
    series = [bars for bars in made if len(bars)]
    if not series:
        return
    offsets = np.cumsum([0, *map(len, series)])
    values = {
        name: np.concatenate([array(bars, name) for bars in series]) for name in ("high", "low", "close", "volume")
    }
    starts = np.concatenate([ts_us(bars) for bars in series])
    together = stored_values(features_of_many(starts, values, offsets, timeframe, asset_class))
    for at, bars in enumerate(series):
        alone = feature_table(compute_features(bars, timeframe, asset_class))
        for name, column in together.items():
            assert column[offsets[at] : offsets[at + 1]].equals(alone[name].combine_chunks()), name
