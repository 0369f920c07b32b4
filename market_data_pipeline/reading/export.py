"""Write what the readers return to a file or a table: Parquet, CSV or Delta, in pieces, for more than fits into memory.

A file is there whole or not at all: it is written beside its place and moved there at the end.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.reading.read import iterate, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from market_data_pipeline.reading.selection import Kind

# Rows that are held in memory: 100 MB of bars, 300 MB with features.
_ROWS: Final = 1 << 20


class Format(StrEnum):
    """What is written."""

    PARQUET = "parquet"
    CSV = "csv"
    DELTA = "delta"


def export(target: Path, form: Format, kind: Kind, *, overwrite: bool = False, **arguments: Any) -> int:
    """Write rows and return how many.

    Args:
        target: a file, or the folder of a Delta table.
        form: of what is written.
        kind: `bars`, `features` or `records`.
        overwrite: whether what is there is replaced.
        arguments: those of the readers.

    Raises:
        UsageError: there is something already, or an argument is wrong.
        PipelineError: as the readers.
    """
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already: name another place, or replace it with --overwrite.")
    pieces = iterate(kind, rows=_ROWS, as_arrow=True, as_polars=False, **arguments)
    first = next(pieces, None)
    if first is None:
        first = read(kind, as_arrow=True, as_polars=False, **arguments)
    rows = _Counted(map(_plain, chain([first], pieces)))
    schema = _plain(first).schema
    target.parent.mkdir(parents=True, exist_ok=True)
    if form is Format.DELTA:
        _write_delta(target, schema, rows)
        return rows.count
    draft = target.with_name(f".{target.name}.part")
    try:
        (_write_csv if form is Format.CSV else _write_parquet)(draft, schema, rows)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return rows.count


class _Counted:
    """Tables that are counted as they pass."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables, self.count = tables, 0

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            self.count += len(table)
            yield table


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with texts as texts: the dictionaries of pieces may differ, and Delta knows none."""
    import pyarrow as pa

    fields = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _write_parquet(target: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(target: Path, _schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write instants as ISO 8601 with Z, as the read API does, and nulls as nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    writer = None
    try:
        for table in tables:
            place = table.schema.get_field_index("ts")
            texts = pc.strftime(table["ts"].cast(pa.timestamp("s", tz="UTC")), format="%Y-%m-%dT%H:%M:%SZ")
            shown = table.set_column(place, "ts", texts)
            if writer is None:
                writer = csv.CSVWriter(target, shown.schema)
            writer.write_table(shown)
    finally:
        if writer is not None:
            writer.close()


def _write_delta(target: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    import pyarrow as pa

    try:
        from deltalake import write_deltalake
    except ModuleNotFoundError:
        from market_data_pipeline.lake.location import INSTALL

        raise UsageError(f"--format delta needs deltalake: {INSTALL}.") from None
    batches = (batch for table in tables for batch in table.to_batches())
    write_deltalake(target, pa.RecordBatchReader.from_batches(schema, batches), mode="overwrite")
