"""Features in PostgreSQL: read, compare with computed ones, and replace the rows that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.bars import array, ts_us
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, FEATURES
from market_data_pipeline.store.bars import partition, read_pieces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

LEFTOVER: Final = "_leftover"  # no feature's name begins with an underscore
ROUNDING: Final = 1e-12  # relative
_JSON_TYPES: Final = {"float": "number", "bool": "boolean", "text": "string"}


def feature_table(features: pd.DataFrame, own: Sequence[Feature] = ()) -> pa.Table:
    """Return a frame of features as Arrow: `ts`, the 17 columns and those of `own`, null where NaN or NA."""
    import pyarrow as pa

    columns = {"ts": pa.array(ts_us(features)).cast(pa.timestamp("us", tz="UTC"))}
    columns |= {feature.name: _column(array(features, feature.name), feature) for feature in (*FEATURES, *own)}
    return pa.table(columns)


def _column(values: Any, feature: Feature) -> pa.Array:
    import pandas as pd
    import pyarrow as pa

    types = {"float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
    if isinstance(values, pd.Categorical) and feature.labels:  # Arrow's own conversion takes five times as long
        codes = values.codes
        return pa.array(feature.labels, pa.string()).take(pa.array(codes, mask=codes < 0))
    return pa.array(values, from_pandas=True).cast(types[feature.dtype])


def feature_columns(own: Sequence[Feature], relation: str = "features") -> LiteralString:
    """Return the 17 columns and those of `own` as a select list; an own value of another type than declared is null.

    An older declaration may have left values of another type behind.
    """
    names = [f"{relation}.{name}" for name in FEATURE_NAMES]
    return ", ".join([*names, *(f"{own_value(feature, relation)} as {feature.name}" for feature in own)])


def own_value(feature: Feature, relation: str) -> LiteralString:
    """Return the value of an own feature in a row of `relation`, see `feature_columns`."""
    value = f"{relation}.extra -> '{feature.name}'"  # names are checked when they are declared and need no quoting
    typed = f"({relation}.extra ->> '{feature.name}')::{feature.sql_type}"
    return f"case when jsonb_typeof({value}) = '{_JSON_TYPES[feature.dtype]}' then {typed} end"


def read_features(
    connection: StoreConnection,
    series: Series,
    start: datetime,
    own: Sequence[Feature] = (),
    *,
    end: datetime | None = None,
    leftovers: bool = False,
) -> pa.Table:
    """Return the stored features with `ts` in [start, end), ascending: `ts`, the 17 columns and those of `own`.

    Without `end` they reach up to the last one. With `leftovers` there is one more column, LEFTOVER: whether the row
    holds own features that are not in `own`.
    """
    import numpy as np
    import pyarrow as pa

    before_end: LiteralString = "" if end is None else " and ts < %(end)s"
    leftover: LiteralString = (
        f", coalesce(extra - %(declared)s::text[] <> '{{}}', false) as {LEFTOVER}" if leftovers else ""
    )
    features = (*FEATURES, *own)
    kinds = {"ts": "instant", **{feature.name: feature.dtype for feature in features}}
    found = read_pieces(
        connection,
        kinds | ({LEFTOVER: "bool"} if leftovers else {}),
        f"""
        select ts, {feature_columns(own)}{leftover}
        from market_data.features
        where symbol = %(symbol)s and timeframe = %(timeframe)s and ts >= %(start)s{before_end}
        order by ts
        """,  # noqa: S608 - names of columns, checked when they were declared
        {**series._asdict(), "start": start, "end": end, "declared": [feature.name for feature in own]},
    )
    columns = {"ts": pa.array(found["ts"]).cast(pa.timestamp("us", tz="UTC"))}
    for feature in features:
        values = found[feature.name]
        if feature.dtype == "text":
            columns[feature.name] = pa.array(values, pa.string())
        elif feature.dtype == "bool":
            columns[feature.name] = pa.array(values == 1, mask=values < 0)
        else:
            columns[feature.name] = pa.array(values, mask=np.isnan(values))
    if leftovers:
        columns[LEFTOVER] = pa.array(found[LEFTOVER] == 1)
    return pa.table(columns)


def changed_rows(stored: pa.Table, computed: pa.Table) -> np.ndarray:
    """Return a mask over `computed`: True where the stored row differs or is missing.

    Own features may come from running sums, which round differently when they start at another bar: a relative
    difference of an own value up to 1e-12 does not count. The rows that a column LEFTOVER in `stored` marks do count.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    stored_ts = stored["ts"].to_numpy()
    computed_ts = computed["ts"].to_numpy()
    if not len(stored_ts):
        return np.ones(len(computed_ts), dtype=bool)
    at = np.minimum(np.searchsorted(stored_ts, computed_ts), len(stored_ts) - 1)
    changed: np.ndarray = stored_ts[at] != computed_ts
    counterpart = stored.take(at)
    for name in computed.column_names[1:]:
        new, old = computed[name], counterpart[name]
        equal = pc.fill_null(pc.equal(new, old), False)
        if name not in FEATURE_NAMES and pa.types.is_floating(new.type):
            apart = pc.abs(pc.subtract(new, old))
            equal = pc.or_(equal, pc.fill_null(pc.less_equal(apart, pc.multiply(pc.abs(new), ROUNDING)), False))
        both_null = pc.and_(pc.is_null(new), pc.is_null(old))
        changed |= ~pc.or_(equal, both_null).to_numpy()
    if LEFTOVER in counterpart.column_names:
        changed |= counterpart[LEFTOVER].to_numpy()
    return changed


def append_features(connection: StoreConnection, series: Series, features: pa.Table, now: datetime) -> None:
    """Store feature rows that are not stored yet; columns beyond the 17 go into `extra`."""
    import pyarrow as pa

    rows = features.num_rows
    if not rows:
        return
    table = (
        _with_extra(features)
        .add_column(0, "symbol", pa.repeat(pa.scalar(series.symbol), rows))
        .add_column(1, "timeframe", pa.repeat(pa.scalar(str(series.timeframe)), rows))
        .append_column("features_computed_at", pa.repeat(pa.scalar(now, type=pa.timestamp("us", tz="UTC")), rows))
    )
    connection.copy(partition("features", series.timeframe), table)


def _with_extra(features: pa.Table) -> pa.Table:
    """Return `features` with the columns beyond the 17 joined into one, `extra`, in the binary form of jsonb."""
    import pyarrow as pa
    import pyarrow.compute as pc

    own = [name for name in features.column_names if name not in FEATURE_NAMES and name != "ts"]
    if not own:
        return features
    pieces: list[Any] = []
    empty = pa.repeat(pa.scalar(True), features.num_rows)
    for name in own:
        column = features[name].combine_chunks()
        pieces += [f'{"," if pieces else ""}"{name}":', pc.fill_null(_json(column), "null")]
        empty = pc.and_(empty, pc.is_null(column))
    # A version byte and the text: the type's binary form.
    document = pc.binary_join_element_wise("\x01{", *pieces, "}", "")
    extra = pc.if_else(empty, pa.scalar(None, pa.binary()), document.cast(pa.binary()))
    return features.drop_columns(own).append_column("extra", extra)


def _json(column: pa.Array) -> pa.Array:
    """Return each value as JSON, null where there is none; floats in the fewest digits that restore them."""
    import orjson
    import pyarrow as pa

    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    coded = column.dictionary_encode()
    words = pa.array([orjson.dumps(word).decode() for word in coded.dictionary.to_pylist()], pa.string())
    return words.take(coded.indices)


def remove_features(connection: StoreConnection, series: Series, ts: list[datetime]) -> None:
    """Delete the rows at `ts`: they are about to be stored again, or their bars are gone."""
    if ts:
        connection.execute(
            """
            delete from market_data.features
            where symbol = %(symbol)s and timeframe = %(timeframe)s and ts = any(%(ts)s)
            """,
            {**series._asdict(), "ts": ts},
        )
