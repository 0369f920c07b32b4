"""Read rows of series from the lake, as `store.many_series` reads them from the database.

A reader keeps each table at the version that it first saw. Of a file only the groups of rows are read that may hold
what is asked for.

Keep out: which of both to read from, and the form of the answer (reading).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.adjustments import PRICE_CURRENCY, Split
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.lake.files import files_of
from market_data_pipeline.lake.state import read_state
from market_data_pipeline.lake.tables import DIVIDENDS, SPLITS, Kind, LakeTable
from market_data_pipeline.store.many_series import Columns, beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.lake.files import File
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.state import TableState
    from market_data_pipeline.store.many_series import Stretch

    Decoder = Callable[[pa.Array], Any]
    Bounds = tuple[int, int, int]  # the number of a stretch, and its half-open interval in microseconds


@dataclass(frozen=True, slots=True)
class _Opened:
    """A table at one version."""

    table: LakeTable
    delta: DeltaTable
    state: TableState
    files: list[File]
    filesystem: FileSystem
    far: bool  # not on this machine


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

    def record_columns(
        self, stretches: Sequence[Stretch], names: Sequence[str], features: Sequence[Feature]
    ) -> Columns:
        """Return the raw bars of the stretches with their features, which are null for a bar without any."""
        return beside(self.bar_columns(stretches, names), self.feature_columns(stretches, features))

    def splits_of(self, symbols: Sequence[str], known_at: datetime | None = None) -> dict[str, list[Split]]:
        """Return the splits of each symbol that has any: those that count, or that did at `known_at`."""
        splits: dict[str, list[Split]] = {}
        for row in self._known(SPLITS, symbols, known_at):
            if row["counts"]:
                split = Split(row["execution_date"], row["split_from"], row["split_to"])
                splits.setdefault(row["symbol"], []).append(split)
        return splits

    def dividends_of(
        self, symbols: Sequence[str], known_at: datetime | None = None
    ) -> dict[str, list[tuple[date, float]]]:
        """Return ex date and amount of the dividends in the currency of prices, of each symbol that has any."""
        dividends: dict[str, list[tuple[date, float]]] = {}
        for row in self._known(DIVIDENDS, symbols, known_at):
            if row["currency"] == PRICE_CURRENCY:
                dividends.setdefault(row["symbol"], []).append((row["ex_date"], row["amount"]))
        return dividends

    def _known(self, name: str, symbols: Sequence[str], known_at: datetime | None) -> Iterator[dict[str, Any]]:
        """Yield the rows of a small table that hold now, or held at `known_at`."""
        with self.lake.translated():
            delta = self.lake.open(name)
            rows = delta.to_pyarrow_table().to_pylist() if delta is not None else []
        for row in rows:
            gone = row["superseded_at"]
            known = gone is None or (known_at is not None and gone > known_at)
            listed = known_at is None or row["first_seen_at"] <= known_at
            if known and listed and row["symbol"] in symbols:
                yield row

    def _open(self, table: LakeTable) -> _Opened:
        if table not in self._opened:
            delta = self.lake.open(table.name)
            with self.lake.translated():
                state = read_state(delta)
                if delta is None or state is None:
                    raise UsageError(
                        f"The lake at {self.lake.url} has no {table.name} yet: `market-data lake sync` writes it."
                    )
                self._opened[table] = _Opened(
                    table, delta, state, files_of(delta), self.lake.filesystem(delta), self.lake.local is None
                )
        return self._opened[table]

    def _columns(self, kind: Kind, stretches: Sequence[Stretch], decoders: Mapping[str, Decoder]) -> Columns:
        import numpy as np

        parts = []
        for timeframe in dict.fromkeys(stretch.series.timeframe for stretch in stretches):
            opened = self._open(LakeTable(kind, timeframe))
            wanted = {
                one.series.symbol: (at, to_us(one.start), to_us(one.end))
                for at, one in enumerate(stretches)
                if one.series.timeframe is timeframe
            }
            with self.lake.translated():
                parts.append(_read(opened, wanted, decoders))
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


def _read(opened: _Opened, bounds: Mapping[str, Bounds], decoders: Mapping[str, Decoder]) -> Columns:
    """Return the rows of the stretches in their order: each column is put together once and then decoded."""
    import numpy as np
    import pyarrow as pa

    runs = [
        (at, batch, start, end)
        for batch in _batches(opened, bounds, ["symbol", "ts", *decoders])
        for at, start, end in _runs(batch, bounds)
    ]
    runs.sort(key=lambda run: run[0])  # months follow one another, so each symbol's rows do
    at = np.repeat(np.array([run[0] for run in runs], "int32"), [end - start for _, _, start, end in runs])

    def column(name: str) -> pa.Array:
        parts = [batch.column(name)[start:end] for _, batch, start, end in runs]
        return pa.concat_arrays(parts) if parts else _nothing(opened, name)

    return Columns(at, _instants(column("ts")), {name: decode(column(name)) for name, decode in decoders.items()})


def _runs(batch: pa.RecordBatch, bounds: Mapping[str, Bounds]) -> list[tuple[int, int, int]]:
    """Return the parts of a batch that are wanted, each as the number of its stretch and a half-open interval."""
    import numpy as np

    nowhere = (-1, 0, 0)
    symbols, ts = batch.column("symbol"), _instants(batch.column("ts"))
    places = np.array([bounds.get(symbol, nowhere) for symbol in symbols.dictionary.to_pylist()], "int64")
    codes = symbols.indices.to_numpy()
    starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
    found = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
        at, first_us, end_us = places[codes[start]].tolist()
        if at >= 0:
            first, stop = np.searchsorted(ts[start:end], [first_us, end_us]).tolist()
            if first < stop:
                found.append((at, start + first, start + stop))
    return found


def _nothing(opened: _Opened, name: str) -> pa.Array:
    import pyarrow as pa

    return pa.array([], opened.table.relation.schema().field(name).type)


def _batches(opened: _Opened, bounds: Mapping[str, Bounds], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the groups of rows that may hold rows within the bounds, by month and symbol.

    They are read file by file: `pyarrow.dataset` takes half as long again, as it cuts groups and puts them together.
    """
    import pyarrow.parquet as pq

    symbols = sorted(bounds)
    first_us, end_us = min(one[1] for one in bounds.values()), max(one[2] for one in bounds.values())

    def may_hold(first: str, last: str, from_us: int, until_us: int) -> bool:
        place = bisect_left(symbols, first)
        return place < len(symbols) and symbols[place] <= last and from_us < end_us and until_us >= first_us

    for file in opened.files:
        if not may_hold(file.first, file.last, file.first_us, file.last_us):
            continue
        with opened.filesystem.open_input_file(file.path) as source:
            # Ahead and at once where a read is a request; of a local file that would only copy.
            parquet = pq.ParquetFile(source, read_dictionary=list(opened.table.relation.encoded), pre_buffer=opened.far)
            groups = []
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                symbol, ts = group.column(0).statistics, group.column(1).statistics
                if may_hold(symbol.min, symbol.max, to_us(ts.min), to_us(ts.max)):
                    groups.append(number)
            if groups:
                yield from parquet.read_row_groups(groups, columns).to_batches()


def _numbers(values: pa.Array) -> np.ndarray:
    import pyarrow as pa

    numbers: np.ndarray = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _instants(values: pa.Array) -> np.ndarray:
    instants: np.ndarray = values.cast("int64").to_numpy()
    return instants


def _texts(values: pa.Array) -> list[str | None]:
    texts: list[str | None] = values.to_pylist()
    return texts


def _decoder(feature: Feature) -> Decoder:
    if feature.labels:
        return lambda values: _codes(values, feature.labels)
    return _truths if feature.dtype == "bool" else _numbers


def _truths(values: pa.Array) -> np.ndarray:
    import pyarrow.compute as pc

    truths: np.ndarray = pc.fill_null(values.cast("int8"), -1).to_numpy()
    return truths


def _codes(values: pa.Array, labels: Sequence[str]) -> np.ndarray:
    """Return the position of each text among the labels, -1 for null or another text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    places = pc.fill_null(pc.index_in(values.dictionary, pa.array(labels, pa.string())), -1).to_numpy()
    codes = np.r_[places, -1].astype("int16")
    found: np.ndarray = codes[pc.fill_null(values.indices, len(places)).to_numpy()]
    return found


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
