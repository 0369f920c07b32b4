"""Split adjustment: which splits are in force, and how they rescale raw bars.

A split turns `split_from` old shares into `split_to` new ones at 00:00 New York of its execution date. Every bar that
starts before that instant has its prices multiplied by split_from / split_to and its volume divided by it, so that the
money traded stays the same. The vendor lists splits before they happen and lists some twice: those after today are
ignored until their day, and a ratio counts once a day. Different ratios on one day are different splits, and multiply:
in a cash-out of small holders, 500 shares become 1 and each of these 100. Which rows of the vendor's list are the
splits of a ticker is decided in `domain.contested`. The view `market_data.bars_adjusted` does the same in SQL.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.bars import PRICES, ts_us
from market_data_pipeline.domain.calendar import calendar_for, to_us
from market_data_pipeline.domain.series import AssetClass

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    import numpy as np
    import pandas as pd

NO_TICKER: Final = ""  # where a row of the vendor's list names no ticker


class Split(NamedTuple):
    """`split_from` old shares become `split_to` new ones: 1 and 4 in a four-for-one split, 10 and 1 in a reverse."""

    execution_date: date  # in force from 00:00 New York on
    split_from: float
    split_to: float

    @property
    def factor(self) -> float:
        """What prices before the day are multiplied by; two splits of one day with the same factor are the same."""
        return self.split_from / self.split_to


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
    import numpy as np

    applied = in_force(splits, today)
    new_york = calendar_for(AssetClass.US_EQUITY)
    instants = np.array([to_us(new_york.midnight(split.execution_date)) for split in applied], dtype="int64")
    ratios = np.array([split.factor for split in applied])
    remaining = np.r_[np.cumprod(ratios[::-1])[::-1], 1.0]  # of the splits from the i-th on
    factor: np.ndarray = remaining[np.searchsorted(instants, ts_us, side="right")]
    return factor


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
