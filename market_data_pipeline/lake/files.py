"""The files of a table: which there are, and how those of a month are rewritten where symbols changed.

A file holds the rows of one month for a range of symbols, by symbol and time; ranges of a month's files do not overlap.
So a change rewrites only the file that holds its symbol, and no file is small for long. Files are written first and
become part of the table by one commit; those of a sync that ended before belong to nothing, and vacuuming removes them.
"""

from __future__ import annotations

import json
import time
import uuid
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.lake.tables import MONTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.lake.tables import LakeTable

# A month of 125 symbols' 5m bars: 20 MB of bars, 60 MB of features. Larger files would cost a change more, smaller ones
# a scan of many symbols.
FILE_ROWS: Final = 1 << 19
# Rows that are read together: whole series, as many as fit, or one. A symbol's month of 5m bars is a group, of which
# nothing is read in vain. Each column of a group costs its reader as much as 2,000 more values.
GROUP_ROWS: Final = 1 << 12
# What is encoded well is not compressed: LZ4 without these encodings takes 0.85 of the bytes of a year of bars and
# features, and half as much time again to read.
_INCREASING: Final = "DELTA_BINARY_PACKED"
_COMPRESSED: Final = {"json": "lz4"}  # by the kind of a column


class File(NamedTuple):
    """A file of a table; `first` and `last` are its first and last symbol, instants are int64 microseconds."""

    path: str
    month: str
    size: int
    rows: int
    first: str
    last: str
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the symbols up to `last` that follow those of the batch before, by symbol and time."""

    last: str
    rows: pa.Table


def files_of(table: DeltaTable) -> list[File]:
    """Return the files of a table by month and symbol."""
    import pyarrow as pa

    found = pa.table(table.get_add_actions(flatten=True))
    columns = ["path", "partition.month", "size_bytes", "num_records", "min.symbol", "max.symbol"]
    if "min.ts" not in found.column_names:
        return []
    instants = [found[name].cast("int64").to_pylist() for name in ("min.ts", "max.ts")]
    rows = zip(*(found[name].to_pylist() for name in columns), *instants, strict=True)
    return sorted((File(*row) for row in rows), key=lambda file: (file.month, file.first))


def removal(file: File) -> Any:
    """Return the action that takes a file out of the table."""
    from deltalake.transaction import RemoveAction

    return RemoveAction(file.path, True, int(time.time() * 1000), file.size, {MONTH: file.month})


def rows_added(action: Any) -> int:
    """Return how many rows an action adds to the table."""
    return int(json.loads(action.stats)["numRecords"]) if hasattr(action, "stats") else 0


def holders(files: list[File], symbols: Iterable[str]) -> dict[File | None, list[str]]:
    """Return which of a month's files holds, or is to hold, which of the symbols; None for a new one."""
    if not files:
        return {None: sorted(symbols)}
    firsts = [file.first for file in files]
    found: dict[File | None, list[str]] = {}
    for symbol in sorted(symbols):
        found.setdefault(files[max(bisect_right(firsts, symbol) - 1, 0)], []).append(symbol)
    return found


def rows_of(filesystem: FileSystem, table: LakeTable, file: File) -> pa.Table:
    """Return the rows of a file, in the columns of the database."""
    import pyarrow.parquet as pq

    with filesystem.open_input_file(file.path) as source:
        rows = pq.ParquetFile(source, read_dictionary=list(table.relation.encoded)).read()
    return rows.cast(table.relation.schema()).unify_dictionaries()


def kept_rows(rows: pa.Table, replaced: Mapping[str, Interval]) -> pa.Table:
    """Return the rows that do not lie in the intervals that are replaced."""
    import numpy as np
    import pyarrow as pa

    if not len(rows):
        return rows
    symbols = rows["symbol"].combine_chunks()
    nowhere = (0, 0)
    bounds = [replaced.get(symbol) for symbol in symbols.dictionary.to_pylist()]
    edges = np.array([nowhere if b is None else (to_us(b.start), to_us(b.end)) for b in bounds], "int64")
    codes, ts = symbols.indices.to_numpy(), rows["ts"].cast("int64").to_numpy()
    return rows.filter(pa.array((ts < edges[codes, 0]) | (ts >= edges[codes, 1])))


def merged(kept: pa.Table | None, batches: Iterable[Batch]) -> Iterator[pa.Table]:
    """Yield the rows of both, by symbol and time."""
    for batch in batches:
        if kept is None:
            yield batch.rows
            continue
        count = next((start for symbol, start, _ in symbol_runs(kept) if symbol > batch.last), len(kept))
        yield _sorted(kept.slice(0, count), batch.rows)
        kept = kept.slice(count)
    if kept is not None:
        yield kept


def _sorted(one: pa.Table, other: pa.Table) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    rows = pa.concat_tables([one, other]).unify_dictionaries()
    if not len(rows):
        return rows
    symbols = rows["symbol"].combine_chunks()
    ranks = np.argsort(np.argsort(np.array(symbols.dictionary.to_pylist(), dtype=object)))
    keys = [rows["ts"].cast("int64").to_numpy(), ranks[symbols.indices.to_numpy()]]
    if "id" in rows.column_names:
        keys.insert(0, rows["id"].to_numpy())
    return rows.take(pa.array(np.lexsort(keys)))


def symbol_runs(rows: pa.Table) -> list[tuple[str, int, int]]:
    """Return the symbols of sorted rows with the half-open interval of each one's rows."""
    import numpy as np

    if not len(rows):
        return []
    symbols = rows["symbol"].unify_dictionaries().combine_chunks()
    codes = symbols.indices.to_numpy()
    starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
    names = symbols.dictionary.take(symbols.indices.take(starts)).to_pylist()
    return list(zip(names, starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True))


def write_month(
    filesystem: FileSystem, table: LakeTable, month: str, pieces: Iterable[pa.Table], file_rows: int = FILE_ROWS
) -> list[Any]:
    """Write the rows of a month, by symbol and time, as one or more files, and return the actions that add them."""
    waiting: list[pa.Table] = []
    added: list[Any] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= file_rows:
            added.append(_write(filesystem, table, month, waiting))
            waiting = []
    if any(map(len, waiting)):
        added.append(_write(filesystem, table, month, waiting))
    return added


def _write(filesystem: FileSystem, table: LakeTable, month: str, pieces: list[pa.Table]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction

    rows = pa.concat_tables(pieces).unify_dictionaries().combine_chunks()
    runs = symbol_runs(rows)
    columns = table.relation.columns
    folder = f"{MONTH}={month}"
    filesystem.create_dir(folder, recursive=True)
    path = f"{folder}/{uuid.uuid4().hex}.parquet"
    with filesystem.open_output_stream(path) as target:
        with pq.ParquetWriter(
            target,
            rows.schema,
            compression={"symbol": "none", **{c.name: _COMPRESSED.get(c.kind, "none") for c in columns}},
            # A month has few different prices, and their numbers are a sixth as long as they are.
            use_dictionary=[*table.relation.encoded, *(c.name for c in columns if c.name in PRICES)],
            column_encoding={c.name: _INCREASING for c in columns if c.kind in ("instant", "integer")},
            write_statistics=["symbol", "ts"],
            store_schema=False,
        ) as writer:
            for start, end in _groups(runs):
                writer.write_table(rows.slice(start, end - start), row_group_size=FILE_ROWS)
        size = target.tell()
    instants = pc.min_max(rows["ts"]).as_py()
    stats = {
        "numRecords": len(rows),
        "minValues": {"symbol": runs[0][0], "ts": _json(instants["min"])},
        "maxValues": {"symbol": runs[-1][0], "ts": _json(instants["max"])},
        "nullCount": {"symbol": 0, "ts": 0},
    }
    return AddAction(path, size, {MONTH: month}, int(time.time() * 1000), True, json.dumps(stats))


def _groups(runs: Sequence[tuple[str, int, int]]) -> list[tuple[int, int]]:
    """Return the groups of rows of a file with these symbols, each as a half-open interval."""
    groups: list[tuple[int, int]] = []
    for _, start, end in runs:
        if groups and end - groups[-1][0] <= GROUP_ROWS:
            groups[-1] = (groups[-1][0], end)
        else:
            groups.append((start, end))
    return groups


def _json(instant: Any) -> str:
    """Return an instant as Delta's statistics have it: bars start at whole minutes, so no millisecond is cut."""
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z"
