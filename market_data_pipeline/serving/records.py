"""A page of records as JSON, made of rows or cut from the newest records of a series, which are kept for that.

Clients request the same records in many ways: with another `limit`, or a `start` that moves on. Reading and encoding
are done once per commit of a series; cutting takes a fifth of that, most of it unpacking.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from isal import isal_zlib

from market_data_pipeline.serving.formats import json_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Column, Range, Rows, SeriesSummary

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_STEP: Final = 128  # records


class Page(NamedTuple):
    """Encoded records of one series.

    Attributes:
        content: for JSON the array of them.
        size: how many they are.
        first: the start of the first of them, aware UTC; None without one.
        last: the start of the last of them.
        is_cut: whether the range has older records that `limit` cut off.
    """

    content: bytes
    size: int
    first: datetime | None
    last: datetime | None
    is_cut: bool


def trimmed(rows: Rows, limit: int) -> tuple[Rows, bool]:
    """Return the newest `limit` of `rows`, which were read with a limit of one more, and whether that cut any off."""
    return (rows[-limit:], True) if len(rows) > limit else (rows, False)


@dataclass(frozen=True, slots=True)
class Records:
    """The newest records of a series, encoded as JSON, from which a page of any window of them is cut.

    Packed, 512 records with features are 75 kB instead of 300, and four times as many series fit into the same memory.

    Attributes:
        series: the series of the records.
        summary: what else the same snapshot of the database says about the series.
        packed: the objects with a comma after each, compressed.
        starts: of the records' bars, microseconds since 1970, ascending.
        offsets: where in the unpacked text each record begins, and where the last one ends.
        is_complete: whether these are all records of the series.
    """

    series: Series
    summary: SeriesSummary
    packed: bytes
    starts: array[int]
    offsets: array[int]
    is_complete: bool

    @classmethod
    def of(
        cls, series: Series, summary: SeriesSummary, columns: Sequence[Column], rows: Rows, *, is_complete: bool
    ) -> Records:
        """Return the records of `rows`, whose first column is `ts`."""
        lines = json_lines(columns, rows)
        sizes = map(len, lines.splitlines(keepends=True))
        return cls(
            series,
            summary,
            isal_zlib.compress(lines.replace(b"\n", b","), 1),
            array("q", [_microseconds(row[0]) for row in rows]),
            array("q", accumulate(sizes, initial=0)),
            is_complete,
        )

    @property
    def size(self) -> int:
        """Bytes that it occupies."""
        return len(self.packed) + self.starts.itemsize * (2 * len(self.starts) + 1)

    @property
    def valid_until(self) -> datetime | None:
        """When a known split or dividend changes the prices without a commit, aware UTC; None for never."""
        return self.summary.next_action

    def cut(self, requested: Range) -> Page | None:
        """Return the newest `requested.limit` records of the range, or None when these do not reach back far enough.

        They do when they are all there is, begin before the range, or have one record more than are requested, which
        shows that the range has more.
        """
        starts = self.starts
        lowest = 0 if requested.start is None else bisect_left(starts, _microseconds(requested.start))
        end = len(starts) if requested.end is None else max(bisect_left(starts, _microseconds(requested.end)), lowest)
        first = max(end - requested.limit, lowest)
        reaches = requested.start is not None and bool(starts) and _microseconds(requested.start) >= starts[0]
        if not (self.is_complete or reaches or first >= 1):
            return None
        if first == end:
            return Page(b"[]", 0, None, None, is_cut=False)
        text = isal_zlib.decompress(self.packed)
        return Page(
            b"[%b]" % text[self.offsets[first] : self.offsets[end] - 1],
            end - first,
            _instant(starts[first]),
            _instant(starts[end - 1]),
            is_cut=first > lowest,
        )


def depth_for(limit: int) -> int:
    """Return how many records are read for windows of `limit`, so that 450 and 500 share them; one more at least."""
    return -(-(limit + 1) // _STEP) * _STEP


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _instant(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
