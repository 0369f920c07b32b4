"""Trailing windows are exact, whatever lies outside them."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.features.rolling import (
    PIECE,
    previous_extreme,
    trailing_mean,
    trailing_median,
    trailing_moments,
)
from market_data_pipeline_tests.domain.strategies import laws

SIZES = (2, 3, 20, 50)


def wild(seed: int, length: int) -> np.ndarray:
    """Return values of which some are equal, some differ in their last bit, and some are larger by 1e12."""
    rng = np.random.default_rng(seed)
    values = rng.choice([1e5, np.nextafter(1e5, 2e5), 1e5 + 1e-8, 3.0, 1e-7, 1e12], length)
    values[: length // 2] = rng.normal(0, 1, length // 2)
    return values


@settings(laws, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_moments_are_those_of_each_window_alone(seed: int, length: int) -> None:
    values = wild(seed, length)
    for size, offset, squares in trailing_moments(values, SIZES):
        assert np.isnan(offset[: size - 1]).all()
        assert np.isnan(squares[: size - 1]).all()
        for t in range(size - 1, length):
            window = values[t - size + 1 : t + 1].tolist()
            assert squares[t] == pytest.approx(statistics.variance(window) * (size - 1), rel=1e-12, abs=0)
            assert values[t] + offset[t] == pytest.approx(statistics.mean(window), rel=1e-9, abs=1e-3)


def test_a_huge_value_is_forgotten_when_it_leaves_the_window() -> None:
    values = np.r_[1e200, np.random.default_rng(1).normal(0, 1e-3, 200)]
    with np.errstate(over="ignore", invalid="ignore"):
        ((_, _, spoiled),), ((_, _, clean),) = trailing_moments(values, (20,)), trailing_moments(values[1:], (20,))
    assert spoiled[20:].tolist() == clean[19:].tolist()


def test_windows_across_the_pieces_worked_on_are_like_all_others() -> None:
    values = np.random.default_rng(2).normal(0, 1, 2 * PIECE + 100)
    for whole, part in zip(trailing_moments(values, SIZES), trailing_moments(values[500:], SIZES), strict=True):
        assert whole.offset[600:].tolist() == part.offset[100:].tolist()
        assert whole.squares[600:].tolist() == part.squares[100:].tolist()


def test_equal_values_do_not_deviate() -> None:
    ((_, offset, squares),) = trailing_moments(np.full(60, 0.1), (20,))
    assert set(squares[19:]) == set(offset[19:]) == {0.0}


@settings(laws, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 200))
def test_means_medians_and_extremes_are_those_of_each_window_alone(seed: int, length: int) -> None:
    values = np.abs(wild(seed, length))
    mean, median = trailing_mean(values, 20), trailing_median(values, 50)
    highest, lowest = (previous_extreme(values, 5, largest=largest) for largest in (True, False))
    for t in range(length):
        assert mean[t] == pytest.approx(
            statistics.mean(values[t - 19 : t + 1].tolist()) if t >= 19 else np.nan, nan_ok=True
        )
        assert median[t] == statistics.median(values[t - 49 : t + 1].tolist()) if t >= 49 else np.isnan(median[t])
        assert highest[t] == max(values[t - 5 : t]) if t >= 5 else np.isnan(highest[t])
        assert lowest[t] == min(values[t - 5 : t]) if t >= 5 else np.isnan(lowest[t])


def test_a_median_over_a_gap_is_unknown_and_the_next_full_window_is_right() -> None:
    values = np.random.default_rng(4).normal(0, 1, 300)
    values[120] = np.nan
    median = trailing_median(values, 50)
    assert np.isnan(median[120:170]).all()
    assert median[170] == statistics.median(values[121:171].tolist())
