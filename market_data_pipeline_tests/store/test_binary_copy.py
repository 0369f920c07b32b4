"""COPY data with and without pgpq, which has no wheel for Linux on ARM: the same bytes, which PostgreSQL reads."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import bar_frame
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.store.binary_copy import encoded, encoded_by_numpy
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.records import append_records
from market_data_pipeline_tests.domain.strategies import laws

NOW = datetime(2026, 3, 11, 15, 0, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")
COLUMNS = {
    "symbol": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    "ts": st.datetimes(timezones=st.just(UTC)),
    "close": st.floats(allow_nan=False),
    "trades": st.integers(-(2**63), 2**63 - 1),
    "up": st.booleans(),
    "extra": st.binary(max_size=12),
}
TYPES = dict(zip(COLUMNS, (pa.string(), INSTANT, pa.float64(), pa.int64(), pa.bool_(), pa.binary()), strict=True))
ROWS = st.lists(st.tuples(*(st.none() | values for values in COLUMNS.values())), max_size=8)


def table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return pa.table({name: pa.array(column, TYPES[name]) for name, column in zip(COLUMNS, columns, strict=True)})


@given(ROWS)
@settings(laws, max_examples=25)
def test_numpy_writes_the_bytes_that_pgpq_writes(rows: list[tuple[object, ...]]) -> None:
    pytest.importorskip("pgpq")
    assert b"".join(encoded_by_numpy(table(rows))) == b"".join(encoded(table(rows)))


def test_a_table_of_several_pieces_and_a_slice_of_one_are_written_whole() -> None:
    pytest.importorskip("pgpq")
    count = 20_000
    whole = pa.table({"n": np.arange(count), "word": pa.array([str(n) if n % 3 else None for n in range(count)])})
    for part in (whole, whole.slice(7, 11_000)):
        assert b"".join(encoded_by_numpy(part)) == b"".join(encoded(part))


def test_a_type_that_no_table_has_is_refused() -> None:
    with pytest.raises(TypeError, match="A column of decimal128"):
        list(encoded_by_numpy(pa.table({"price": pa.array([1], pa.decimal128(10, 2))})))


def test_bars_are_stored_without_pgpq(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pgpq", None)  # as where it is not installed
    ts = np.array([1_773_235_800_000_000, 1_773_236_100_000_000])
    values = dict.fromkeys(("open", "high", "low", "close", "volume"), np.array([1.5, 2.25]))
    frame = bar_frame(ts, {**values, "vwap": np.array([1.75, np.nan]), "trades": np.array([np.nan, 3.0])})
    with StoreConnection(database_url, NOW) as connection:
        append_records(connection, Series("AAPL", Timeframe.M5), frame, None, NOW)
        connection.commit()
        stored = connection.rows("select ts, close, vwap, trades, ingested_at from market_data.bars order by ts")
    assert [tuple(row.values()) for row in stored] == [
        (datetime(2026, 3, 11, 13, 30, tzinfo=UTC), 1.5, 1.75, None, NOW),
        (datetime(2026, 3, 11, 13, 35, tzinfo=UTC), 2.25, None, 3, NOW),
    ]
