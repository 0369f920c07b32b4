"""Features as the columns in which they are stored: floats, one code for all booleans and labels, and own ones as JSON.

| column | type | of |
|---|---|---|
| `ts` | timestamp[us, UTC] | the bar's start |
| each of FLOATS | float64, null where there is no value | the features that are numbers |
| CODES | int32 | the features that are booleans or labels, two bits each: see the comment of `records.codes` |
| each own feature | float64, bool or string, null where there is no value | the project's own features |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.bars import array, ts_us
from market_data_pipeline.domain.features.definitions import FEATURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature

CODES: Final = "codes"
FLOATS: Final = tuple(feature.name for feature in FEATURES if feature.dtype == "float")
CODED: Final = tuple(feature for feature in FEATURES if feature.dtype != "float")
STORED: Final = ("ts", *FLOATS, CODES)
MASK: Final = 3  # two bits: null, and three labels at most


def shift_of(feature: Feature) -> int:
    """Return by how many bits the value of a boolean or label is shifted within the code."""
    return 2 * CODED.index(feature)


def feature_table(features: pd.DataFrame, own: Sequence[Feature] = ()) -> pa.Table:
    """Return a frame of features in the columns above, null where NaN or NA."""
    import pyarrow as pa

    columns = {"ts": pa.array(ts_us(features)).cast(pa.timestamp("us", tz="UTC"))}
    columns |= {name: pa.array(array(features, name), from_pandas=True) for name in FLOATS}
    columns[CODES] = pa.array(_codes(features))
    columns |= {feature.name: _own_column(array(features, feature.name), feature) for feature in own}
    return pa.table(columns)


def stored_values(features: Mapping[str, Any]) -> dict[str, pa.Array]:
    """Return features as `domain.features.compute.features_of_many` returns them in the columns above, without ts."""
    import numpy as np
    import pyarrow as pa

    columns = {name: pa.array(features[name], from_pandas=True) for name in FLOATS}
    codes = np.zeros(len(features[FLOATS[0]]), "int32")
    for feature in CODED:
        of_it = features[feature.name]
        place = np.where(of_it[1], 0, of_it[0].view("int8") + 1) if isinstance(of_it, tuple) else of_it + 1
        codes |= place.astype("int32") << shift_of(feature)
    return {**columns, CODES: pa.array(codes)}


def decoded(codes: np.ndarray, feature: Feature) -> np.ndarray:
    """Return a boolean or label of each code as int8: -1 for null, else 0 or 1, or the label's place in the list."""
    found: np.ndarray = ((codes >> shift_of(feature)) & MASK).astype("int8") - 1
    return found


def extra_of(features: pa.Table, *, binary: bool = True) -> pa.Array | None:
    """Return the own features as JSON documents, null for a row without any value; None where none is declared.

    With `binary` they are in the form that COPY takes for jsonb: a version byte, and the text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own = [name for name in features.column_names if name not in STORED]
    if not own:
        return None
    pieces: list[Any] = []
    empty = pa.repeat(pa.scalar(True), features.num_rows)
    for name in own:
        column = features[name].combine_chunks()
        pieces += [f'{"," if pieces else ""}"{name}":', pc.fill_null(_json(column), "null")]
        empty = pc.and_(empty, pc.is_null(column))
    document = pc.binary_join_element_wise("\x01{" if binary else "{", *pieces, "}", "")
    kind = pa.binary() if binary else pa.string()
    return pc.if_else(empty, pa.scalar(None, kind), document.cast(kind))


def _codes(features: pd.DataFrame) -> np.ndarray:
    import numpy as np

    codes = np.zeros(len(features), "int32")
    for feature in CODED:
        codes |= _places(array(features, feature.name), feature).astype("int32") << shift_of(feature)
    return codes


def _places(values: Any, feature: Feature) -> np.ndarray:
    """Return 0 for null, else 1 and up: for false and true, or for the labels in their order."""
    import numpy as np
    import pandas as pd

    if isinstance(values, pd.Categorical):
        if list(values.categories) == list(feature.labels):
            return np.asarray(values.codes) + 1
        values = values.astype(object)
    if feature.labels:
        return pd.Categorical(values, categories=list(feature.labels)).codes + 1
    plain = pd.array(values, dtype="boolean")
    return np.where(plain.isna(), 0, plain.fillna(False).to_numpy(dtype="int8") + 1)


def _own_column(values: Any, feature: Feature) -> pa.Array:
    import pandas as pd
    import pyarrow as pa

    types = {"float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
    if isinstance(values, pd.Categorical) and feature.labels:  # Arrow's own conversion takes five times as long
        codes = values.codes
        return pa.array(feature.labels, pa.string()).take(pa.array(codes, mask=codes < 0))
    return pa.array(values, from_pandas=True).cast(types[feature.dtype])


def _json(column: pa.Array) -> pa.Array:
    """Return each value as JSON, null where there is none; floats in the fewest digits that restore them."""
    import orjson
    import pyarrow as pa

    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    coded = column.dictionary_encode()
    words = pa.array([orjson.dumps(word).decode() for word in coded.dictionary.to_pylist()], pa.string())
    return words.take(coded.indices)
