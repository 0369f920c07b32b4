"""Interval algebra against sets of integers."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.intervals import Interval, Intervals, normalise, subtract
from market_data_pipeline_tests.domain.strategies import START, intervals, laws

sets = st.lists(intervals(), max_size=8).map(normalise)


def hours(of: Intervals | list[Interval]) -> set[int]:
    """Return the same instants literally: every whole hour of the test's grid that is inside."""
    return {h for h in range(60) if any(start <= START + timedelta(hours=h) < end for start, end in of)}


def canonical(of: Intervals) -> bool:
    return all(start < end for start, end in of) and all(a.end < b.start for a, b in pairwise(of))


def union(a: Intervals, b: Intervals) -> Intervals:
    return normalise((*a, *b))


def total(of: Intervals) -> timedelta:
    return sum((end - start for start, end in of), timedelta())


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Return the instants in both, by way of two differences."""
    return subtract(a, subtract(a, b))


@laws
@given(st.lists(intervals(), max_size=8))
def test_normalising_keeps_the_instants_and_gives_the_one_canonical_form(some: list[Interval]) -> None:
    assert hours(normalise(some)) == hours(some)
    assert canonical(normalise(some))
    assert normalise(reversed(some)) == normalise(normalise(some)) == normalise(some)


@laws
@given(sets, sets)
def test_union_intersection_and_difference_are_those_of_sets(a: Intervals, b: Intervals) -> None:
    assert hours(union(a, b)) == hours(a) | hours(b)
    assert hours(intersect(a, b)) == hours(a) & hours(b)
    assert hours(subtract(a, b)) == hours(a) - hours(b)
    assert all(canonical(result) for result in (union(a, b), intersect(a, b), subtract(a, b)))


@laws
@given(sets, sets, sets)
def test_the_laws_of_set_algebra_hold_on_canonical_forms(a: Intervals, b: Intervals, c: Intervals) -> None:
    assert union(a, b) == union(b, a)
    assert intersect(a, b) == intersect(b, a)
    assert union(a, union(b, c)) == union(union(a, b), c)
    assert intersect(a, union(b, c)) == union(intersect(a, b), intersect(a, c))
    assert subtract(a, union(b, c)) == subtract(subtract(a, b), c) == intersect(subtract(a, b), subtract(a, c))
    assert union(subtract(a, b), intersect(a, b)) == union(a, a) == a
    assert subtract(a, a) == intersect(a, ()) == subtract((), a) == ()


@laws
@given(sets, sets)
def test_fetching_what_is_missing_leaves_nothing_missing(expected: Intervals, held: Intervals) -> None:
    missing = subtract(expected, held)
    assert subtract(expected, union(held, missing)) == ()
    assert intersect(missing, held) == ()


@laws
@given(sets, sets)
def test_lengths_add_up(a: Intervals, b: Intervals) -> None:
    assert total(a) + total(b) == total(union(a, b)) + total(intersect(a, b))


def test_touching_intervals_become_one_and_an_empty_one_vanishes() -> None:
    hour = timedelta(hours=1)
    assert normalise(
        [Interval(START + hour, START + 2 * hour), Interval(START, START + hour), Interval(START, START)]
    ) == (Interval(START, START + 2 * hour),)
