"""Rows of many series at once as Arrow tables, in the columns that a copy of the database holds.

One statement reads the rows of a timeframe for several symbols: from `records` by the numbers of their series, or from
the views while bars are still being moved there. The symbol and the labels of features travel as whole numbers, and the
server aggregates each column into one array (`StoreConnection.columns`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import Series
from market_data_pipeline.store.feature_values import CODED, CODES, decoded
from market_data_pipeline.store.series_numbers import series_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.domain.series import Timeframe
    from market_data_pipeline.store.copy import StoreConnection


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its kind is `instant`, `float`, `integer`, `bool`, `label` (one of few texts) or `json` (as text)."""

    name: str
    kind: str
    nullable: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation of `market_data` with a row for each bar of a series, and the columns that are copied of it.

    `ts` comes first. A bar has one row, or, where `versions` is set, one for each of its values before the present one.
    """

    name: LiteralString
    columns: tuple[Column, ...]
    versions: bool = False

    @property
    def encoded(self) -> tuple[str, ...]:
        """The columns of few different texts, which are dictionaries in memory."""
        return ("symbol", *(column.name for column in self.columns if column.labels))

    def schema(self, *, encoded: bool = True) -> pa.Schema:
        """Return the Arrow schema of the rows: `symbol` and the columns; without `encoded`, with texts as texts."""
        import pyarrow as pa

        text = pa.dictionary(pa.int32(), pa.string()) if encoded else pa.string()
        types = {
            "instant": pa.timestamp("us", tz="UTC"),
            "float": pa.float64(),
            "integer": pa.int64(),
            "bool": pa.bool_(),
            "label": text,
        }
        fields = [pa.field(c.name, types.get(c.kind, pa.string()), c.nullable) for c in self.columns]
        return pa.schema([pa.field("symbol", text, False), *fields])


_BAR: Final = (
    Column("ts", "instant"),
    *(Column(name, "float") for name in PRICES),
    *(Column(name, "float", nullable=True) for name in ("volume", "vwap")),
    Column("trades", "integer", nullable=True),
    Column("ingested_at", "instant"),
)
BARS: Final = Relation("bars", _BAR)
REVISIONS: Final = Relation(
    "bar_revisions", (*_BAR, Column("superseded_at", "instant"), Column("id", "integer")), versions=True
)
FEATURE_ROWS: Final = Relation(
    "features",
    (
        Column("ts", "instant"),
        *(Column(f.name, {"text": "label"}.get(f.dtype, f.dtype), True, f.labels) for f in FEATURES),
        Column("features_computed_at", "instant"),
        Column("extra", "json", nullable=True),
    ),
)

# How a column is selected, and the kind of array that `StoreConnection.columns` returns for it. A label's code is its
# place in the list, as a whole number (`bool` is read as one); whole numbers beyond that fit a float exactly.
_SELECTED: Final[dict[str, tuple[LiteralString, str]]] = {
    "instant": ("b.{name}", "instant"),
    "float": ("b.{name}", "float"),
    "integer": ("b.{name}", "float"),
    "bool": ("b.{name}", "bool"),
    "label": ("array_position(%(labels_of_{name})s::text[], b.{name}) - 1 as {name}", "bool"),
    "json": ("b.{name}::text as {name}", "text"),
}
# What is another expression in `records` than in the view.
_RECORDED: Final[dict[str, LiteralString]] = {
    "features_computed_at": "b.ingested_at + b.features_after * interval '1 second' as features_computed_at"
}


def read_rows(
    connection: StoreConnection,
    relation: Relation,
    timeframe: Timeframe,
    spans: Mapping[str, Interval],
) -> pa.Table:
    """Return rows of `relation` by symbol and time, and versions of a bar by their age.

    Args:
        connection: the transaction.
        relation: what to read.
        timeframe: of the series.
        spans: the symbols, in ascending order, each with the interval in which its bars start.
    """
    import numpy as np

    timed = [Series(symbol, timeframe) for symbol in spans]
    numbers = None if relation.versions else series_numbers(connection, timed)
    if numbers is None:
        found = _viewed(connection, relation, timeframe, spans)
    else:
        found = _recorded(connection, relation, timeframe, spans, [numbers.get(each) for each in timed])
    codes = found.pop("series_code") - 1
    # The server mostly returns them in this order anyway, and sorts ten times as slowly.
    keys = (found["id"], found["ts"], codes) if relation.versions else (found["ts"], codes)
    order = np.lexsort(keys)
    sorted_already = bool((order[1:] > order[:-1]).all())
    return _table(relation, list(spans), codes, found, None if sorted_already else order)


def _recorded(
    connection: StoreConnection,
    relation: Relation,
    timeframe: Timeframe,
    spans: Mapping[str, Interval],
    numbers: Sequence[int | None],
) -> dict[str, Any]:
    """Return the columns of bars or features, from the records of the series with these numbers."""
    import numpy as np

    coded = {feature.name: feature for feature in CODED}
    plain = [column for column in relation.columns if column.name not in coded]
    sources = [_RECORDED.get(column.name) or _selected(column) for column in plain]
    kinds = {"series_code": "bool", **{column.name: _SELECTED[column.kind][1] for column in plain}}
    condition = "true"
    if len(plain) < len(relation.columns):
        sources.append(CODES)
        kinds[CODES] = "code"
        condition = "b.features_after is not null"
    found = connection.columns(
        kinds,
        f"""
        select wanted.code as series_code, {", ".join(sources)}
        from unnest(%(numbers)s::int[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
            with ordinality as wanted (series, first, stop, code)
        inner join market_data.records_{timeframe} as b
            on b.series = wanted.series and b.ts >= wanted.first and b.ts < wanted.stop
        where b.ts >= %(first)s::timestamptz and b.ts < %(stop)s::timestamptz and {condition}
        """,  # noqa: S608 - names of our own partitions and columns
        {
            "numbers": np.array([number or 0 for number in numbers], "int32"),  # no series has the number 0
            "starts": [span.start for span in spans.values()],
            "ends": [span.end for span in spans.values()],
            # Once more, for the planner: it leaves out the other partitions.
            "first": min((span.start for span in spans.values()), default=None),
            "stop": max((span.end for span in spans.values()), default=None),
        },
    )
    codes = found.pop(CODES, None)
    for column in relation.columns:
        if column.name in coded:
            found[column.name] = decoded(codes, coded[column.name]).astype("int32")
    return found


def _viewed(
    connection: StoreConnection, relation: Relation, timeframe: Timeframe, spans: Mapping[str, Interval]
) -> dict[str, Any]:
    """Return the columns of a relation that has `symbol` and `timeframe`."""
    return connection.columns(
        {"series_code": "bool", **{column.name: _SELECTED[column.kind][1] for column in relation.columns}},
        f"""
        select wanted.code as series_code, {", ".join(map(_selected, relation.columns))}
        from unnest(%(symbols)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
            with ordinality as wanted (symbol, first, stop, code)
        inner join market_data.{relation.name} as b
            on b.symbol = wanted.symbol and b.ts >= wanted.first and b.ts < wanted.stop
        where b.timeframe = %(timeframe)s
        """,  # noqa: S608 - names of our own relations and columns
        {
            "symbols": list(spans),
            "starts": [span.start for span in spans.values()],
            "ends": [span.end for span in spans.values()],
            "timeframe": str(timeframe),
            **{f"labels_of_{column.name}": list(column.labels) for column in relation.columns if column.labels},
        },
    )


def _selected(column: Column) -> LiteralString:
    return _SELECTED[column.kind][0].format(name=column.name)


def _table(
    relation: Relation, symbols: list[str], codes: np.ndarray, found: Mapping[str, Any], order: np.ndarray | None
) -> pa.Table:
    import pyarrow as pa

    arrays = [pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(symbols, pa.string()))]
    arrays += [_array(column, found[column.name]) for column in relation.columns]
    table = pa.Table.from_arrays(arrays, schema=relation.schema())
    return table if order is None else table.take(pa.array(order))


def _array(column: Column, values: Any) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if column.kind == "instant":
        return pa.array(values).cast(pa.timestamp("us", tz="UTC"))
    if column.kind == "float":
        return pa.array(values, mask=np.isnan(values) if column.nullable else None)
    if column.kind == "integer":
        absent = np.isnan(values)
        return pa.array(np.where(absent, 0, values).astype("int64"), mask=absent if column.nullable else None)
    if column.kind == "bool":
        return pa.array(values == 1, mask=values < 0)
    if column.kind == "label":
        return pa.DictionaryArray.from_arrays(pa.array(values, mask=values < 0), pa.array(column.labels, pa.string()))
    return pa.array(values, pa.string())
