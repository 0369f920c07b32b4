"""What an answer changes in what is stored."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import VALUES, bar_frame, empty
from market_data_pipeline.ingest.compare import compare
from market_data_pipeline_tests.domain.strategies import laws

STEP_US = 300_000_000


def frame(rows: dict[int, float]) -> pd.DataFrame:
    """Return a bar frame with a bar at each slot number, all of its values made of one number."""
    slots = np.array(sorted(rows), dtype="int64")
    values = np.array([rows[slot] for slot in sorted(rows)], dtype="float64")
    return bar_frame(slots * STEP_US, {name: values.copy() for name in VALUES})


tables = st.dictionaries(st.integers(0, 30), st.sampled_from([1.0, 2.0, float("nan")]), max_size=20)


@laws
@given(tables, tables)
def test_applying_the_difference_gives_the_answer(stored: dict[int, float], answer: dict[int, float]) -> None:
    old, new = frame(stored), frame(answer)
    delta = compare(old, new)
    kept = old[~delta.replaced]
    added = new[delta.inserted | delta.updated]
    result = pd.concat([kept, added]).sort_values("ts", ignore_index=True)
    pd.testing.assert_frame_equal(result, new)


@laws
@given(tables, tables)
def test_counts_and_first_instant_agree_with_a_comparison_of_dictionaries(
    stored: dict[int, float], answer: dict[int, float]
) -> None:
    delta = compare(frame(stored), frame(answer))
    same = {slot for slot in stored.keys() & answer.keys() if repr(stored[slot]) == repr(answer[slot])}
    touched = (stored.keys() | answer.keys()) - same
    assert delta.rows_inserted == len(answer.keys() - stored.keys())
    assert delta.rows_removed == len(stored.keys() - answer.keys())
    assert delta.rows_updated == len(touched & stored.keys())
    assert delta.first_us == (min(touched) * STEP_US if touched else None)


def test_nothing_differs_between_two_empty_frames() -> None:
    delta = compare(empty(), empty())
    assert delta.first_us is None
    assert (delta.rows_inserted, delta.rows_updated, delta.rows_removed) == (0, 0, 0)
