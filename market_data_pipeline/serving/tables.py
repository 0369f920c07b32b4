"""Records as a table: CSV, an Arrow IPC stream, or a Parquet file, with the series of each record.

Rows are tuples in the order of their columns, as psycopg returns them; instants are aware UTC, missing values None.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.reports.series_records import Column
from market_data_pipeline.serving.formats import Media, instant, milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Kind, Rows

    Parts = Sequence[tuple[Series, Rows]]

# They come before the columns of a record in every table.
KEY_COLUMNS: Final = (
    Column("symbol", "text", False, "The vendor's ticker."),
    Column("timeframe", "text", False, "Length of the bar."),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def encode_table(media: Media, columns: Sequence[Column], parts: Parts, *, as_milliseconds: bool) -> bytes:
    """Return the rows of several series, one after the other, as `media`, which is CSV, Arrow or Parquet.

    With `as_milliseconds`, CSV has instants as milliseconds since 1970; the other two have a type for them.
    """
    if media is Media.CSV:
        return _csv(columns, parts, as_milliseconds=as_milliseconds)
    return _arrow(media, columns, parts)


def _csv(columns: Sequence[Column], parts: Parts, *, as_milliseconds: bool) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([column.name for column in (*KEY_COLUMNS, *columns)])
    for series, rows in parts:
        writer.writerows([*series, *(_cell(value, as_milliseconds) for value in row)] for row in rows)
    return buffer.getvalue().encode()


def _cell(value: Any, as_milliseconds: bool) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return milliseconds(value) if as_milliseconds else instant(value)
    return value


def _arrow(media: Media, columns: Sequence[Column], parts: Parts) -> bytes:
    import pyarrow as pa

    types = {
        "instant": pa.timestamp("us", "UTC"),
        "float": pa.float64(),
        "integer": pa.int64(),
        "boolean": pa.bool_(),
        "text": pa.string(),
    }
    whole = (*KEY_COLUMNS, *columns)
    schema = pa.schema([pa.field(c.name, types[c.kind], nullable=c.nullable) for c in whole])
    count = sum(len(rows) for _, rows in parts)
    arrays = [
        pa.Array.from_buffers(types[column.kind], count, _buffers(column.kind, list(values)))
        for column, values in zip(whole, _columns(len(columns), parts), strict=True)
    ]
    table, sink = pa.Table.from_arrays(arrays, schema=schema), pa.BufferOutputStream()
    if media is Media.PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue())


def _columns(count: int, parts: Parts) -> Iterator[Iterable[Any]]:
    """Yield the values of each column: symbol, timeframe, and the `count` columns of the rows."""
    for key in range(len(KEY_COLUMNS)):
        yield chain.from_iterable(repeat(series[key], len(rows)) for series, rows in parts)
    by_part = [list(zip(*rows, strict=True)) for _, rows in parts if rows]
    for column in range(count):
        yield chain.from_iterable(part[column] for part in by_part)


def _buffers(kind: Kind, values: Sequence[Any]) -> list[Any]:
    """Return the buffers of an array of `values`, None where a value is missing.

    pa.array would build them too, but imports pandas to check for its types: 55 MB, a third of the process.
    """
    import numpy as np
    import pyarrow as pa

    missing = [value is None for value in values]
    validity = pa.py_buffer(np.packbits(np.logical_not(missing), bitorder="little")) if any(missing) else None
    if kind == "text":
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return [validity, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    if kind == "boolean":
        return [validity, pa.py_buffer(np.packbits(np.array(values, dtype=bool), bitorder="little"))]
    if kind == "instant":
        data = np.array([(value - _EPOCH) // _MICROSECOND for value in values], dtype=np.int64)
    else:
        dtype = np.float64 if kind == "float" else np.int64
        data = np.array([0 if value is None else value for value in values], dtype=dtype)
    return [validity, pa.py_buffer(data)]
