"""The Arrow table that every source of bars and features answers a selection with, and its forms for users.

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


def table(selection: Selection, rows: Rows) -> pa.Table:
    """Return the rows as Arrow, with the selection's columns."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for label, known in (("symbol", selection.symbols), ("timeframe", selection.timeframes)):
        if label in selection.labelled:
            columns[label] = _labels([getattr(series, label) for series in rows.series], known, rows.at)
    columns["ts"] = pa.array(rows.ts).cast(pa.timestamp("us", tz="UTC"))
    features = {feature.name: feature for feature in selection.features}
    for name in selection.columns:
        columns[name] = _array(name, rows.values[name], features.get(name))
    return pa.table(columns)


def _labels(of_series: Sequence[str], known: Sequence[str], at: np.ndarray) -> Any:
    import numpy as np
    import pyarrow as pa

    position = {label: place for place, label in enumerate(known)}
    codes = np.array([position[label] for label in of_series], "int32")
    return pa.DictionaryArray.from_arrays(pa.array(codes[at]), pa.array([str(label) for label in known], pa.string()))


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
    with np.errstate(invalid="ignore"):
        complete = not np.isnan(values.sum())  # a tenth of the time of looking at each
    if complete:
        return pa.array(values.astype("int64") if name == "trades" else values)
    absent = np.isnan(values)
    return pa.array(np.where(absent, 0, values).astype("int64") if name == "trades" else values, mask=absent)


def to_pandas(found: pa.Table) -> pd.DataFrame:
    """Return a frame indexed by `ts`: NaN for a number that is null, `Int64`, `boolean` and `category` elsewhere."""
    import pandas as pd
    import pyarrow as pa

    types = {pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}
    frame: pd.DataFrame = found.drop_columns(["ts"]).to_pandas(types_mapper=types.get, split_blocks=True)
    # `set_index` of a frame with many blocks takes a third of the time of a small frame.
    frame.index = pd.DatetimeIndex(pd.DatetimeTZDtype("us", "UTC").__from_arrow__(found["ts"]), copy=False, name="ts")
    return frame


def to_polars(found: pa.Table) -> pl.DataFrame:
    """Return a frame of Polars.

    Raises:
        UsageError: Polars is not installed.
    """
    try:
        import polars
    except ModuleNotFoundError:
        raise UsageError("as_polars=True needs Polars: run `pip install 'market-data-pipeline[polars]'`.") from None
    frame = polars.from_arrow(found)
    assert isinstance(frame, polars.DataFrame)  # noqa: S101 - a table is no Series
    return frame
