"""Features in PostgreSQL: read them in the columns in which they are stored, and compare them with computed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, LiteralString

from market_data_pipeline.domain.features.definitions import FEATURE_NAMES
from market_data_pipeline.store.bars import read_pieces
from market_data_pipeline.store.feature_values import CODES, FLOATS, STORED
from market_data_pipeline.store.records import series_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

LEFTOVER: Final = "_leftover"  # no feature's name begins with an underscore
ROUNDING: Final = 1e-12  # relative
_JSON_TYPES: Final = {"float": "number", "bool": "boolean", "text": "string"}


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
    leftovers: bool = False,
) -> pa.Table:
    """Return the stored features with `ts` from `start` on, ascending, in the columns of `feature_values`.

    With `leftovers` there is one more column, LEFTOVER: whether the row holds own features that are not in `own`.
    """
    import numpy as np
    import pyarrow as pa

    leftover: LiteralString = (
        f", coalesce(extra - %(declared)s::text[] <> '{{}}', false) as {LEFTOVER}" if leftovers else ""
    )
    values = "".join(f", {own_value(feature, 'stored')} as {feature.name}" for feature in own)
    kinds = {
        "ts": "instant",
        **dict.fromkeys(FLOATS, "float"),
        CODES: "code",
        **{feature.name: feature.dtype for feature in own},
        **({LEFTOVER: "bool"} if leftovers else {}),
    }
    found = read_pieces(
        connection,
        kinds,
        f"""
        select ts, {", ".join(FLOATS)}, {CODES}{values}{leftover}
        from market_data.records_{series.timeframe} as stored
        where series = %(series)s and ts >= %(start)s and features_after is not null
        order by ts
        """,  # noqa: S608 - names of columns, checked when they were declared, and of a partition
        {"series": series_id(connection, series), "start": start, "declared": [feature.name for feature in own]},
    )
    columns = {"ts": pa.array(found["ts"]).cast(pa.timestamp("us", tz="UTC"))}
    columns |= {name: pa.array(found[name], mask=np.isnan(found[name])) for name in FLOATS}
    columns[CODES] = pa.array(found[CODES])
    for feature in own:
        values_of = found[feature.name]
        if feature.dtype == "text":
            columns[feature.name] = pa.array(values_of, pa.string())
        elif feature.dtype == "bool":
            columns[feature.name] = pa.array(values_of == 1, mask=values_of < 0)
        else:
            columns[feature.name] = pa.array(values_of, mask=np.isnan(values_of))
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
        if name not in STORED and pa.types.is_floating(new.type):
            apart = pc.abs(pc.subtract(new, old))
            equal = pc.or_(equal, pc.fill_null(pc.less_equal(apart, pc.multiply(pc.abs(new), ROUNDING)), False))
        both_null = pc.and_(pc.is_null(new), pc.is_null(old))
        changed |= ~pc.or_(equal, both_null).to_numpy()
    if LEFTOVER in counterpart.column_names:
        changed |= counterpart[LEFTOVER].to_numpy()
    return changed
