"""Read rows of series from the lake, as `store.many_series` reads them from the database.

A reader keeps each table at the version that it first saw. Of a file only the groups of rows are read that may hold
what is asked for.

Keep out: which of both to read from, and the form of the answer (reading).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.adjustments import Split
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.lake.files import files_of
from market_data_pipeline.lake.state import read_state
from market_data_pipeline.lake.tables import SPLITS, Kind, LakeTable
from market_data_pipeline.store.many_series import Columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.lake.files import File
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.state import TableState
    from market_data_pipeline.store.many_series import Stretch

# More pieces than one for so many rows cost more to put together than to copy.
_ROWS_PER_RUN: Final = 512


@dataclass(frozen=True, slots=True)
class _Opened:
    """A table at one version."""

    table: LakeTable
    delta: DeltaTable
    state: TableState
    files: list[File]
    filesystem: FileSystem


class LakeReader:
    """Reads from the tables of a lake."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._opened: dict[LakeTable, _Opened] = {}

    def state(self, table: LakeTable) -> TableState:
        """Return what a table holds.

        Raises:
            UsageError: it does not exist yet.
            ConfigurationError: the lake's place cannot be used.
        """
        return self._open(table).state

    def rows(self, table: LakeTable) -> int:
        """Return how many rows a table has; raises as `state` does."""
        return sum(file.rows for file in self._open(table).files)

    def bar_columns(self, stretches: Sequence[Stretch], names: Sequence[str], as_of: datetime | None = None) -> Columns:
        """Return the raw bars of the stretches, as they are or as they were stored at `as_of`.

        Arguments and answer are those of `store.many_series`; each series has one stretch.
        """
        if as_of is not None:
            return self._bars_as_of(stretches, names, to_us(as_of))
        return self._columns(Kind.BARS, stretches, dict.fromkeys(names, _numbers))

    def feature_columns(self, stretches: Sequence[Stretch], features: Sequence[Feature]) -> Columns:
        """Return the stored values of `features`, of the 17 or a project's own, as `store.many_series` does."""
        own = [feature for feature in features if feature.name not in FEATURE_NAMES]
        found = self._columns(
            Kind.FEATURES,
            stretches,
            {
                **{feature.name: _decoder(feature) for feature in features if feature not in own},
                **({"extra": _texts} if own else {}),
            },
        )
        extra = found.values.pop("extra", ())
        return found._replace(values=found.values | {feature.name: _own_values(extra, feature) for feature in own})

    def splits_of(self, symbols: Sequence[str], known_at: datetime | None = None) -> dict[str, list[Split]]:
        """Return the splits of each symbol that has any: those that count, or that did at `known_at`."""
        with self.lake.translated():
            delta = self.lake.open(SPLITS)
            rows = delta.to_pyarrow_table().to_pylist() if delta is not None else []
        splits: dict[str, list[Split]] = {}
        for row in rows:
            gone = row["superseded_at"]
            known = gone is None or (known_at is not None and gone > known_at)
            listed = known_at is None or row["first_seen_at"] <= known_at
            if row["counts"] and known and listed and row["symbol"] in symbols:
                splits.setdefault(row["symbol"], []).append(
                    Split(row["execution_date"], row["split_from"], row["split_to"])
                )
        return splits

    def _open(self, table: LakeTable) -> _Opened:
        if table not in self._opened:
            delta = self.lake.open(table.name)
            with self.lake.translated():
                state = read_state(delta)
                if delta is None or state is None:
                    raise UsageError(
                        f"The lake at {self.lake.url} has no {table.name} yet: `market-data lake sync` writes it."
                    )
                self._opened[table] = _Opened(table, delta, state, files_of(delta), self.lake.filesystem(delta))
        return self._opened[table]

    def _columns(self, kind: Kind, stretches: Sequence[Stretch], decoders: Mapping[str, Any]) -> Columns:
        import numpy as np

        parts = []
        for timeframe in dict.fromkeys(stretch.series.timeframe for stretch in stretches):
            opened = self._open(LakeTable(kind, timeframe))
            numbered = [(at, one) for at, one in enumerate(stretches) if one.series.timeframe is timeframe]
            with self.lake.translated():
                rows, at = _rows(opened, numbered, list(decoders))
            parts.append(
                Columns(
                    at,
                    rows["ts"].cast("int64").to_numpy(),
                    {name: decode(rows[name]) for name, decode in decoders.items()},
                )
            )
        if len(parts) == 1:
            return parts[0]
        at = np.concatenate([part.at for part in parts])
        order = np.argsort(at, kind="stable")
        values = {name: _together([part.values[name] for part in parts], order) for name in decoders}
        return Columns(at[order], np.concatenate([part.ts for part in parts])[order], values)

    def _bars_as_of(self, stretches: Sequence[Stretch], names: Sequence[str], as_of_us: int) -> Columns:
        import numpy as np

        decoders = dict.fromkeys(names, _numbers) | {"ingested_at": _instants}
        present = self._columns(Kind.BARS, stretches, decoders)
        past = self._columns(Kind.REVISIONS, stretches, decoders | {"superseded_at": _instants, "id": _numbers})
        ids = np.r_[np.full(len(present.ts), np.inf), past.values["id"]]
        at, ts = np.r_[present.at, past.at], np.r_[present.ts, past.ts]
        ends = np.r_[np.full(len(present.ts), 1 << 62), past.values["superseded_at"]]
        begins = np.r_[present.values["ingested_at"], past.values["ingested_at"]]
        known = np.flatnonzero((begins <= as_of_us) & (ends > as_of_us))
        # Two versions claim the instant only where a clock was set back: the one stored last counts, then the present.
        known = known[np.lexsort((-ids[known], ts[known], at[known]))]
        first = np.ones(len(known), bool)
        first[1:] = (at[known][1:] != at[known][:-1]) | (ts[known][1:] != ts[known][:-1])
        known = known[first]
        values = {name: np.r_[present.values[name], past.values[name]][known] for name in names}
        return Columns(at[known], ts[known], values)


def _rows(opened: _Opened, stretches: Sequence[tuple[int, Stretch]], names: list[str]) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of the stretches in their order, and the number of each one's stretch."""
    import numpy as np
    import pyarrow as pa

    bounds = {one.series.symbol: (at, to_us(one.start), to_us(one.end)) for at, one in stretches}
    columns = ["symbol", "ts", *names]
    read = _scanned(opened, bounds, columns)
    symbols = read["symbol"].unify_dictionaries().combine_chunks()
    if isinstance(symbols, pa.ChunkedArray):  # no chunk at all
        return read.slice(0, 0), np.empty(0, "int32")
    nothing = (-1, 0, 0)
    table = np.array([bounds.get(symbol, nothing) for symbol in symbols.dictionary.to_pylist()] or [nothing], "int64")
    codes = symbols.indices.to_numpy()
    at = table[codes, 0].astype("int32")
    ts = read["ts"].cast("int64").to_numpy()
    at[(ts < table[codes, 1]) | (ts >= table[codes, 2])] = -1
    starts = np.r_[0, np.flatnonzero(np.diff(at)) + 1] if len(at) else np.empty(0, "int64")
    ends = np.r_[starts[1:], len(at)]
    wanted = at[starts] >= 0
    starts, ends = starts[wanted], ends[wanted]
    order = np.argsort(at[starts], kind="stable")  # months follow one another, so each symbol's rows do
    starts, ends = starts[order], ends[order]
    if len(starts) * _ROWS_PER_RUN <= max(len(at), 1 << 15):
        parts = [read.slice(start, end - start) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        rows = pa.concat_tables(parts) if parts else read.slice(0, 0)
    else:
        rows = read.take(pa.array(np.concatenate([np.arange(*pair) for pair in zip(starts, ends, strict=True)])))
    return rows, np.repeat(at[starts], ends - starts)


def _scanned(opened: _Opened, bounds: Mapping[str, tuple[int, int, int]], columns: list[str]) -> pa.Table:
    """Return the groups of rows that may hold rows within the bounds, by month and symbol."""
    import pyarrow.dataset as ds

    symbols = sorted(bounds)
    first_us, end_us = min(one[1] for one in bounds.values()), max(one[2] for one in bounds.values())
    relation = opened.table.relation
    form = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=list(relation.encoded)))

    def may_hold(first: str, last: str, from_us: int, until_us: int) -> bool:
        place = bisect_left(symbols, first)
        return place < len(symbols) and symbols[place] <= last and from_us < end_us and until_us >= first_us

    fragments = []
    for file in opened.files:
        if not may_hold(file.first, file.last, file.first_us, file.last_us):
            continue
        fragment = form.make_fragment(file.path, opened.filesystem)
        groups = []
        for number in range(fragment.metadata.num_row_groups):
            group = fragment.metadata.row_group(number)
            symbol, ts = group.column(0).statistics, group.column(1).statistics
            if may_hold(symbol.min, symbol.max, to_us(ts.min), to_us(ts.max)):
                groups.append(number)
        if groups:
            fragments.append(fragment.subset(row_group_ids=groups))
    dataset = ds.FileSystemDataset(fragments, relation.schema(), form, opened.filesystem)
    return dataset.to_table(columns=columns)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    values: np.ndarray = column.cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
    return values


def _instants(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.cast("int64").to_numpy()
    return values


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    found: list[str | None] = column.to_pylist()
    return found


def _decoder(feature: Feature) -> Any:
    if feature.labels:
        return lambda column: _codes(column, feature.labels)
    return _truths if feature.dtype == "bool" else _numbers


def _truths(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    values: np.ndarray = pc.fill_null(column.cast("int8"), -1).to_numpy()
    return values


def _codes(column: pa.ChunkedArray, labels: Sequence[str]) -> np.ndarray:
    """Return the position of each text among the labels, -1 for null or another text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = column.unify_dictionaries().combine_chunks()
    if isinstance(texts, pa.ChunkedArray):  # no chunk at all
        return np.empty(0, "int16")
    places = pc.fill_null(pc.index_in(texts.dictionary, pa.array(labels, pa.string())), -1).to_numpy()
    codes = np.r_[places, -1].astype("int16")
    values: np.ndarray = codes[pc.fill_null(texts.indices, len(places)).to_numpy()]
    return values


def _own_values(documents: Sequence[str | None], feature: Feature) -> Any:
    """Return the values of a project's own feature; one of another type than declared is null."""
    import json

    import numpy as np

    types = {"float": (int, float), "bool": (bool,), "text": (str,)}[feature.dtype]
    values: list[Any] = [None if text is None else json.loads(text).get(feature.name) for text in documents]
    values = [value if type(value) in types else None for value in values]
    if feature.dtype == "float":
        return np.array([np.nan if value is None else value for value in values], "float64")
    if feature.dtype == "bool":
        return np.array([-1 if value is None else value for value in values], "int8")
    if feature.labels:
        places = {label: place for place, label in enumerate(feature.labels)}
        return np.array([places.get(value, -1) for value in values], "int16")
    return values


def _together(parts: list[Any], order: np.ndarray) -> Any:
    import numpy as np

    if not isinstance(parts[0], list):
        return np.concatenate(parts)[order]
    joined = [value for part in parts for value in part]
    return [joined[place] for place in order]
