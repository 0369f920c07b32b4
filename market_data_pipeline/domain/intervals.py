"""Half-open interval algebra: what is missing, given what is expected and what is held.

A set of instants has ONE canonical form: non-empty `[start, end)` intervals in aware UTC, ascending, with a gap between
neighbours (touching ones are merged). So two sets are equal exactly when their tuples are, and the empty tuple is the
empty set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


class Interval(NamedTuple):
    """The instants from `start` to before `end`, both aware UTC; none when `end` is not after `start`."""

    start: datetime
    end: datetime


Intervals = tuple[Interval, ...]


def normalise(intervals: Iterable[Interval]) -> Intervals:
    """Return the canonical form of the union of `intervals`, which come in any order, overlapping or empty."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Interval(start, end))
    return tuple(merged)


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Return the instants in `a` that are not in `b`: with `a` expected and `b` held, what is missing.

    Both are canonical; so is the result, and it is empty when nothing is missing.
    """
    left: list[Interval] = []
    j = 0
    for start, end in a:
        while j < len(b) and b[j].end <= start:
            j += 1
        k, at = j, start
        while k < len(b) and b[k].start < end:
            if at < b[k].start:
                left.append(Interval(at, b[k].start))
            at = b[k].end
            k += 1
        if at < end:
            left.append(Interval(at, end))
    return tuple(left)
