"""What an answer of the vendor changes in what is stored.

Pure: two bar frames in, the difference out. Keep out: reading and writing either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.bars import VALUES, array, ts_us

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Delta:
    """Masks over the answer and the stored frame, and the first instant from which anything differs.

    Attributes:
        inserted: over the answer: bars that are not stored.
        updated: over the answer: bars stored with other values.
        replaced: over the stored frame: bars whose values are to be kept as revisions.
        first_us: start of the first bar that differs, microseconds since 1970 UTC; None when none does.
    """

    inserted: np.ndarray
    updated: np.ndarray
    replaced: np.ndarray
    first_us: int | None

    @property
    def rows_inserted(self) -> int:
        """How many bars are new."""
        return int(self.inserted.sum())

    @property
    def rows_updated(self) -> int:
        """How many stored bars changed or went."""
        return int(self.replaced.sum())

    @property
    def rows_removed(self) -> int:
        """How many stored bars went."""
        return self.rows_updated - int(self.updated.sum())


def compare(stored: pd.DataFrame, answer: pd.DataFrame) -> Delta:
    """Return what `answer` changes in `stored`; both are bar frames over the same stretch of time.

    A stored bar that the answer no longer has is taken out: the vendor withdrew it.
    """
    new_ts, old_ts = ts_us(answer), ts_us(stored)
    if not len(old_ts):
        nothing = np.zeros(len(new_ts), dtype=bool)
        return Delta(~nothing, nothing, np.zeros(0, dtype=bool), int(new_ts[0]) if len(new_ts) else None)
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
    return Delta(~held, updated, replaced, int(touched.min()) if len(touched) else None)
