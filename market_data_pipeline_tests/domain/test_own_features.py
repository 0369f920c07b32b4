"""Declarations of a project's own features, and what is reported about a feature that breaks its contract."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline.domain.features.own import NO_OWN_FEATURES, OwnFeature, declared
from market_data_pipeline.domain.features.own_values import compute_own
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain.feature_series import random_bars, take

EQUITY = AssetClass.US_EQUITY
BARS = random_bars(3, "cents", Timeframe.M15, EQUITY, 2_000, first=date(2024, 1, 2), presence=1.0)
Compute = Callable[[pd.DataFrame, Timeframe, AssetClass], Any]


def feature(
    compute: Compute, name: str = "mine", dtype: str = "float", warm_up: int | None = 20, **more: Any
) -> OwnFeature:
    return OwnFeature(compute=compute, name=name, dtype=dtype, description="…", warm_up=warm_up, **more)  # type: ignore[arg-type]


def mean_20(bars: pd.DataFrame, *_: object) -> pd.Series:
    return bars["close"].rolling(20).mean()


def run(*features: OwnFeature, bars: pd.DataFrame = BARS, first: int = 0) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return tuple(compute_own(features, bars, first, Timeframe.M15, EQUITY))  # type: ignore[return-value]


def bar(index: int) -> str:
    return f"{BARS['ts'].iloc[index]:%Y-%m-%d %H:%M}Z"


def test_values_come_with_their_types_and_without_infinities() -> None:
    columns, problems = run(
        feature(mean_20),
        feature(lambda bars, *_: bars["close"] > 100, "flag", "bool"),
        feature(lambda bars, *_: [None] + ["x"] * (len(bars) - 1), "label", "text"),
        feature(lambda bars, *_: bars["close"].to_numpy() / 0.0, "infinite"),
        feature(lambda bars, *_: np.arange(len(bars)), "count", warm_up=None),
    )
    assert problems == ()
    assert [str(columns[name].dtype) for name in columns] == ["float64", "boolean", "str", "float64", "float64"]
    assert columns["mine"].isna().sum() == 19
    assert columns["infinite"].isna().all()
    assert columns["label"].isna().tolist() == [True] + [False] * 1_999


def test_only_new_rows_are_returned_and_equal_those_of_the_whole() -> None:
    whole, _ = run(feature(mean_20))
    part, problems = run(feature(mean_20), bars=take(BARS, 400, 2_000), first=1_590)
    assert problems == ()
    np.testing.assert_allclose(part["mine"], whole["mine"].iloc[1_990:], rtol=1e-12)


@pytest.mark.parametrize(
    ("compute", "dtype", "said"),
    [
        (lambda bars, *_: bars["missing"], "float", f"raises KeyError at the bar {bar(0)}"),
        (
            lambda bars, *_: mean_20(bars) if len(bars) <= 1_234 else 1 / 0,
            "float",
            f"raises ZeroDivisionError at the bar {bar(1_234)}",
        ),
        (lambda *_: sys.exit("enough"), "float", f"raises SystemExit at the bar {bar(0)}: enough;"),
        (lambda bars, *_: bars.loc[bars.to_string()], "float", " ...; its values are NULL."),
        (lambda bars, *_: mean_20(bars).dropna(), "float", f"returns 1981 values for 2000 bars from {bar(0)} to"),
        (lambda bars, *_: 1.0, "float", "returns float 1.0 for 2000 bars"),
        (lambda bars, *_: bars, "float", "returns DataFrame"),
        (lambda bars, *_: bars["close"].astype("str"), "float", "is declared as float and returns str"),
        (lambda bars, *_: bars["close"] > 1, "float", "is declared as float and returns bool"),
        (lambda bars, *_: bars["close"], "bool", "is declared as bool and returns float64"),
        (lambda bars, *_: bars["close"], "text", "is declared as text and returns float64"),
        (lambda bars, *_: bars["close"].shift(-1), "float", f"at the bar {bar(199)} changes when later bars are left"),
        (lambda bars, *_: bars["close"].rolling(5, center=True).mean(), "float", "it looks ahead"),
        (lambda bars, *_: bars["close"] / bars["close"].mean(), "float", f"at the bar {bar(0)} changes"),
        (lambda bars, *_: bars["close"] < bars["close"].iloc[-1], "bool", "it looks ahead"),
        (lambda bars, *_: np.where(bars["close"] < bars["close"].iloc[-1], "a", "b"), "text", "it looks ahead"),
        (
            lambda bars, *_: bars["close"].cumsum(),
            "float",
            "when only the 1500 bars before are known: declare a larger",
        ),
        (
            lambda bars, *_: mean_20(bars) if len(bars) > 900 else {}["x"],
            "float",
            "raises KeyError when there are only",
        ),
    ],
)
def test_a_feature_that_breaks_its_contract_is_named_with_the_bar(compute: Compute, dtype: str, said: str) -> None:
    columns, problems = run(feature(compute, "bad", dtype, version=4), feature(mean_20, "good"))
    (problem,) = problems
    assert problem.startswith("Own feature bad (version 4) ")
    assert said in problem
    assert problem.endswith("its values are NULL.")
    assert len(problem) < 400
    assert columns["bad"].isna().all()
    assert columns["good"].notna().sum() == 1_981


def test_a_total_over_all_bars_is_accepted_when_it_is_declared() -> None:
    columns, problems = run(feature(lambda bars, *_: bars["volume"].cumsum(), warm_up=None))
    assert problems == ()
    assert columns["mine"].iloc[-1] == BARS["volume"].sum()


def test_a_feature_that_writes_into_its_bars_changes_them_for_no_other() -> None:
    def spoil(bars: pd.DataFrame, *_: object) -> pd.Series:
        bars["close"] = 0.0
        bars.loc[0, "high"] = -1.0
        return bars["close"]

    before = BARS.copy()
    columns, problems = run(feature(spoil, "spoil"), feature(mean_20))
    assert problems == ()
    pd.testing.assert_frame_equal(BARS, before)
    assert columns["mine"].iloc[-1] > 0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_series_may_have_few_bars(count: int) -> None:
    columns, problems = run(feature(mean_20), bars=take(BARS, 0, count))
    assert problems == ()
    assert columns["mine"].isna().tolist() == [True] * count


def test_invalid_declarations_are_named_and_the_others_count() -> None:
    good = feature(mean_20, "good")
    own = declared(
        [
            good,
            "gap",
            feature(mean_20, "Gap"),
            feature(mean_20, "atr"),
            feature(mean_20, "close"),
            feature(mean_20, "number", "int"),
            feature(mean_20, "short", warm_up=-1),
            feature(mean_20, "text", version="2"),
            feature("mean", "named"),  # type: ignore[arg-type]
            feature(mean_20, "labelled", labels=("a",)),
            feature(mean_20, "good"),
        ]
    )
    assert own.features == (good,)
    assert [problem.split(":")[0] for problem in own.problems] == [
        "Entry 2 of FEATURES is str, not an OwnFeature.",
        "Own feature 'Gap' has no usable name",
        "Own feature 'atr' has the name of a column that already exists.",
        "Own feature 'close' has the name of a column that already exists.",
        "Own feature 'number' has dtype 'int'",
        "Own feature 'short' has warm_up -1",
        "Own feature 'text' has version '2'",
        "Own feature 'named' has a compute that is not a function.",
        "Own feature 'labelled' has labels, which only text features may have and which must be text.",
        "Own feature 'good' is declared twice; the first one counts.",
    ]


def test_the_fingerprint_follows_what_the_values_depend_on() -> None:
    def digest(**changes: Any) -> str:
        return declared([feature(mean_20, **changes)]).digest

    assert NO_OWN_FEATURES.digest == ""
    assert digest() == digest(unit="price", price_scaled=True)
    assert len({digest(), digest(version=2), digest(name="other"), digest(dtype="text"), digest(warm_up=None)}) == 5


def test_the_warm_up_is_the_longest_that_any_feature_needs() -> None:
    assert NO_OWN_FEATURES.warm_up == 1_500
    assert declared([feature(mean_20, warm_up=10)]).warm_up == 1_500
    assert declared([feature(mean_20, warm_up=2_600)]).warm_up == 2_600
    assert declared([feature(mean_20, warm_up=2_600), feature(mean_20, "all", warm_up=None)]).warm_up is None
