"""Dividend adjustment against published factors and adjusted closes, and its rules for days with several events."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline.domain.adjustments import (
    Adjustment,
    Dividend,
    Split,
    dividend_factor,
    price_factor,
    with_closes,
)
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline_tests.recorded import FULL, SAMPLE, needs_full

LATER = dt.date(2030, 1, 1)
APPLES_SPLITS = tuple(
    Split(dt.date.fromisoformat(day), 1, new)
    for day, new in (("2000-06-21", 2), ("2005-02-28", 2), ("2014-06-09", 7), ("2020-08-31", 4))
)


def starts(*days: dt.date | str) -> np.ndarray:
    midnight = calendar_for(AssetClass.US_EQUITY).midnight
    return np.array([to_us(midnight(dt.date.fromisoformat(str(day)))) for day in days])


def factors(
    days: np.ndarray, paid: list[tuple[dt.date, float]], splits: tuple[Split, ...], closes: np.ndarray
) -> np.ndarray:
    """The factor of each day bar's prices for splits and dividends."""
    dividends = with_closes(paid, splits, days, closes)
    found: np.ndarray = price_factor(days, splits, LATER) * dividend_factor(days, dividends, LATER)
    return found


class Published:
    """A factor file: date, price factor, split factor, reference price; a row's factors hold up to its date."""

    def __init__(self, file: Path) -> None:
        rows = [row for row in csv.reader(file.read_text().split()) if row]
        self.dates = [dt.date.fromisoformat(row[0]) for row in rows]
        self.prices, self.splits, self.reference = np.array([row[1:] for row in rows], "float64").T

    def dividends(self) -> list[tuple[dt.date, float]]:
        """What each change of the price factor stands for: ex date and amount."""
        calendar, last = calendar_for(AssetClass.US_EQUITY), len(self.dates) - 1
        amounts = self.reference[:last] * (1 - self.prices[:last] / self.prices[1:])
        return [
            (calendar.next_session(self.dates[at]).date, float(amount))
            for at, amount in enumerate(amounts)
            if amount > 0
        ]

    def at(self, days: list[dt.date]) -> np.ndarray:
        """The price factor of each day."""
        rows = np.searchsorted(np.array(self.dates, "datetime64[D]"), np.array(days, "datetime64[D]"))
        found: np.ndarray = self.prices[rows]
        return found


def test_a_split_and_a_dividend_give_the_adjusted_closes_of_the_providers_example() -> None:
    """Yahoo's help page on adjusted close (SLN28256): 2 for 1 on 18 February, and 0.08 on 21 February, of 24.95."""
    closes = np.array([46.99, 48.30, 24.96, 24.91, 24.95, 24.53, 24.54])
    days = starts("2003-02-12", "2003-02-13", "2003-02-18", "2003-02-19", "2003-02-20", "2003-02-21", "2003-02-24")
    splits = (Split(dt.date(2003, 2, 18), 1, 2),)
    adjusted = closes * factors(days, [(dt.date(2003, 2, 21), 0.08)], splits, closes)
    assert adjusted.round(2).tolist() == [23.42, 24.07, 24.88, 24.83, 24.87, 24.53, 24.54]


def test_the_dividends_that_apple_declared_give_the_published_factors() -> None:
    """The file has seven digits; the closes are its reference prices."""
    published = Published(SAMPLE / "factors" / "AAPL.csv")
    with (SAMPLE / "dividends.csv").open() as stream:
        declared = [
            (dt.date.fromisoformat(row["ex_dividend_date"]), float(row["cash_amount"]))
            for row in csv.DictReader(stream)
        ]
    days, closes = published.dates[:-1], published.reference[:-1]
    found = dividend_factor(starts(*days), with_closes(declared, APPLES_SPLITS, starts(*days), closes), LATER)
    np.testing.assert_allclose(found, published.prices[:-1], atol=1.5e-7)
    assert len(declared) == 35


def test_dividends_derived_from_published_factors_give_them_back() -> None:
    published = Published(SAMPLE / "factors" / "AAPL.csv")
    days, closes = published.dates[:-1], published.reference[:-1]
    found = factors(starts(*days), published.dividends(), APPLES_SPLITS, closes)
    exact = price_factor(starts(*days), APPLES_SPLITS, LATER)
    np.testing.assert_allclose(found, published.prices[:-1] * exact, rtol=1e-12)
    np.testing.assert_allclose(exact, published.splits[:-1], rtol=3e-6)  # the file has six digits of 1/112


@needs_full
@pytest.mark.parametrize("ticker", ["AAPL", "SPY"])
def test_recorded_closes_times_published_factors_are_the_adjusted_closes(ticker: str) -> None:
    published = Published(FULL / "actions" / "factor_files" / f"{ticker.lower()}.csv")
    bars = pd.read_csv(FULL / "day" / f"{ticker}.csv.gz")
    days = pd.to_datetime(bars["window_start"], utc=True).dt.tz_convert("America/New_York").dt.date.tolist()
    recorded = pd.read_csv(FULL / "splits.csv", parse_dates=["execution_date"])
    splits = tuple(
        Split(row.execution_date.date(), row.split_from, row.split_to)
        for row in recorded[recorded["ticker"] == ticker].itertuples()
    )
    closes, at = bars["close"].to_numpy(), starts(*days)
    adjusted = closes * factors(at, published.dividends(), splits, closes)
    exact = price_factor(at, splits, LATER)
    first = days.index(next(day for day in days if day >= published.dates[0]))
    np.testing.assert_allclose(adjusted[first:], (closes * published.at(days) * exact)[first:], rtol=1e-9)


def test_dividends_of_one_day_are_one_and_those_of_neighbouring_days_multiply() -> None:
    days, closes = starts("2024-03-01", "2024-03-04", "2024-03-05"), np.array([50.0, 40.0, 38.0])
    both = [(dt.date(2024, 3, 4), 1.0), (dt.date(2024, 3, 4), 4.0), (dt.date(2024, 3, 5), 2.0)]
    assert factors(days, both, (), closes) == pytest.approx([(1 - 5 / 50) * (1 - 2 / 40), 1 - 2 / 40, 1])


def test_a_dividend_on_the_day_of_a_split_is_of_the_new_shares() -> None:
    """100 before; 4 for 1: 25, and 1 of each new share leaves 24, a total return of 0."""
    days, closes = starts("2024-03-01", "2024-03-04"), np.array([100.0, 24.0])
    adjusted = closes * factors(days, [(dt.date(2024, 3, 4), 1.0)], (Split(dt.date(2024, 3, 4), 1, 4),), closes)
    assert adjusted == pytest.approx([24.0, 24.0])


def test_the_close_before_may_be_some_days_and_a_split_ago() -> None:
    days, closes = starts("2024-03-01", "2024-03-15"), np.array([100.0, 24.0])
    found = with_closes([(dt.date(2024, 3, 15), 1.0)], [Split(dt.date(2024, 3, 8), 1, 4)], days, closes)
    assert found == [Dividend(dt.date(2024, 3, 15), 1.0, 100.0, 0.25)]
    assert found[0].factor == pytest.approx(24 / 25)


def test_a_dividend_adjusts_what_starts_before_midnight_in_new_york_and_not_before_its_day() -> None:
    dividend = Dividend(dt.date(2024, 6, 10), 1.0, 10.0)
    midnight = int(starts("2024-06-10")[0])
    assert dividend_factor(np.array([midnight - 1, midnight]), [dividend], LATER).tolist() == [0.9, 1.0]
    assert dividend_factor(np.array([midnight - 1]), [dividend], dt.date(2024, 6, 9)).tolist() == [1.0]


def test_what_no_price_can_contain_adjusts_nothing() -> None:
    days, closes = starts("2024-03-01"), np.array([10.0])
    assert with_closes([(dt.date(2024, 3, 1), 1.0)], (), days, closes) == []  # no close before
    assert Dividend(dt.date(2024, 3, 4), 10.0, 10.0).factor == 1.0


def test_readers_name_an_adjustment_by_word_or_as_before() -> None:
    assert [Adjustment.of(given) for given in (True, False, "none", "raw", "splits", "all")] == [
        *("splits", "raw", "raw", "raw", "splits", "all")
    ]
    for wrong in ("dividends", None, 2):
        with pytest.raises(UsageError, match="adjusted must be 'none' or False, 'splits' or True, or 'all', not"):
            Adjustment.of(wrong)
