"""Bars and features of many series by one statement, as columns: what the readers and the lake are made from.

They are read from `records`, under the numbers of the series; while bars are still being moved there, from the views,
which have all of them. Booleans and labels travel as the one number that holds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

from market_data_pipeline.domain.adjustments import Split
from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.store.feature_values import CODED, CODES, FLOATS, decoded, shift_of
from market_data_pipeline.store.features import own_value
from market_data_pipeline.store.packed_records import Part, Span, asked, joined, packed_parts
from market_data_pipeline.store.series_numbers import series_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import numpy as np

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.store.copy import StoreConnection

BAR_COLUMNS: Final = VALUES
_PACKED: Final = {*VALUES, *FLOATS, CODES}
# Of which a statement names the bounds, so that there are few statements to be prepared.
_MOST_PERIODS: Final = 4


class Stretch(NamedTuple):
    """The rows of one series with `ts` in [start, end), aware UTC."""

    series: Series
    start: datetime
    end: datetime


class Held(NamedTuple):
    """What `series_state` says of a series: the first and last bar start, None when there is none, and their number."""

    first_ts: datetime | None
    last_ts: datetime | None
    bar_count: int


class Columns(NamedTuple):
    """Rows in the order of the stretches, ascending `ts` within each.

    Attributes:
        at: int32, the position of each row's stretch among those asked for.
        ts: int64, microseconds since 1970 UTC.
        values: by name, as long as `ts`. Numbers are float64 with NaN for null; booleans int8, -1 for null; a text
            with labels int16, the position of the label, -1 for null or another text; other texts a list.
    """

    at: np.ndarray
    ts: np.ndarray
    values: dict[str, Any]


def bar_columns(
    connection: StoreConnection,
    stretches: Sequence[Stretch],
    names: Sequence[str],
    as_of: datetime | None = None,
    *,
    packed: bool = True,
) -> Columns:
    """Return the raw bars of the stretches, as they are or as they were stored at `as_of`.

    Args:
        connection: the transaction.
        stretches: not empty; the server holds all of their rows in memory.
        names: which of `BAR_COLUMNS`.
        as_of: aware; None for the present.
        packed: take what is packed from there, which is the same and worth it from a thousand rows on.
    """
    kinds = dict.fromkeys(names, "float")
    if as_of is None:
        return _read(connection, stretches, list(names), kinds, packed=packed)
    timeframes = {stretch.series.timeframe for stretch in stretches}
    timeframe = f"'{timeframes.pop()}'" if len(timeframes) == 1 else "asked.timeframe"  # a constant is planned better
    relation = f"market_data.bars_as_of(asked.symbol, {timeframe}, %(as_of)s)"
    return _read_view(connection, stretches, relation, "true", list(names), kinds, {"as_of": as_of})


def feature_columns(
    connection: StoreConnection, stretches: Sequence[Stretch], features: Sequence[Feature], *, packed: bool = True
) -> Columns:
    """Return the stored values of `features`, of the 17 or a project's own; arguments as in `bar_columns`."""
    selected, kinds = _selected(features)
    return _decoded(_read(connection, stretches, selected, kinds, computed=True, packed=packed), features)


def record_columns(
    connection: StoreConnection,
    stretches: Sequence[Stretch],
    names: Sequence[str],
    features: Sequence[Feature],
    *,
    packed: bool = True,
) -> Columns:
    """Return the raw bars of the stretches with their features, which are null for a bar without any."""
    selected, kinds = _selected(features)
    return _decoded(
        _read(connection, stretches, [*names, *selected], {**dict.fromkeys(names, "float"), **kinds}, packed=packed),
        features,
    )


def beside(bars: Columns, features: Columns) -> Columns:
    """Return the bars of the same stretches with their features, which are null for a bar without any."""
    import numpy as np

    if np.array_equal(bars.ts, features.ts) and np.array_equal(bars.at, features.at):
        return bars._replace(values=bars.values | features.values)
    wanted, held = _keys(bars), _keys(features)
    places = np.minimum(np.searchsorted(held, wanted), max(0, len(held) - 1))
    found = held[places] == wanted if len(held) else np.zeros(len(wanted), bool)
    taken = {name: _taken(values, places, found) for name, values in features.values.items()}
    return bars._replace(values=bars.values | taken)


def _keys(columns: Columns) -> np.ndarray:
    """Return one ascending value for each row, from its stretch and its `ts`."""
    import numpy as np

    keys = np.empty(len(columns.ts), [("at", "int32"), ("ts", "int64")])
    keys["at"], keys["ts"] = columns.at, columns.ts
    return keys


def _taken(values: object, places: np.ndarray, found: np.ndarray) -> object:
    import numpy as np

    if isinstance(values, list):
        return [values[place] if there else None for place, there in zip(places, found, strict=True)]
    array = np.asarray(values)
    absent = np.nan if array.dtype.kind == "f" else -1
    taken = array[places] if len(array) else np.full(len(places), absent, array.dtype)
    return np.where(found, taken, np.array(absent, array.dtype))


def held(
    connection: StoreConnection, symbols: Sequence[str], timeframes: Sequence[Timeframe]
) -> dict[str, dict[Timeframe, Held]]:
    """Return what is held of each of `symbols` that is tracked, by timeframe; one that was never stored is missing.

    Raises:
        ConfigurationError: the database was never migrated.
    """
    return held_and_splits(connection, symbols, timeframes)[0]


def held_and_splits(
    connection: StoreConnection,
    symbols: Sequence[str],
    timeframes: Sequence[Timeframe],
    *,
    splits: bool = False,
    known_at: datetime | None = None,
) -> tuple[dict[str, dict[Timeframe, Held]], dict[str, list[Split]]]:
    """Return what `held` and, with `splits`, what `splits_of` do, by one statement: few rows cost less than asking."""
    statement: LiteralString = _HELD
    if splits:
        statement = f"select * from ({_HELD} union all {_SPLITS}) as both_of_them order by execution_date, factor"  # noqa: S608 - statements of this module
    rows = connection.rows(
        statement,
        {
            "symbols": list(symbols),
            "timeframes": [str(timeframe) for timeframe in timeframes],
            "known_at": known_at,
        },
    )
    found: dict[str, dict[Timeframe, Held]] = {}
    of_symbols: dict[str, list[Split]] = {}
    for row in rows:
        if row["execution_date"] is not None:
            split = Split(row["execution_date"], row["split_from"], row["split_to"])
            of_symbols.setdefault(row["symbol"], []).append(split)
            continue
        of_symbol = found.setdefault(row["symbol"], {})
        if row["timeframe"] is not None:
            of_symbol[Timeframe(row["timeframe"])] = Held(row["first_ts"], row["last_ts"], row["bar_count"])
    return found, of_symbols


def packed_rows(connection: StoreConnection, series: Sequence[Series]) -> int:
    """Return how many rows of the series are packed."""
    import numpy as np

    numbers = series_numbers(connection, series) or {}
    if not connection.packs:
        return 0
    [row] = connection.rows(
        """
        select coalesce(sum(rows), 0)::bigint as rows from market_data.packed_records
        where series = any(%(numbers)s::int[])
        """,
        {"numbers": np.array([numbers[each] for each in series if each in numbers], "int32")},
    )
    return int(row["rows"])


def splits_of(
    connection: StoreConnection, symbols: Sequence[str], known_at: datetime | None = None
) -> dict[str, list[Split]]:
    """Return the splits of each symbol that has any, as `reference.read_splits` does for one."""
    splits: dict[str, list[Split]] = {}
    for row in connection.rows(
        f"{_SPLITS} order by execution_date, factor", {"symbols": list(symbols), "known_at": known_at}
    ):
        splits.setdefault(row["symbol"], []).append(Split(row["execution_date"], row["split_from"], row["split_to"]))
    return splits


_HELD: Final = """
select
    tracked.symbol, state.timeframe, state.first_ts, state.last_ts, state.bar_count,
    null::date as execution_date, null::float8 as split_from, null::float8 as split_to, null::float8 as factor
from market_data.symbols as tracked
left join market_data.series_state as state
    on state.symbol = tracked.symbol and state.timeframe = any(%(timeframes)s::text[])
where tracked.symbol = any(%(symbols)s::text[])
"""
_SPLITS: Final = """
select
    symbol, null as timeframe, null::timestamptz as first_ts, null::timestamptz as last_ts, null::bigint as bar_count,
    execution_date, split_from, split_to, factor
from market_data.splits_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
where symbol = any(%(symbols)s::text[])
"""


def _selected(features: Sequence[Feature]) -> tuple[list[str], dict[str, str]]:
    """Return what is selected of a record for the features, and the kind of each column, see `_decoded`."""
    selected: list[str] = []
    kinds: dict[str, str] = {}
    for feature in features:
        if feature in CODED:
            continue
        source, kind = feature.name, feature.dtype
        if feature.name not in FEATURE_NAMES:
            source = own_value(feature, "stored")
            if feature.labels:
                places = [f"when {_literal(label)} then {place}" for place, label in enumerate(feature.labels)]
                source, kind = f"case {source} {' '.join(places)} end", "bool"
        selected.append(f"{source} as {feature.name}")
        kinds[feature.name] = kind
    if not set(CODED).isdisjoint(features):
        selected.append(CODES)
        kinds[CODES] = "code"
    return selected, kinds


def _decoded(found: Columns, features: Sequence[Feature]) -> Columns:
    values = found.values
    codes = values.pop(CODES, None)
    for feature in features:
        if feature.dtype != "bool" and not feature.labels:
            continue
        kind = "int16" if feature.labels else "int8"
        each = values[feature.name] if feature not in CODED else decoded(codes, feature)
        values[feature.name] = each.astype(kind, copy=False)
    return found


def _read(
    connection: StoreConnection,
    stretches: Sequence[Stretch],
    selected: list[str],
    kinds: dict[str, str],
    *,
    computed: bool = False,
    packed: bool = True,
) -> Columns:
    """Return what is selected of the records of the stretches; with `computed` of those that have features alone."""
    condition = "stored.features_after is not null" if computed else "true"
    numbers = series_numbers(connection, [stretch.series for stretch in stretches])
    if numbers is None:
        return _read_view(connection, stretches, _STILL_TO_MOVE, condition, selected, kinds, {})
    spans = [
        Span(at, numbers[each.series], each.start, each.end)
        for at, each in enumerate(stretches)
        if each.series in numbers
    ]
    timeframes = {stretch.series.timeframe for stretch in stretches if stretch.series in numbers}
    relation = f"market_data.records_{timeframes.pop()}" if len(timeframes) == 1 else "market_data.records"
    if not packed or not connection.packs or not kinds.keys() <= _PACKED:
        return _read_rows(connection, spans, relation, selected, kinds, condition)
    parts, left = packed_parts(connection, spans, list(kinds), computed=computed)
    if not parts:
        return _read_rows(connection, spans, relation, selected, kinds, condition)
    places = [span._replace(at=place) for place, span in enumerate(left)]
    rows = _read_rows(connection, places, relation, selected, kinds, condition)
    return Columns(*joined([*parts, *_parts_of(rows, left)], list(kinds)))


def _parts_of(rows: Columns, spans: Sequence[Span]) -> list[Part]:
    """Return the rows of each span, of rows whose `at` counts through the spans."""
    import numpy as np

    bounds = np.searchsorted(rows.at, np.arange(len(spans) + 1))
    return [
        Part(span.at, rows.ts[begin:end], {name: values[begin:end] for name, values in rows.values.items()})
        for span, begin, end in zip(spans, bounds, bounds[1:], strict=False)
    ]


def _read_rows(
    connection: StoreConnection,
    spans: Sequence[Span],
    relation: str,
    selected: list[str],
    kinds: dict[str, str],
    condition: str,
) -> Columns:
    """Return what is selected of the rows of spans, `at` as they have it.

    Bounds in time stand in the statement as values of their own, beside those of each span: by them and by the number
    of a single series, the planner leaves out the partitions that have nothing to do with it.
    """
    import numpy as np

    parameters, within = _within(spans)
    rows = f"select {', '.join(['ts', *selected])} from {relation} as stored where ({within}) and {condition}"  # noqa: S608 - partitions and columns of this module, and own features, whose names are checked
    if len(spans) == 1:
        parameters["series"] = spans[0].number
        found = connection.columns(
            {"ts": "instant", **kinds}, f"{rows} and series = %(series)s::int order by ts", parameters
        )
        ts = found.pop("ts")
        return _in_order(Columns(np.full(len(ts), spans[0].at, "int32"), ts, found))
    statement = f"""
        select asked.at, found.*
        from unnest(
            %(at)s::int[], %(numbers)s::int[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]
        ) as asked (at, series, first, stop)
        cross join lateral (
            {rows} and series = asked.series and ts >= asked.first and ts < asked.stop order by ts
        ) as found
    """  # noqa: S608 - as above
    parameters |= asked(spans)
    return _columns(connection, statement, kinds, parameters)


def _within(spans: Sequence[Span]) -> tuple[dict[str, object], str]:
    """Return the time that spans take together as a condition: what lies between them is packed, and years long."""
    periods: list[tuple[datetime, datetime]] = []
    for start, end in sorted((span.start, span.end) for span in spans):
        if periods and (start <= periods[-1][1] or len(periods) == _MOST_PERIODS):
            periods[-1] = (periods[-1][0], max(periods[-1][1], end))
        else:
            periods.append((start, end))
    parameters: dict[str, object] = {}
    conditions = []
    for place, (start, end) in enumerate(periods):
        parameters |= {f"first_{place}": start, f"stop_{place}": end}
        conditions.append(f"ts >= %(first_{place})s::timestamptz and ts < %(stop_{place})s::timestamptz")
    return parameters, " or ".join(conditions) or "false"


def _read_view(
    connection: StoreConnection,
    stretches: Sequence[Stretch],
    relation: str,
    condition: str,
    selected: list[str],
    kinds: dict[str, str],
    parameters: Mapping[str, object],
) -> Columns:
    """Return what is selected of a relation with `symbol` and `timeframe`."""
    statement = f"""
        select asked.at, found.*
        from unnest(
            %(at)s::int[], %(symbols)s::text[], %(timeframes)s::text[],
            %(starts)s::timestamptz[], %(ends)s::timestamptz[]
        ) as asked (at, symbol, timeframe, first, stop)
        cross join lateral (
            select {", ".join(["ts", *selected])} from {relation} as stored
            where
                stored.symbol = asked.symbol and stored.timeframe = asked.timeframe
                and stored.ts >= asked.first and stored.ts < asked.stop and {condition}
            order by ts
        ) as found
    """  # noqa: S608 - relations and columns of this module, and own features, whose names are checked
    return _columns(
        connection,
        statement,
        kinds,
        {
            "at": list(range(len(stretches))),
            "symbols": [stretch.series.symbol for stretch in stretches],
            "timeframes": [str(stretch.series.timeframe) for stretch in stretches],
            "starts": [stretch.start for stretch in stretches],
            "ends": [stretch.end for stretch in stretches],
            **parameters,
        },
    )


def _columns(
    connection: StoreConnection, statement: str, kinds: dict[str, str], parameters: Mapping[str, object]
) -> Columns:
    found = connection.columns({"at": "code", "ts": "instant", **kinds}, statement, parameters)
    return _in_order(Columns(found.pop("at"), found.pop("ts"), found))


def _in_order(columns: Columns) -> Columns:
    """Return the rows in the order that the statement's plan gives them, unless a server chose another plan."""
    import numpy as np

    at, ts, values = columns
    ascending = (at[1:] > at[:-1]) | ((at[1:] == at[:-1]) & (ts[1:] > ts[:-1]))
    if ascending.all():
        return columns
    order = np.lexsort((ts, at))
    sorted_values = {
        name: [each[row] for row in order] if isinstance(each, list) else each[order] for name, each in values.items()
    }
    return Columns(at[order], ts[order], sorted_values)


def _literal(text: str) -> str:
    """Return a text as SQL, in a statement with parameters."""
    return "'" + text.replace("'", "''").replace("%", "%%") + "'"


def _code_of(feature: Feature) -> str:
    """Return the code of a feature of the 17, of the view `features`, in its two bits."""
    if feature.labels:
        places = [f"when '{label}' then {place}" for place, label in enumerate(feature.labels, 1)]
        value = f"case f.{feature.name} {' '.join(places)} else 0 end"
    else:
        value = f"case when f.{feature.name} then 2 when not f.{feature.name} then 1 else 0 end"
    return f"(({value}) << {shift_of(feature)})"


# Records as the views have them.
_STILL_TO_MOVE: Final = f"""(
    select
        b.*, {", ".join(f"f.{name}" for name in FLOATS)}, {" | ".join(map(_code_of, CODED))} as {CODES}, f.extra,
        f.features_computed_at as features_after
    from market_data.bars as b
    left join market_data.features as f on f.symbol = b.symbol and f.timeframe = b.timeframe and f.ts = b.ts
)"""  # noqa: S608 - columns
