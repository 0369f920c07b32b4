"""The damaged answers are what they say, so that a property that uses them tests something."""

from __future__ import annotations

from hypothesis import given, settings

from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.polygon.damage import Answered, answers


@settings(laws, max_examples=20)
@given(answers())
def test_an_answer_holds_every_row_of_its_good_days_and_is_otherwise_in_order(answer: Answered) -> None:
    starts = [row["t"] for row in answer.rows]
    assert starts == sorted(starts)
    assert set(answer.good) | set(answer.spoiled) == {session.date for session in answer.sessions}
    for day, rows in answer.good.items():
        for row in rows:
            listed = [each for each in answer.rows if each["t"] == row["t"]]
            assert len(listed) >= 1
            assert all({**row, **each}["c"] == row["c"] for each in listed)
        assert len({row["t"] for row in rows}) == len(rows), day
