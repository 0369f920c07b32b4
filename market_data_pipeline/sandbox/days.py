"""The intraday bars of a session as its day bar.

Add here: which bars a day's prices are taken from. Keep out: what only the vendor knows about a day that is over:
the auction's price and late trades (synthetic invents them, replay reads them).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from market_data_pipeline.sandbox.bars import MINUTE_MS, NO_BARS, Bars, aggregate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from market_data_pipeline.domain.calendar import Session

# From the start of the extended session at 04:00 New York, in minutes.
OPEN: Final = 330  # 09:30
CLOSE: Final = 720  # 16:00
EARLY_CLOSE: Final = 540  # 13:00


def days_of(bars: Bars, sessions: Sequence[Session], *, round_the_clock: bool) -> tuple[Bars, NDArray[np.bool_]]:
    """Return one bar for each session that has any, and which of these have regular hours.

    Starts are local midnights. Prices are those of regular hours, so some extended-hours prints lie outside; a day
    without (yet) any regular trade is made of what there is. Volume, VWAP and count are those of all bars.
    """
    if not len(bars) or not sessions:
        return NO_BARS, np.empty(0, dtype=bool)
    midnights = np.array([int(s.day_start.timestamp()) * 1000 for s in sessions], dtype="int64")
    starts = np.array([int(s.start.timestamp()) * 1000 for s in sessions], dtype="int64")
    at = np.searchsorted(midnights, bars.t, side="right") - 1
    whole = aggregate(bars, midnights[at])
    base = np.ones(len(whole), dtype="int64")
    if round_the_clock:
        return replace(whole, base=base), base > 0
    ends = np.array([EARLY_CLOSE if s.early_close else CLOSE for s in sessions])
    offset = (bars.t - starts[at]) // MINUTE_MS
    regular = np.flatnonzero((offset >= OPEN) & (offset < ends[at]))
    core = aggregate(bars.take(regular), midnights[at[regular]])
    here = np.searchsorted(whole.t, core.t)
    o, h, low, c = (column.copy() for column in (whole.o, whole.h, whole.low, whole.c))
    o[here], h[here], low[here], c[here] = core.o, core.h, core.low, core.c
    known = np.zeros(len(whole), dtype=bool)
    known[here] = True
    return Bars(whole.t, o, h, low, c, whole.v, whole.vw, whole.n, base), known
