"""Rows of the list of splits that may be about one event: raw prices decide which of them count."""

from __future__ import annotations

from datetime import date, timedelta
from math import exp, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.adjustments import Split
from market_data_pipeline.domain.contested import contested, decide, first_guess
from market_data_pipeline_tests.domain.strategies import laws

TUESDAY = date(2025, 2, 18)
REVERSE, FORWARD = Split(TUESDAY, 500, 1), Split(TUESDAY, 1, 100)  # a cash-out of small holders
EITHER, OR = Split(TUESDAY, 1, 15), Split(TUESDAY, 15, 1)


def closes(first: date, *prices: float) -> list[tuple[date, float]]:
    days = [first + timedelta(days=i) for i in range(len(prices) * 2)]
    sessions = [day for day in days if day.weekday() < 5]
    return list(zip(sessions, prices, strict=False))


def test_splits_of_one_day_or_of_one_ratio_within_days_are_contested_and_others_are_not() -> None:
    alone = Split(date(2025, 6, 2), 1, 2)
    within_days = Split(TUESDAY + timedelta(days=2), 1, 3)
    again = Split(date(2025, 6, 5), 2, 4)
    assert contested([REVERSE, alone, FORWARD, within_days]) == [(FORWARD, REVERSE)]
    assert contested([alone, again]) == [(alone, again)]
    assert contested([alone, Split(date(2025, 9, 2), 1, 2)]) == []


@pytest.mark.parametrize("after", [50.0, 46.0, 58.0])
def test_two_real_splits_of_one_day_both_count(after: float) -> None:
    verdict = decide([REVERSE, FORWARD], closes(date(2025, 2, 14), 10.0, 10.0, after, after))
    assert verdict == ({REVERSE, FORWARD}, None)


@pytest.mark.parametrize(
    ("after", "counting"), [(2.0 / 3, {EITHER}), (0.7, {EITHER}), (150.0, {OR}), (10.4, {EITHER, OR})]
)
def test_prices_decide_between_rows_that_contradict_each_other(after: float, counting: set[Split]) -> None:
    assert decide([EITHER, OR], closes(date(2025, 2, 14), 10.0, 10.0, after)) == (counting, None)


def test_rows_that_contradict_each_other_are_doubtful_until_there_are_prices_that_decide() -> None:
    for known in ([], closes(date(2025, 2, 13), 10.0, 10.0), closes(date(2025, 2, 14), 10.0, 10.0, 40.0)):
        verdict = decide([EITHER, OR], known)
        assert verdict.counting == {EITHER, OR}  # together they change nothing
        assert "15 for 1 on 2025-02-18, 1 for 15 on 2025-02-18" in str(verdict.doubt)


def test_of_a_split_listed_under_two_dates_the_later_counts_unless_prices_say_otherwise() -> None:
    friday, monday = Split(date(2020, 8, 28), 1, 4), Split(date(2020, 8, 31), 1, 4)
    assert first_guess([friday, monday]) == {monday}
    assert decide([friday, monday], []) == ({monday}, None)
    thursday = date(2020, 8, 27)
    assert decide([friday, monday], closes(thursday, 500.0, 499.0, 129.0)) == ({monday}, None)
    assert decide([friday, monday], closes(thursday, 500.0, 125.0, 129.0)) == ({friday}, None)
    assert decide([friday, monday], closes(thursday, 500.0, 125.0, 32.0)) == ({friday, monday}, None)
    saturday = Split(date(2020, 8, 29), 1, 4)  # no session between the two dates
    assert decide([saturday, monday], closes(thursday, 500.0, 499.0, 129.0)) == ({monday}, None)


ratios = st.sampled_from([(1.0, 2.0), (1.0, 3.0), (1.0, 15.0), (2.0, 1.0), (10.0, 1.0), (15.0, 1.0), (500.0, 1.0)])
listed = st.lists(ratios, min_size=2, max_size=4, unique=True)


@laws
@given(listed, st.data())
def test_prices_recover_what_happened_or_leave_a_doubt(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    group = [Split(TUESDAY, *terms) for terms in rows]
    happened = data.draw(st.sets(st.sampled_from(group), min_size=1))
    noise = data.draw(st.floats(-0.08, 0.08))
    price = 100.0 * prod(split.factor for split in happened) * exp(noise)
    verdict = decide(group, closes(date(2025, 2, 14), 100.0, 100.0, price))
    assert contested(group) == [tuple(sorted(group))]
    expected = prod(split.factor for split in happened)
    assert verdict.doubt or prod(split.factor for split in verdict.counting) == pytest.approx(expected)
