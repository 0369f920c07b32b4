"""Changes between neighbouring session closes that neither the name's habits nor a known split explain.

A split that the vendor does not list, a ticker given to another security, a close in other units: each moves adjusted
closes to another level, and no market did that. A market's own jump, a crash or a takeover, exceeds the name's habits
too, but comes with many times its usual turnover, which a missing split leaves as it is; and a wrong print is taken
back by the next session. Thresholds were chosen on twenty years of day bars of four names: there each split that is
left out is found, and nothing else, not even the 52 % that AAPL lost on 2000-09-29. `reports.quality` asks the same of
everything that is stored, in SQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.bars import ts_us

if TYPE_CHECKING:
    import pandas as pd

# Smaller changes are ordinary: the smallest usual split, 5 for 4, is one of 20 %.
LEAST: Final = 0.223  # of the logarithm of the price: 25 % up, 20 % down

# Fewer changes than this show no habits. Then only one of a third down or half up counts that resembles a split.
FEWEST: Final = 3
WITHOUT_HABITS: Final = 0.405

# How many robust standard deviations (1.4826 times the median absolute deviation) the name's own changes reach.
DEVIATIONS: Final = 10.0
ROBUST: Final = 1.4826

# Days between closes that count as neighbouring sessions: a weekend and a holiday. Beyond, changes grow by the root.
USUAL_DAYS: Final = 4.0

# A change with this many times the median turnover of the sessions before is the market's own ...
NEWS: Final = 4.0
NEWS_SESSIONS: Final = 20
# ... and one of which the neighbouring session takes back at least this share is a wrong print ...
TAKEN_BACK: Final = 0.5
# ... unless the price multiplies or falls by four: a ticker given to another security has another turnover, too.
ALWAYS: Final = 1.386

_WHOLE: Final = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    15,
    20,
    25,
    30,
    40,
    50,
    60,
    75,
    80,
    100,
    125,
    150,
    200,
    250,
    300,
    500,
    1000,
)
_TERMS: Final = ((5, 4), (4, 3), (3, 2), (5, 2), *((new, 1) for new in _WHOLE))
# New shares for old ones, and what prices are multiplied by: `2:1` halves them, `1:8` multiplies them by eight.
RATIOS: Final = {f"{new}:{old}": old / new for pair in _TERMS for new, old in (pair, pair[::-1])}
RESEMBLES: Final = 0.1  # of the logarithm of the price; what the market does besides on such a day


class Jump(NamedTuple):
    """One unexplained change: the bar's start in microseconds, the closes before and after, and a ratio like it."""

    ts_us: int
    before: float
    after: float
    resembles: str | None  # new shares for old ones, `10:1`

    def __str__(self) -> str:
        """Return the change in words."""
        like = f", which resembles a {self.resembles} split" if self.resembles else ""
        return f"from {self.before:,.10g} to {self.after:,.10g}{like}"


def resembling(factor: float) -> str | None:
    """Return the usual split ratio that changes prices by about `factor`, None when there is none."""
    import math

    name = min(RATIOS, key=lambda each: abs(math.log(factor / RATIOS[each])))
    return name if abs(math.log(factor / RATIOS[name])) <= RESEMBLES else None


def jumps(bars: pd.DataFrame) -> list[Jump]:
    """Return the unexplained changes in a split-adjusted bar frame of day bars, the largest first."""
    import numpy as np
    import pandas as pd

    if len(bars) < 2:
        return []
    close, starts = bars["close"].to_numpy(dtype="float64"), ts_us(bars)
    change = np.diff(np.log(close))
    if len(change) < FEWEST:
        like_splits = np.array([resembling(float(factor)) is not None for factor in np.exp(change)])
        unusual = (np.abs(change) >= WITHOUT_HABITS) & (like_splits | (np.abs(change) >= ALWAYS))
    else:
        off = np.abs(change - np.median(change))
        sessions = np.maximum(1.0, np.diff(starts) / 86_400e6 / USUAL_DAYS)
        unusual = off > np.maximum(LEAST, DEVIATIONS * ROBUST * np.median(off) * np.sqrt(sessions))
    if not unusual.any():
        return []
    turnover = pd.Series(close * bars["volume"].to_numpy(dtype="float64"))
    usual = turnover.shift(1).rolling(NEWS_SESSIONS, min_periods=1).median()
    news = (turnover >= NEWS * usual).to_numpy()[1:]
    before, after = np.r_[0.0, change[:-1]], np.r_[change[1:], 0.0]
    back = np.minimum(np.abs(change + before), np.abs(change + after)) <= TAKEN_BACK * np.abs(change)
    found = np.flatnonzero(unusual & (~(news | back) | (np.abs(change) >= ALWAYS)))
    return [
        Jump(int(starts[at + 1]), float(close[at]), float(close[at + 1]), resembling(float(np.exp(change[at]))))
        for at in sorted(found.tolist(), key=lambda at: -abs(float(change[at])))
    ]
