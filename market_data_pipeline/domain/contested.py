"""Which rows of the vendor's list of splits count, where several may be about one event.

The vendor lists some splits twice, under neighbouring dates, and some with the terms exchanged (15 for 1 and 1 for 15).
Other rows that look like that are real: small holders are cashed out by a reverse and a forward split on one day. The
raw prices around tell them apart, because a split of that day moves them by its factor and one that did not happen does
not. Until there are prices, the first guess holds.

Add here: a fault of the list that prices can expose. Keep out: reading prices and storing the verdict (ingest.splits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.adjustments import Split

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

# The second date of a split listed twice is a neighbouring one, over a weekend three days away.
NEIGHBOURS: Final = timedelta(days=4)

# How far the price may move besides the split, from the last close before it to the next. Names that split in opposite
# directions at once are often thinly traded.
_MOST_ELSE: Final = math.log(1.3)

# By how much one reading must fit better than any other: less than the step from 2 for 1 to 3 for 2.
_CLEARLY: Final = math.log(1.2)

_MOST_ROWS: Final = 6  # of one group; the readings double with each

Closes = Sequence[tuple["date", float]]


class Verdict(NamedTuple):
    """Which splits of a group count, and what is doubtful about it; None when nothing is."""

    counting: frozenset[Split]
    doubt: str | None = None


def contested(splits: Iterable[Split]) -> list[tuple[Split, ...]]:
    """Return the groups of one ticker's splits that may be about one event, each by date; splits alone are in none.

    A group is linked by the same day, or within `NEIGHBOURS` by the same ratio or its inverse.
    """
    groups: list[list[Split]] = []
    for split in sorted(splits):
        linked = [group for group in groups if any(_may_be_one(split, other) for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append([*(other for group in linked for other in group), split])
    return [tuple(sorted(group)) for group in groups if len(group) > 1]


def first_guess(group: Sequence[Split]) -> frozenset[Split]:
    """Return which splits of a group count before any price is known.

    Of the same ratio on neighbouring days the last one counts: the earlier date is that of the decision, after the
    close. Everything else counts.
    """
    return frozenset(
        split
        for split in group
        if not any(
            other.factor == split.factor and timedelta(0) < other.execution_date - split.execution_date <= NEIGHBOURS
            for other in group
        )
    )


def decide(group: Sequence[Split], closes: Closes) -> Verdict:
    """Return which splits of a group count, given raw closes by ascending session date.

    Each reading, a part of the group, predicts how the price moves into each of the group's days. The one that fits
    within `_MOST_ELSE`, and by `_CLEARLY` better than all that predict something else, is right. If none is, the first
    guess stands; it is in doubt when prices contradict it, or when the group contradicts itself.
    """
    guess = first_guess(group)
    moves = _moves(group, closes)
    if moves is None:
        return Verdict(guess, _doubt(group, "there are no prices around them yet") if _contradict(guess) else None)
    readings: dict[tuple[float, ...], tuple[float, frozenset[Split]]] = {}
    for reading in _readings(group, guess):
        predicted = [sum(math.log(s.factor) for s in reading if s.execution_date in days) for days, _ in moves]
        misfit = max(abs(move - each) for (_, move), each in zip(moves, predicted, strict=True))
        readings.setdefault(tuple(round(each, 9) for each in predicted), (misfit, reading))
    (misfit, best), *others = sorted(readings.values(), key=lambda found: found[0])
    if misfit <= _MOST_ELSE and (not others or others[0][0] - misfit >= _CLEARLY):
        return Verdict(best)
    return Verdict(guess, _doubt(group, "the prices around them fit neither all of them nor some"))


def _may_be_one(split: Split, other: Split) -> bool:
    if split.execution_date == other.execution_date:
        return True
    close = abs(split.execution_date - other.execution_date) <= NEIGHBOURS
    return close and (split.factor == other.factor or _inverse(split, other))


def _inverse(split: Split, other: Split) -> bool:
    return math.isclose(split.factor * other.factor, 1.0)


def _contradict(splits: Iterable[Split]) -> bool:
    return any(_inverse(one, other) for one, other in combinations(splits, 2))


def _readings(group: Sequence[Split], guess: frozenset[Split]) -> list[frozenset[Split]]:
    """Return the parts of a group that may be what happened, the first guess first."""
    if len(group) > _MOST_ROWS:
        return [guess]
    parts = (frozenset(part) for size in range(len(group), 0, -1) for part in combinations(group, size))
    return [guess, *(part for part in parts if part != guess)]


def _moves(group: Sequence[Split], closes: Closes) -> list[tuple[frozenset[date], float]] | None:
    """Return by how much the logarithm of the price moved into each day of the group; None when a close is missing.

    Days without a session between them share a move.
    """
    found: dict[tuple[date, date], tuple[set[date], float]] = {}
    for day in {split.execution_date for split in group}:
        before = [each for each in closes if each[0] < day]
        after = [each for each in closes if each[0] >= day]
        if not before or not after:
            return None
        (last, old), (following, new) = before[-1], after[0]
        found.setdefault((last, following), (set(), math.log(new / old)))[0].add(day)
    return [(frozenset(days), move) for days, move in found.values()]


def _doubt(group: Sequence[Split], why: str) -> str:
    rows = ", ".join(f"{s.split_to:g} for {s.split_from:g} on {s.execution_date}" for s in group)
    return f"The vendor lists splits that may contradict each other ({rows}), and {why}."
