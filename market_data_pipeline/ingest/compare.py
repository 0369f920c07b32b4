"""How an answer of the vendor differs from the stored bars, and which of the changes a run reports.

Pure: two bar frames in, the difference out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from market_data_pipeline.domain.bars import VALUES, array, ts_us
from market_data_pipeline.domain.calendar import from_us, to_us

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd


@dataclass(frozen=True, slots=True)
class Delta:
    """Masks over the answer and the stored frame, and from where to where they differ.

    Attributes:
        inserted: over the answer: bars that are not stored.
        updated: over the answer: bars stored with other values.
        replaced: over the stored frame: bars whose values are to be kept as revisions.
        first_us: start of the first bar that differs, microseconds since 1970 UTC; None when none does.
        last_us: start of the last one.
    """

    inserted: np.ndarray
    updated: np.ndarray
    replaced: np.ndarray
    first_us: int | None
    last_us: int | None

    @property
    def rows_inserted(self) -> int:
        """How many bars are new."""
        return int(self.inserted.sum())

    @property
    def rows_updated(self) -> int:
        """How many stored bars changed or were withdrawn."""
        return int(self.replaced.sum())

    @property
    def rows_removed(self) -> int:
        """How many stored bars were withdrawn."""
        return self.rows_updated - int(self.updated.sum())


def compare(stored: pd.DataFrame, answer: pd.DataFrame) -> Delta:
    """Return what `answer` changes in `stored`; both are bar frames over the same spans.

    A stored bar that the answer no longer has is removed: the vendor withdrew it.
    """
    new_ts, old_ts = ts_us(answer), ts_us(stored)
    if not len(old_ts):
        nothing = np.zeros(len(new_ts), dtype=bool)
        first, last = (int(new_ts[0]), int(new_ts[-1])) if len(new_ts) else (None, None)
        return Delta(~nothing, nothing, np.zeros(0, dtype=bool), first, last)
    at = np.minimum(np.searchsorted(old_ts, new_ts), len(old_ts) - 1)
    held = old_ts[at] == new_ts
    differs = np.zeros(len(new_ts), dtype=bool)
    for name in VALUES:
        new, old = array(answer, name), array(stored, name)[at]
        differs |= ~((new == old) | (np.isnan(new) & np.isnan(old)))
    updated = held & differs
    replaced = ~np.isin(old_ts, new_ts, assume_unique=True)
    replaced[at[updated]] = True
    touched = np.concatenate((new_ts[~held], old_ts[replaced]))
    first, last = (int(touched.min()), int(touched.max())) if len(touched) else (None, None)
    return Delta(~held, updated, replaced, first, last)


SHOWN: Final = 5  # per series and run: enough to show the kind of change; the counts shown with the sample are exact


class BarChange(NamedTuple):
    """One stored bar that changed, or one that arrived late.

    Attributes:
        ts: the bar's start, aware UTC.
        kind: `corrected`, `withdrawn`, or `filled` for a bar where there was a gap.
        column: the first value that differs; `close` for a filled or withdrawn bar.
        old: its value before, None for a filled gap or an unknown value.
        new: its value now, None for a withdrawn bar or an unknown value.
    """

    ts: datetime
    kind: str
    column: str
    old: float | None
    new: float | None


class Changes(NamedTuple):
    """What changed up to the last bar stored before: an exact count of late bars, and a sample of all changes."""

    rows_filled: int
    sample: tuple[BarChange, ...]


def changes_of(stored: pd.DataFrame, answer: pd.DataFrame, delta: Delta, held_until: datetime | None) -> Changes:
    """Return what `delta` did to bars up to `held_until`.

    Args:
        stored: the bar frame as it was stored.
        answer: the bar frame that replaces it.
        delta: their difference.
        held_until: start of the last bar stored before, aware UTC; None for a series that had no bars, in which nothing
            counts as changed.
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
    return BarChange(from_us(us), kind, column, before, after)


def _values(bars: pd.DataFrame, us: int) -> dict[str, float | None] | None:
    starts = ts_us(bars)
    at = int(starts.searchsorted(us))
    if at == len(starts) or starts[at] != us:
        return None
    row = ((name, float(bars[name].iloc[at])) for name in VALUES)
    return {name: None if value != value else value for name, value in row}  # NaN: unknown
