"""Adjustment: which splits and dividends are in force, and how they rescale raw bars.

A split turns `split_from` old shares into `split_to` new ones at 00:00 New York of its execution date. Every bar that
starts before that instant has its prices multiplied by split_from / split_to and its volume divided by it, so that the
money traded stays the same. The vendor lists splits before they happen and lists some twice: those after today are
ignored until their day, and a ratio counts once a day. Different ratios on one day are different splits, and multiply:
in a cash-out of small holders, 500 shares become 1 and each of these 100. Which rows of the vendor's list are the
splits of a ticker is decided in `domain.contested`. The view `market_data.bars_adjusted` does the same in SQL.

A dividend lowers the price by its amount at 00:00 New York of its ex date, so the prices before are multiplied by
1 - amount / close, where close is the raw close of the last session before, as a price of a share of the ex date; all
dividends of one day count as one. Volume stays, since no share is added. This is the adjusted close of CRSP, Yahoo and
Lean, and the vendor's `historical_adjustment_factor`; docs/adjustments.md has the sources. The function
`market_data.dividend_factors` does the same in SQL.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from market_data_pipeline.domain.bars import PRICES, ts_us
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date
    from typing import TypeAlias

    import numpy as np
    import pandas as pd

    Adjusted: TypeAlias = bool | Literal["none", "splits", "all"]

PRICE_CURRENCY: Final = "USD"  # a dividend in another one is no part of a price: no rate of exchange is known here
NO_TICKER: Final = ""  # where a row of the vendor's list names no ticker


class Adjustment(StrEnum):
    """What bars are adjusted for when they are read."""

    RAW = "raw"  # nothing: as traded
    SPLITS = "splits"
    ALL = "all"  # splits and dividends: of such closes, returns are total returns

    @classmethod
    def of(cls, adjusted: object) -> Adjustment:
        """Return what a reader's argument `adjusted` means.

        Raises:
            UsageError: it means nothing.
        """
        if isinstance(adjusted, bool):
            return cls.SPLITS if adjusted else cls.RAW
        found = cls.RAW if adjusted == "none" else next((each for each in cls if each == adjusted), None)
        if found is None:
            raise UsageError(f"adjusted must be 'none' or False, 'splits' or True, or 'all', not {adjusted!r}.")
        return found


class Split(NamedTuple):
    """`split_from` old shares become `split_to` new ones: 1 and 4 in a four-for-one split, 10 and 1 in a reverse."""

    execution_date: date  # in force from 00:00 New York on
    split_from: float
    split_to: float

    @property
    def factor(self) -> float:
        """What prices before the day are multiplied by; two splits of one day with the same factor are the same."""
        return self.split_from / self.split_to


class ListedDividend(NamedTuple):
    """A cash dividend as the vendor lists it: `amount` for each share of `ex_date`, in `currency`.

    What the vendor does not say is None. Ticker, ex date, amount and currency identify it.
    """

    symbol: str
    ex_date: date
    amount: float
    currency: str
    declaration_date: date | None = None
    record_date: date | None = None
    pay_date: date | None = None
    frequency: int | None = None  # payments a year, 0 for one that is paid once
    type: str | None = None
    vendor_id: str | None = None


class Dividend(NamedTuple):
    """All dividends of a ticker with one ex date that are in the currency of its prices."""

    ex_date: date  # in force from 00:00 New York on
    amount: float  # of one share of that day
    close: float  # raw, of the last session before
    shares: float = 1.0  # what that close is multiplied by to be the price of a share of the ex date

    @property
    def factor(self) -> float:
        """What prices before the day are multiplied by: 1, as if there were none, for what no price can contain."""
        price = self.close * self.shares
        return 1 - self.amount / price if self.amount < price else 1.0


class Actions(NamedTuple):
    """What the bars of one ticker are adjusted for."""

    splits: Sequence[Split] = ()
    dividends: Sequence[Dividend] = ()


def in_force(splits: Iterable[Split], today: date) -> tuple[Split, ...]:
    """Return the splits of ONE ticker that adjust its history on `today` (New York), each once, by date."""
    found: dict[tuple[date, float], Split] = {}
    for split in sorted(splits):
        if split.execution_date <= today:
            found.setdefault((split.execution_date, split.factor), split)
    return tuple(found.values())


def price_factor(ts_us: np.ndarray, splits: Iterable[Split], today: date) -> np.ndarray:
    """Return the factor that each bar's raw prices are multiplied by and its volume is divided by.

    Args:
        ts_us: the bars' starts, int64 microseconds since 1970 UTC.
        splits: of the bars' ticker, in any order, future and repeated ones included.
        today: the New York date; later splits are not in force.

    Returns:
        float64, as long as `ts_us`; 1.0 after the last split.
    """
    return _factor(ts_us, *_by_day(in_force(splits, today)))


def dividend_factor(ts_us: np.ndarray, dividends: Iterable[Dividend], today: date) -> np.ndarray:
    """Return what each bar's prices are multiplied by for dividends, in addition to `price_factor`; 1.0 after the last.

    Args:
        ts_us: the bars' starts, int64 microseconds since 1970 UTC.
        dividends: of the bars' ticker, in any order, one for each ex date, future ones included.
        today: the New York date; later dividends are not in force.
    """
    applied = sorted(dividend for dividend in dividends if dividend.ex_date <= today)
    return _factor(ts_us, [dividend.ex_date for dividend in applied], [dividend.factor for dividend in applied])


def _factor(ts_us: np.ndarray, days: Sequence[date], factors: Sequence[float]) -> np.ndarray:
    """Return the product of the factors of all days that begin after each bar's start; the days ascend."""
    import numpy as np

    new_york = calendar_for(AssetClass.US_EQUITY)
    instants = np.array([to_us(new_york.midnight(day)) for day in days], dtype="int64")
    remaining = np.r_[np.cumprod(np.array(factors)[::-1])[::-1], 1.0]  # of the days from the i-th on
    factor: np.ndarray = remaining[np.searchsorted(instants, ts_us, side="right")]
    return factor


def with_closes(
    paid: Iterable[tuple[date, float]], splits: Iterable[Split], starts_us: np.ndarray, closes: np.ndarray
) -> list[Dividend]:
    """Return the dividends of one ticker with the closes before them; those without one before have nothing to adjust.

    Args:
        paid: ex date and amount of each, in the currency of the prices; those of one day are added up.
        splits: of the ticker.
        starts_us: of its day bars, int64 microseconds since 1970 UTC, ascending.
        closes: theirs, raw.
    """
    import numpy as np

    by_day: defaultdict[date, list[float]] = defaultdict(list)
    for ex_date, amount in paid:
        by_day[ex_date].append(amount)
    splits, new_york = tuple(splits), calendar_for(AssetClass.US_EQUITY)
    found = []
    for ex_date, amounts in sorted(by_day.items()):
        before = int(np.searchsorted(starts_us, to_us(new_york.midnight(ex_date)))) - 1
        if before >= 0:
            shares = price_factor(starts_us[[before]], splits, ex_date)[0]
            found.append(Dividend(ex_date, sum(sorted(amounts)), float(closes[before]), float(shares)))
    return found


def _by_day(splits: Sequence[Split]) -> tuple[list[date], list[float]]:
    return [split.execution_date for split in splits], [split.factor for split in splits]


def adjust(bars: pd.DataFrame, splits: Iterable[Split], today: date) -> pd.DataFrame:
    """Return `bars`, a bar frame, with prices, vwap and volume adjusted; `bars` itself when no split affects it.

    The other arguments are those of `price_factor`.
    """
    factor = price_factor(ts_us(bars), splits, today)
    if (factor == 1.0).all():
        return bars
    changed = {name: bars[name] * factor for name in (*PRICES, "vwap")}
    return bars.assign(**changed, volume=bars["volume"] / factor)


def digest(splits: Iterable[Split], today: date) -> str:
    """Return a fingerprint of the splits in force on `today`: equal exactly when the splits are, empty for none."""
    applied = in_force(splits, today)
    text = ";".join(f"{s.execution_date.isoformat()} {float(s.split_from)!r}:{float(s.split_to)!r}" for s in applied)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if applied else ""
