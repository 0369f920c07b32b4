"""The forms in which rows of bars and features are returned: Arrow tables, frames of pandas and of Polars.

Columns: `symbol` and `timeframe` where several were asked for (dictionaries), `ts` (microseconds, UTC), then the
selected ones. Numbers are float64 and `trades` int64, booleans are booleans, texts with labels dictionaries over all of
them; null where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from market_data_pipeline.domain.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reading.selection import Selection


class Rows(NamedTuple):
    """Rows as `store.many_series` returns them, and the series that `at` counts through."""

    series: Sequence[Series]
    at: np.ndarray
    ts: np.ndarray
    values: dict[str, Any]

    def part(self, first: int, end: int) -> Rows:
        """Return the rows from `first` to before `end`."""
        values = {name: each[first:end] for name, each in self.values.items()}
        return Rows(self.series, self.at[first:end], self.ts[first:end], values)


def table(selection: Selection, parts: Sequence[Rows]) -> pa.Table:
    """Return the rows of all parts, of which there is one, as Arrow, with the selection's columns."""
    import pyarrow as pa

    return pa.concat_tables([_table(selection, rows) for rows in parts])


def _table(selection: Selection, rows: Rows) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for label, known in _labels(selection).items():
        codes = pa.array(_label_codes(rows, label, known))
        columns[label] = pa.DictionaryArray.from_arrays(codes, pa.array(known, pa.string()))
    columns["ts"] = pa.array(rows.ts).cast(pa.timestamp("us", tz="UTC"))
    features = {feature.name: feature for feature in selection.features}
    for name in selection.columns:
        columns[name] = _array(name, rows.values[name], features.get(name))
    return pa.table(columns)


def _labels(selection: Selection) -> dict[str, list[str]]:
    """Return the columns that tell the series of a row, with their values."""
    known = {"symbol": selection.symbols, "timeframe": selection.timeframes}
    return {label: list(map(str, known[label])) for label in known if label in selection.labelled}


def _label_codes(rows: Rows, label: str, known: Sequence[str]) -> np.ndarray:
    import numpy as np

    position = {each: place for place, each in enumerate(known)}
    codes = [position[str(getattr(series, label))] for series in rows.series]
    if codes == list(range(len(codes))):
        return rows.at
    found: np.ndarray = np.array(codes, "int32")[rows.at]
    return found


def _array(name: str, values: Any, feature: Feature | None) -> Any:
    import numpy as np
    import pyarrow as pa

    if feature is not None and feature.labels:
        codes = pa.array(values, mask=values < 0)
        return pa.DictionaryArray.from_arrays(codes, pa.array(feature.labels, pa.string()))
    if feature is not None and feature.dtype == "bool":
        return pa.array(values == 1, mask=values < 0)
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if _is_complete(values):
        return pa.array(values.astype("int64") if name == "trades" else values)
    absent = np.isnan(values)
    return pa.array(np.where(absent, 0, values).astype("int64") if name == "trades" else values, mask=absent)


def _is_complete(numbers: np.ndarray) -> bool:
    import numpy as np

    with np.errstate(invalid="ignore"):
        return not np.isnan(numbers.sum())  # a tenth of the time of looking at each


def frame(selection: Selection, parts: Sequence[Rows]) -> pd.DataFrame:
    """Return what `to_pandas` makes of the table of the rows, in a third of the time: null is NaN all the way."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for label, known in _labels(selection).items():
        codes = _joined([_label_codes(rows, label, known) for rows in parts])
        columns[label] = pd.Categorical.from_codes(codes, pd.Index(known), validate=False)
    features = {feature.name: feature for feature in selection.features}
    for name in selection.columns:
        columns[name] = _column(name, _joined([rows.values[name] for rows in parts]), features.get(name))
    return pd.DataFrame(columns, index=_index(_joined([rows.ts for rows in parts])), copy=False)


def _column(name: str, values: Any, feature: Feature | None) -> Any:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    if feature is not None and feature.labels:
        return pd.Categorical.from_codes(values, pd.Index(feature.labels), validate=False)
    if feature is not None and feature.dtype == "bool":
        return pd.arrays.BooleanArray(values == 1, values < 0)
    if isinstance(values, list):
        return pa.table({name: pa.array(values, pa.string())}).to_pandas()[name].array
    if name != "trades":
        return values if values.flags.writeable else values.copy()
    absent = np.zeros(len(values), bool) if _is_complete(values) else np.isnan(values)
    return pd.arrays.IntegerArray(np.where(absent, 0, values).astype("int64"), absent)


def _joined(parts: list[Any]) -> Any:
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return [value for part in parts for value in part] if isinstance(parts[0], list) else np.concatenate(parts)


def _index(ts: np.ndarray) -> pd.DatetimeIndex:
    import pandas as pd
    import pyarrow as pa

    instants = pa.array(ts).cast(pa.timestamp("us", tz="UTC"))
    return pd.DatetimeIndex(pd.DatetimeTZDtype("us", "UTC").__from_arrow__(instants), copy=False, name="ts")


def to_pandas(found: pa.Table) -> pd.DataFrame:
    """Return a frame indexed by `ts`: NaN for a number that is null, `Int64`, `boolean` and `category` elsewhere."""
    import pandas as pd
    import pyarrow as pa

    types = {pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}
    made: pd.DataFrame = found.drop_columns(["ts"]).to_pandas(types_mapper=types.get, split_blocks=True)
    # `set_index` of a frame with many blocks takes a third of the time of a small frame.
    made.index = pd.DatetimeIndex(pd.DatetimeTZDtype("us", "UTC").__from_arrow__(found["ts"]), copy=False, name="ts")
    return made


def to_polars(found: pa.Table) -> pl.DataFrame:
    """Return a frame of Polars.

    Raises:
        UsageError: Polars is not installed.
    """
    try:
        import polars
    except ModuleNotFoundError:
        raise UsageError("as_polars=True needs Polars: run `pip install 'market-data-pipeline[polars]'`.") from None
    made = polars.from_arrow(found)
    assert isinstance(made, polars.DataFrame)  # noqa: S101 - a table is no Series
    return made
