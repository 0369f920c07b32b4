"""Read rows of series from the lake, as `store.many_series` reads them from the database.

A reader keeps each table at the version that it first saw. Of a file only the groups of rows are read that may hold
what is asked for, file by file, each straight to where its rows belong in the answer.

Keep out: which of both to read from, and the form of the answer (reading).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.adjustments import PRICE_CURRENCY, Split
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Series
from market_data_pipeline.lake.opened import opened_table, small_table
from market_data_pipeline.lake.tables import DIVIDENDS, SPLITS, TICKERS, Kind, LakeTable
from market_data_pipeline.store.many_series import Columns, beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    import numpy as np
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Timeframe
    from market_data_pipeline.lake.files import File
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.opened import Group, OpenedTable
    from market_data_pipeline.lake.state import Held, TableState
    from market_data_pipeline.store.many_series import Stretch

    Bounds = tuple[int, int, int]  # the number of a stretch, and its half-open interval in microseconds
    Run = tuple[int, int, int]  # the number of a stretch, and a half-open interval of rows

# Fewer values are decoded before other threads have begun.
_THREADED_VALUES: Final = 1 << 18


class _Decoder(NamedTuple):
    """How a column is returned: as an array of `dtype`, or as a list where that is None."""

    dtype: str | None
    values: Callable[[pa.ChunkedArray], Any]


class _Part(NamedTuple):
    """Groups of rows of a file, and which of their rows are wanted, one stretch after the other."""

    file: File
    groups: list[Group]
    runs: list[Run]
    rows: pa.Table | None  # None: to be read


class LakeReader:
    """Reads from the tables of a lake.

    Attributes:
        lake: the lake.
        stored_as: by ticker, the symbol of its security, where that is another one.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.stored_as: dict[str, str] = {}
        self._opened: dict[LakeTable, OpenedTable] = {}

    def state(self, table: LakeTable) -> TableState:
        """Return what a table holds.

        Raises:
            UsageError: it does not exist yet.
            ConfigurationError: the lake's place cannot be used.
        """
        return self._open(table).state

    def held(self, table: LakeTable, symbol: str) -> Held | None:
        """Return what a table holds of a symbol, under which name it may be; raises as `state` does."""
        return self.state(table).series.get(self.stored_as.get(symbol, symbol))

    def tickers(self) -> dict[str, str]:
        """Return by former ticker the symbol under which its security is stored."""
        return {row["ticker"]: row["symbol"] for rows in small_table(self.lake, TICKERS).values() for row in rows}

    def rows(self, table: LakeTable) -> int:
        """Return how many rows a table has; raises as `state` does."""
        return sum(file.rows for file in self._open(table).files)

    def bar_columns(self, stretches: Sequence[Stretch], names: Sequence[str], as_of: datetime | None = None) -> Columns:
        """Return the raw bars of the stretches, as they are or as they were stored at `as_of`.

        Arguments and answer are those of `store.many_series`; each series has one stretch.
        """
        if as_of is not None:
            return self._bars_as_of(stretches, names, to_us(as_of))
        return self._columns(Kind.BARS, stretches, dict.fromkeys(names, _NUMBERS))

    def feature_columns(self, stretches: Sequence[Stretch], features: Sequence[Feature]) -> Columns:
        """Return the stored values of `features`, of the 17 or a project's own, as `store.many_series` does."""
        own = [feature for feature in features if feature.name not in FEATURE_NAMES]
        found = self._columns(
            Kind.FEATURES,
            stretches,
            {
                **{feature.name: _decoder(feature) for feature in features if feature not in own},
                **({"extra": _TEXTS} if own else {}),
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
        held = small_table(self.lake, name)
        for symbol, row in ((each, row) for each in symbols for row in held.get(self.stored_as.get(each, each), ())):
            gone = row["superseded_at"]
            known = gone is None or (known_at is not None and gone > known_at)
            listed = known_at is None or row["first_seen_at"] <= known_at
            if known and listed:
                yield {**row, "symbol": symbol}

    def _open(self, table: LakeTable) -> OpenedTable:
        if table not in self._opened:
            self._opened[table] = opened_table(self.lake, table)
        return self._opened[table]

    def _columns(self, kind: Kind, stretches: Sequence[Stretch], decoders: Mapping[str, _Decoder]) -> Columns:
        import numpy as np

        reads: dict[tuple[Timeframe, int], dict[str, Bounds]] = {}
        seen: Counter[Series] = Counter()
        for number, stretch in enumerate(stretches):
            symbol, timeframe = stretch.series
            series = Series(self.stored_as.get(symbol, symbol), timeframe)
            bounds = (number, to_us(stretch.start), to_us(stretch.end))
            reads.setdefault((timeframe, seen[series]), {})[series.symbol] = bounds  # two names of a security: twice
            seen[series] += 1
        parts = []
        for (timeframe, _), wanted in reads.items():
            opened = self._open(LakeTable(kind, timeframe))
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

        decoders = dict.fromkeys(names, _NUMBERS) | {"ingested_at": _INSTANTS}
        present = self._columns(Kind.BARS, stretches, decoders)
        past = self._columns(Kind.REVISIONS, stretches, decoders | {"superseded_at": _INSTANTS, "id": _NUMBERS})
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


def _read(opened: OpenedTable, bounds: Mapping[str, Bounds], decoders: Mapping[str, _Decoder]) -> Columns:
    """Return the rows of the stretches in their order."""
    import numpy as np

    decoders = {"ts": _INSTANTS, **decoders}
    names = list(decoders)
    parts = list(_parts(opened, bounds, names))
    runs = [(at, number, start, end) for number, part in enumerate(parts) for at, start, end in part.runs]
    runs.sort(key=lambda run: run[0])  # months follow one another, so each symbol's rows do
    lengths = [end - start for _, _, start, end in runs]
    places: list[list[tuple[int, int, int]]] = [[] for _ in parts]
    for (_, number, start, end), first in zip(runs, accumulate(lengths, initial=0), strict=False):
        places[number].append((first, start, end))
    count = sum(lengths)
    found: dict[str, Any] = {
        name: [None] * count if decoder.dtype is None else np.empty(count, decoder.dtype)
        for name, decoder in decoders.items()
    }
    for number, part in enumerate(parts):
        rows = part.rows if part.rows is not None else _rows(opened, part.file, part.groups, names)
        parts[number] = part._replace(rows=None)
        for name, decoder in decoders.items():
            values, into = decoder.values(rows[name]), found[name]
            for first, start, end in places[number]:
                into[first : first + end - start] = values[start:end]
    at = np.repeat(np.array([run[0] for run in runs], "int32"), lengths)
    return Columns(at, found.pop("ts"), found)


def _parts(opened: OpenedTable, bounds: Mapping[str, Bounds], names: list[str]) -> Iterator[_Part]:
    """Yield what holds rows within the bounds, by month and symbol.

    Which rows of a part these are is known from the groups where each holds one symbol, and all of it is wanted; of
    other files the rows are read to see.
    """
    symbols = sorted(bounds)
    first_us, end_us = min(one[1] for one in bounds.values()), max(one[2] for one in bounds.values())
    for file in opened.files:
        if file.first_us >= end_us or file.last_us < first_us:
            continue
        wanted = symbols[bisect_left(symbols, file.first) :]
        if not wanted or wanted[0] > file.last:
            continue
        groups = [
            group
            for group in opened.footer(file).groups_of(wanted)
            if group.first_us < end_us and group.last_us >= first_us
        ]
        if not groups:
            continue
        if all(_is_whole(group, bounds) for group in groups):
            ends = list(accumulate(group.rows for group in groups))
            runs = [(bounds[one.first][0], end - one.rows, end) for one, end in zip(groups, ends, strict=True)]
            yield _Part(file, groups, runs, None)
            continue
        rows = _rows(opened, file, groups, ["symbol", *names])
        if runs := _runs(rows, bounds):
            yield _Part(file, groups, runs, rows)


def _is_whole(group: Group, bounds: Mapping[str, Bounds]) -> bool:
    if group.first != group.last:
        return False
    _, first_us, end_us = bounds[group.first]
    return first_us <= group.first_us and group.last_us < end_us


def _rows(opened: OpenedTable, file: File, groups: list[Group], names: list[str]) -> pa.Table:
    import pyarrow.parquet as pq

    threads = sum(group.rows for group in groups) * len(names) >= _THREADED_VALUES
    with opened.filesystem.open_input_file(file.path) as source:
        parquet = pq.ParquetFile(
            source,
            metadata=opened.footer(file).metadata,
            read_dictionary=list(opened.table.relation.encoded),
            pre_buffer=opened.far,  # ahead and at once where a read is a request; of a local file that would only copy
        )
        return parquet.read_row_groups([group.number for group in groups], names, use_threads=threads)


def _runs(rows: pa.Table, bounds: Mapping[str, Bounds]) -> list[Run]:
    """Return the parts of sorted rows that are wanted."""
    import numpy as np

    nowhere = (-1, 0, 0)
    symbols, ts = rows["symbol"].unify_dictionaries().combine_chunks(), _instants(rows["ts"])
    codes = symbols.indices.to_numpy()
    starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
    held = symbols.dictionary.to_pylist()
    found = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
        at, first_us, end_us = bounds.get(held[codes[start]], nowhere)
        if at >= 0:
            first, stop = np.searchsorted(ts[start:end], [first_us, end_us]).tolist()
            if first < stop:
                found.append((at, start + first, start + stop))
    return found


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    numbers: np.ndarray = values.to_numpy()
    return numbers


def _instants(values: pa.ChunkedArray) -> np.ndarray:
    instants: np.ndarray = values.cast("int64").to_numpy()
    return instants


def _texts(values: pa.ChunkedArray) -> list[str | None]:
    texts: list[str | None] = values.to_pylist()
    return texts


def _truths(values: pa.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    truths: np.ndarray = pc.fill_null(values.cast("int8"), -1).to_numpy()
    return truths


def _codes(values: pa.ChunkedArray, labels: Mapping[str, int]) -> np.ndarray:
    """Return the position of each text among the labels, -1 for null or another text."""
    import numpy as np
    import pyarrow.compute as pc

    whole = values.combine_chunks()
    # The last is that of null, whose place is -1.
    codes = np.array([*(labels.get(text, -1) for text in whole.dictionary.to_pylist()), -1], "int16")
    found: np.ndarray = codes[pc.fill_null(whole.indices, -1).to_numpy()]
    return found


_NUMBERS: Final = _Decoder("float64", _numbers)
_INSTANTS: Final = _Decoder("int64", _instants)
_TEXTS: Final = _Decoder(None, _texts)
_TRUTHS: Final = _Decoder("int8", _truths)


def _decoder(feature: Feature) -> _Decoder:
    if feature.labels:
        places = {label: place for place, label in enumerate(feature.labels)}
        return _Decoder("int16", lambda values: _codes(values, places))
    return _TRUTHS if feature.dtype == "bool" else _NUMBERS


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
