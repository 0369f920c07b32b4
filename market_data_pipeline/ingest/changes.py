"""What a commit changed in bars that were held already: the corrections and filled holes that a run reports.

Add here: what a person is shown of a correction. Keep out: storing it (commit) and finding it (delta).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.bars import VALUES, ts_us
from market_data_pipeline.domain.instants import to_us
from market_data_pipeline.ingest.recompute import instant

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from market_data_pipeline.ingest.delta import Delta

SHOWN: Final = 5  # of one series in one run: enough to see what kind it is; the counts beside it are exact


class BarChange(NamedTuple):
    """One held bar that changed, or one that came late.

    Attributes:
        ts: the bar's start, aware UTC.
        kind: `corrected`, `withdrawn`, or `filled` for a bar where a hole was.
        column: the first value that differs; `close` for a bar that came or went.
        old: its value before, None for a filled hole or an unknown value.
        new: its value now, None for a withdrawn bar or an unknown value.
    """

    ts: datetime
    kind: str
    column: str
    old: float | None
    new: float | None


class Changes(NamedTuple):
    """What happened to the stretch of time that a series held before: an exact count of late bars, and a sample."""

    rows_filled: int
    sample: tuple[BarChange, ...]


def changes_of(stored: pd.DataFrame, answer: pd.DataFrame, delta: Delta, held_until: datetime | None) -> Changes:
    """Return what `delta` did to bars up to `held_until`.

    Args:
        stored: the bar frame as it was held.
        answer: the bar frame that it has to equal.
        delta: their difference.
        held_until: start of the last bar held before, aware UTC; None for a series without bars, of which nothing
            changed.
    """
    import numpy as np

    if held_until is None or delta.first_us is None:
        return Changes(0, ())
    new_us, old_us = ts_us(answer), ts_us(stored)
    late = delta.inserted & (new_us < to_us(held_until))
    rows_filled = int(late.sum())
    touched = np.unique(np.concatenate((old_us[delta.replaced], new_us[late])))[:SHOWN]
    return Changes(rows_filled, tuple(_change(int(us), stored, answer) for us in touched))


def _change(us: int, stored: pd.DataFrame, answer: pd.DataFrame) -> BarChange:
    old, new = _values(stored, us), _values(answer, us)
    if old is None or new is None:
        kind, column = ("filled", "close") if old is None else ("withdrawn", "close")
    else:
        kind, column = "corrected", next(name for name in VALUES if old[name] != new[name])
    before, after = (None if values is None else values[column] for values in (old, new))
    return BarChange(instant(us), kind, column, before, after)


def _values(bars: pd.DataFrame, us: int) -> dict[str, float | None] | None:
    starts = ts_us(bars)
    at = int(starts.searchsorted(us))
    if at == len(starts) or starts[at] != us:
        return None
    row = ((name, float(bars[name].iloc[at])) for name in VALUES)
    return {name: None if value != value else value for name, value in row}  # NaN: unknown
