"""Numbers as the vendor writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_data_pipeline.sandbox.bars import Bars
from market_data_pipeline.sandbox.encode import encode_bars, number
from market_data_pipeline_tests.domain.strategies import laws


# Recorded: 7.0790813e+07 and 9099.618093. The others are what Go's strconv.FormatFloat(x, 'g', -1, 64) prints.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (70_790_813.0, "7.0790813e+07"), (9099.618093, "9099.618093"), (1e6, "1e+06"), (999_999.0, "999999"),
        (999_999.5, "999999.5"), (45.0, "45"), (187.1234, "187.1234"), (0.1, "0.1"), (0.0001, "0.0001"),
        (0.00001, "1e-05"), (0.0, "0"), (1e21, "1e+21"), (123_456_789.125, "1.23456789125e+08"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_go_writes_it(value: float, text: str) -> None:
    assert number(value) == text


@laws
@given(st.floats(min_value=0, allow_infinity=False, allow_nan=False))
def test_a_number_reads_back_as_itself(value: float) -> None:
    assert float(number(value)) == value


prices = st.one_of(
    st.integers(1, 10**8 - 1).map(lambda x: x / 1e4), st.floats(min_value=1e-9, max_value=1e7, allow_subnormal=False)
)
volumes = st.one_of(
    st.integers(0, 10**10).map(float), st.integers(0, 10**15).map(lambda x: x / 1e6), st.floats(0, 1e12)
)
rows = st.tuples(
    st.integers(-(10**12), 10**14), prices, prices, prices, prices, volumes,
    st.one_of(st.just(float("nan")), prices), st.one_of(st.just(float("nan")), st.integers(0, 10**7).map(float)),
)  # fmt: skip


@laws
@given(st.lists(rows, min_size=1, max_size=5))
@example([(0, 1.0, 1.0, 1.0, 1.0, 0.000001, 1.0, 1.0)])
@example([(0, 1e6, 1.0, 1.0, 1e6, 1.0, 1e6, 1.0)])
def test_every_bar_reads_back_as_it_was(held: list[tuple[float, ...]]) -> None:
    t, *values = (np.array(column) for column in zip(*held, strict=True))
    bars = Bars(t.astype("int64"), *values, base=np.ones(len(held), dtype="int64"))  # type: ignore[misc]
    text = encode_bars(bars).decode()
    names = ("t", "o", "h", "l", "c", "v", "vw", "n")
    assert json.loads(f"[{text}]") == [{name: x for name, x in zip(names, row, strict=True) if x == x} for row in held]
    for row in held:
        assert f'"v":{number(row[5])}' in text
        assert f'"o":{number(row[1])},"c":{number(row[4])}' in text
        assert row[6] != row[6] or f'"vw":{number(row[6])}' in text
