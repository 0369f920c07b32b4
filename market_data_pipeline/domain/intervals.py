"""Half-open interval algebra: what is wanted, what is held, and so what is missing.

Add here: operations on sets of instants. Keep out: sessions, bars and requests; an interval knows none of them.

A set of instants is written in ONE way, its canonical form: non-empty `[start, end)` intervals, ascending, with a
gap between neighbours (touching ones are merged). So two sets are equal exactly when their tuples are, and the empty
tuple is the empty set. All instants are aware UTC.
"""

from __future__ import annotations

from datetime import timedelta
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
    """Return the canonical form of the instants in any of `intervals`, given in any order, overlapping or empty."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Interval(start, end))
    return tuple(merged)


def union(a: Intervals, b: Intervals) -> Intervals:
    """Return the instants in `a` or in `b`."""
    return normalise((*a, *b))


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Return the instants in both `a` and `b`, each of which is canonical."""
    found: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i].start, b[j].start), min(a[i].end, b[j].end)
        if start < end:
            found.append(Interval(start, end))
        if a[i].end <= b[j].end:
            i += 1
        else:
            j += 1
    return tuple(found)


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


def total(intervals: Intervals) -> timedelta:
    """Return how long canonical intervals last together."""
    return sum((end - start for start, end in intervals), timedelta())
