"""Bars and features of many series by one statement, as columns: what the readers and the lake are made from.

Booleans and labels travel as one number for each row: as texts, the nine of the 17 features would take as long as the
eight numbers do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.adjustments import Split
from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.store.features import own_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import numpy as np

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.store.copy import StoreConnection

BAR_COLUMNS: Final = VALUES
_LARGEST_CODE: Final = 2**31 - 1  # an int4


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
    connection: StoreConnection, stretches: Sequence[Stretch], names: Sequence[str], as_of: datetime | None = None
) -> Columns:
    """Return the raw bars of the stretches, as they are or as they were stored at `as_of`.

    Args:
        connection: the transaction.
        stretches: not empty; the server holds all of their rows in memory.
        names: which of `BAR_COLUMNS`.
        as_of: aware; None for the present.
    """
    relation = "market_data.bars"
    if as_of is not None:
        relation = f"market_data.bars_as_of(asked.symbol, {_timeframe(stretches)}, %(as_of)s)"
    return _read(connection, relation, list(names), dict.fromkeys(names, "float"), stretches, as_of)


def feature_columns(connection: StoreConnection, stretches: Sequence[Stretch], features: Sequence[Feature]) -> Columns:
    """Return the stored values of `features`, of the 17 or a project's own; arguments as in `bar_columns`."""
    sources = {feature.name: source for feature, source in zip(features, _sources(features), strict=True)}
    coded = [feature for feature in features if feature.dtype == "bool" or feature.labels]
    selected: list[str] = []
    kinds: dict[str, str] = {}
    for feature in features:
        if feature not in coded:
            selected.append(f"{sources[feature.name]} as {feature.name}")
            kinds[feature.name] = feature.dtype
    codes = list(_codes(coded))
    for number, group in enumerate(codes):
        terms = [_digit(feature, sources[feature.name], weight) for feature, weight in group]
        selected.append(f"{' + '.join(terms)} as _code_{number}")
        kinds[f"_code_{number}"] = "code"
    found = _read(connection, "market_data.features", selected, kinds, stretches, None)
    for number, group in enumerate(codes):
        rest = found.values.pop(f"_code_{number}")
        for feature, _ in group:
            higher = rest // _radix(feature)  # by a constant, which NumPy does many at a time; it has no such remainder
            digit = rest - higher * _radix(feature) - 1
            found.values[feature.name] = digit.astype("int16" if feature.labels else "int8")
            rest = higher
    return found


def held(
    connection: StoreConnection, symbols: Sequence[str], timeframes: Sequence[Timeframe]
) -> dict[str, dict[Timeframe, Held]]:
    """Return what is held of each of `symbols` that is tracked, by timeframe; one that was never stored is missing.

    Raises:
        ConfigurationError: the database was never migrated.
    """
    rows = connection.rows(
        """
        select tracked.symbol, state.timeframe, state.first_ts, state.last_ts, state.bar_count
        from market_data.symbols as tracked
        left join market_data.series_state as state
            on state.symbol = tracked.symbol and state.timeframe = any(%(timeframes)s::text[])
        where tracked.symbol = any(%(symbols)s::text[])
        """,
        {"symbols": list(symbols), "timeframes": [str(timeframe) for timeframe in timeframes]},
    )
    found: dict[str, dict[Timeframe, Held]] = {}
    for row in rows:
        of_symbol = found.setdefault(row["symbol"], {})
        if row["timeframe"] is not None:
            of_symbol[Timeframe(row["timeframe"])] = Held(row["first_ts"], row["last_ts"], row["bar_count"])
    return found


def splits_of(
    connection: StoreConnection, symbols: Sequence[str], known_at: datetime | None = None
) -> dict[str, list[Split]]:
    """Return the splits of each symbol that has any, as `reference.read_splits` does for one."""
    rows = connection.rows(
        """
        select symbol, execution_date, split_from, split_to
        from market_data.splits_as_of(coalesce(%(known_at)s::timestamptz, 'infinity'))
        where symbol = any(%(symbols)s::text[])
        order by symbol, execution_date, factor
        """,
        {"symbols": list(symbols), "known_at": known_at},
    )
    splits: dict[str, list[Split]] = {}
    for row in rows:
        splits.setdefault(row["symbol"], []).append(Split(row["execution_date"], row["split_from"], row["split_to"]))
    return splits


def _read(
    connection: StoreConnection,
    relation: str,
    selected: list[str],
    kinds: dict[str, str],
    stretches: Sequence[Stretch],
    as_of: datetime | None,
) -> Columns:
    import numpy as np

    several = len(stretches) > 1  # else the position would take a tenth of the time, to say nothing
    statement = f"""
        select asked.at, found.*
        from unnest(
            %(at)s::int[], %(symbols)s::text[], %(timeframes)s::text[],
            %(starts)s::timestamptz[], %(ends)s::timestamptz[]
        ) as asked (at, symbol, timeframe, first, stop)
        cross join lateral (
            select {", ".join(["ts", *selected])} from {relation} as stored
            where
                stored.symbol = asked.symbol and stored.timeframe = {_timeframe(stretches)}
                and stored.ts >= asked.first and stored.ts < asked.stop
            order by ts
        ) as found
    """  # noqa: S608 - relations and columns of this module, and own features, whose names are checked
    parameters = {
        "at": list(range(len(stretches))),
        "symbols": [stretch.series.symbol for stretch in stretches],
        "timeframes": [str(stretch.series.timeframe) for stretch in stretches],
        "starts": [stretch.start for stretch in stretches],
        "ends": [stretch.end for stretch in stretches],
        "as_of": as_of,
    }
    found = connection.columns({"ts": "instant", **({"at": "code"} if several else {}), **kinds}, statement, parameters)
    ts = found.pop("ts")
    at = found.pop("at") if several else np.zeros(len(ts), "int32")
    return _in_order(Columns(at, ts, found))


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


def _timeframe(stretches: Sequence[Stretch]) -> str:
    """Return the timeframe for the statement: as a constant where there is only one, which chooses the partition."""
    timeframes = {stretch.series.timeframe for stretch in stretches}
    return f"'{timeframes.pop()}'" if len(timeframes) == 1 else "asked.timeframe"


def _sources(features: Sequence[Feature]) -> Iterator[str]:
    """Yield each feature's value in the statement."""
    from market_data_pipeline.domain.features.definitions import FEATURE_NAMES

    for feature in features:
        yield feature.name if feature.name in FEATURE_NAMES else own_value(feature, "stored")


def _codes(features: Sequence[Feature]) -> Iterator[list[tuple[Feature, int]]]:
    """Yield groups of features whose values fit into one number together, each with the weight of its digit."""
    group: list[tuple[Feature, int]] = []
    weight = 1
    for feature in features:
        if weight * _radix(feature) > _LARGEST_CODE:
            yield group
            group, weight = [], 1
        group.append((feature, weight))
        weight *= _radix(feature)
    if group:
        yield group


def _radix(feature: Feature) -> int:
    return 1 + (len(feature.labels) if feature.labels else 2)


def _digit(feature: Feature, source: str, weight: int) -> str:
    """Return a value times its weight: 0 for null, else 1 and up for the labels, or for false and true."""
    if not feature.labels:
        return f"case when {source} then {2 * weight} when not {source} then {weight} else 0 end"
    cases = [f"when {_literal(label)} then {position * weight}" for position, label in enumerate(feature.labels, 1)]
    return f"case {source} {' '.join(cases)} else 0 end"


def _literal(text: str) -> str:
    """Return a text as SQL, in a statement with parameters."""
    return "'" + text.replace("'", "''").replace("%", "%%") + "'"
