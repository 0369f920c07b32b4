"""What the domain's laws are tried on: instants, intervals, sessions and bar frames."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from market_data_pipeline.domain.bars import VALUES, bar_frame
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Timeframe

if TYPE_CHECKING:
    import pandas as pd

NEW_YORK = ZoneInfo("America/New_York")
EQUITIES = calendar_for(AssetClass.US_EQUITY)
CRYPTO = calendar_for(AssetClass.CRYPTO)
INTRADAY = (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4)
COARSE = (Timeframe.M15, Timeframe.H1, Timeframe.H4)

# Hypothesis also tries constants of the modules that the process has loaded by then: with them, the examples of a test
# would depend on which tests ran before it in its process.
providers._get_local_constants = lambda: providers._local_constants

# The same examples on every run and no time limit: a slow machine fails nothing.
laws = settings(deadline=None, derandomize=True, max_examples=100)

# A few years with every kind of holiday, early close and change of clock.
START, END = datetime(2023, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
calendars = st.sampled_from([EQUITIES, CRYPTO])
instants = st.integers(0, int((END - START).total_seconds()) // 60).map(lambda m: START + timedelta(minutes=m))
days = st.dates(date(2023, 1, 1), date(2026, 12, 31))


def new_york(text: str) -> datetime:
    """Return a New York wall-clock time such as `2025-11-28 04:00` in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    """An interval on a small grid of hours, so that touching, nested and empty ones are common."""
    start, length = draw(st.integers(0, 40)), draw(st.integers(0, 8))
    return Interval(START + timedelta(hours=start), START + timedelta(hours=start + length))


@st.composite
def bar_frames(draw: st.DrawFn, *, gaps: bool = True) -> tuple[pd.DataFrame, AssetClass]:
    """Some of the 5m bars of a week, some without vwap, trades or volume when `gaps` is set; and their asset class."""
    calendar = draw(calendars)
    day = draw(days)
    start = calendar.midnight(day)
    slots = calendar.slots_between(Timeframe.M5, Interval(start, start + timedelta(days=draw(st.integers(1, 7)))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    held = slots[rng.random(len(slots)) < draw(st.sampled_from([1.0, 0.5, 0.02]))]
    low = 100 + rng.normal(size=len(held)).cumsum() * 0.05
    values = {"low": low, "high": low + rng.random(len(held))}
    for name in ("open", "close", "vwap"):
        values[name] = low + rng.random(len(held)) * (values["high"] - low)
    values["volume"] = rng.integers(1, 10_000, len(held)).astype("float64")
    values["trades"] = rng.integers(1, 500, len(held)).astype("float64")
    if gaps:
        for name, missing in (("vwap", np.nan), ("trades", np.nan), ("volume", 0.0)):
            values[name][rng.random(len(held)) < 0.05] = missing
    return bar_frame(held, {name: values[name] for name in VALUES}), calendar.asset_class
