"""What an account is worth that holds a stock: adjusted closes, computed otherwise than by factors.

It has one share at first. Splits change the number, and each dividend buys shares at the close before its ex date. What
the account is worth on a day, for each share that it ends with, is the adjusted close of that day.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date


def adjusted_closes(
    raw: Mapping[date, float], splits: Mapping[date, float], dividends: Mapping[date, float]
) -> dict[date, float]:
    """Return the adjusted closes of the days of `raw`.

    Args:
        raw: closes as traded.
        splits: new shares for an old one, by execution date, of those in force.
        dividends: dollars for a share of the ex date, by ex date, of those in force.
    """
    shares, before, worth = 1.0, None, {}
    for day in sorted({*raw, *splits, *dividends}):
        new = splits.get(day, 1.0)
        shares *= new
        if before is not None:
            before /= new
            if day in dividends:
                shares *= before / (before - dividends[day])
        if day in raw:
            before = raw[day]
            worth[day] = shares * before
    return {day: value / shares for day, value in worth.items()}
