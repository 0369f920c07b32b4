"""What a commit says about closes that jump without a known reason (domain.jumps)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.calendar import calendar_for, from_us
from market_data_pipeline.domain.jumps import jumps
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of

if TYPE_CHECKING:
    import pandas as pd


def jump_doubts(series: Series, bars: pd.DataFrame, first_us: int | None) -> tuple[str, ...]:
    """Return a sentence about the unexplained jumps in the adjusted bars of a day series; none for others and indices.

    An index has no split, and no turnover that would tell the market's own jump: volatility doubles in a day.

    Args:
        series: whose bars.
        bars: the adjusted bars that a commit computed features of, warm-up included.
        first_us: start of the first bar that changed, in microseconds; None when others than bars made it compute.
    """
    if series.timeframe is not Timeframe.D1 or bars.empty or not asset_class_of(series.symbol).market.has_volume:
        return ()
    found = [jump for jump in jumps(bars) if first_us is None or jump.ts_us >= first_us]
    if not found:
        return ()
    day = calendar_for(asset_class_of(series.symbol)).session_date(from_us(found[0].ts_us))
    more = f" (and {len(found) - 1} more such jumps)" if found[1:] else ""
    return (
        f"The adjusted close of {series.symbol} jumped {found[0]} on {day}{more}, and no known split explains it: "
        "one may be missing, or the ticker was given to another security.",
    )
