"""A stock: the newest records of a series, each encoded as JSON, from which the answer to any window of them is cut.

Clients ask about the same records in ever other words: another `limit`, a `start` that moves on. What is costly,
reading and encoding, is done once per commit of a series; cutting takes a tenth of that, most of it to unpack: packed,
512 records with features are 75 kB instead of 300, and four times as many series fit into the same memory.
Keep out: how long a stock holds (shelf), and reading it (reading, series_answers).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.serving.reading import Held, Range

# Deepest stock, in records: beyond it the windows are few and large, and would push the others out.
DEEPEST: Final = 2_048
_STEP: Final = 128  # records; who asks for 450 and who asks for 500 share a stock
# A correction made by hand, which notifies nobody, is seen after at most this long, in seconds.
SHELF_LIFE_SECONDS: Final = 60.0


class StockKey(NamedTuple):
    """What a stock holds: records of one endpoint, with or without adjustment."""

    series: Series
    records_key: str
    adjusted: bool


@dataclass(frozen=True, slots=True)
class Stock:
    """The newest records of a series, as one snapshot of the database held them.

    Attributes:
        series: whose records they are.
        held: what else that snapshot said of the series.
        packed: JSON objects that begin with `ts`, ascending, a line each; see `packed`.
        oldest: start of the first of them, as `start_of` has it.
        whole: whether these are all records of the series.
        expires: monotonic seconds; see `SHELF_LIFE_SECONDS`.
        remake: has it read anew and kept, unless another is kept already.
    """

    series: Series
    held: Held
    packed: bytes
    oldest: bytes
    whole: bool
    expires: float
    remake: Callable[[], Awaitable[None]]

    @property
    def size(self) -> int:
        """Bytes that it occupies."""
        return len(self.packed)

    @property
    def valid_until(self) -> datetime | None:
        """When a known split changes the prices without a commit, aware UTC; None for never."""
        return self.held.next_split

    def cut(self, wanted: Range) -> Sequence[bytes] | None:
        """Return the newest `wanted.limit` records of the range, or None when the stock does not reach so far back."""
        start = bound(wanted.start)
        if not self.whole and wanted.end is not None and start < self.oldest >= bound(wanted.end):
            return None  # nothing of it is here: there is no need to unpack anything
        records = isal_zlib.decompress(self.packed).split(b"\n")[:-1] if self.packed else []
        end = len(records) if wanted.end is None else bisect_left(records, bound(wanted.end), key=start_of)
        first = end - wanted.limit
        reaches = self.whole or first >= 0 or (bool(records) and start >= start_of(records[0]))
        if not reaches:
            return None
        return records[max(first, bisect_left(records, start, key=start_of), 0) : end]


def packed(lines: bytes) -> bytes:
    """Return records, JSON objects with a line's end after each, as a stock keeps them; empty for none."""
    return isal_zlib.compress(lines, 1) if lines else b""


def depth_for(limit: int) -> int:
    """Return how many records a stock should hold for windows of `limit`."""
    return -(-limit // _STEP) * _STEP


def start_of(record: bytes) -> bytes:
    """Return the start of the bar in a record, ISO 8601 without a zone, which sorts as the instants do."""
    return record[7:26]  # after {"ts":"


def bound(instant: datetime | None) -> bytes:
    """Return an aware UTC instant as `start_of` has it; a fraction of a second sorts after the second."""
    return b"" if instant is None else instant.replace(tzinfo=None).isoformat().encode()
