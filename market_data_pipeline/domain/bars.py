"""The bar frame: the one table type that travels from the vendor's answer to the database.

A bar frame holds the bars of ONE series and has exactly the columns of `COLUMNS`:

| column | dtype | meaning |
|---|---|---|
| `ts` | datetime64[us, UTC] | the bar's START; strictly increasing |
| `open`, `high`, `low`, `close` | float64 | prices, in the instrument's currency, raw unless said otherwise |
| `volume` | float64 | shares or units traded, or quotes of a currency pair; NaN for an index |
| `vwap` | float64 | volume-weighted average price, NaN where the vendor sent none |
| `trades` | float64 | number of trades, NaN where the vendor sent none |

Its index is a RangeIndex. Code that makes a frame guarantees all of this; code that receives one relies on it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

PRICES: Final = ("open", "high", "low", "close")
VALUES: Final = (*PRICES, "volume", "vwap", "trades")
COLUMNS: Final = ("ts", *VALUES)
TS_DTYPE: Final = "datetime64[us, UTC]"


def bar_frame(ts_us: np.ndarray, values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return a bar frame over the given columns.

    Args:
        ts_us: int64 microseconds since 1970 UTC, strictly increasing.
        values: one float64 array for each name in `VALUES`, as long as `ts_us`.
    """
    import pandas as pd

    labels, dtype = _header()
    # The public constructor takes ten times as long, and a tick creates hundreds of frames of a few bars each.
    return pd.DataFrame._from_arrays(  # type: ignore[attr-defined,no-any-return]
        [pd.array(ts_us, dtype=dtype), *(values[name] for name in VALUES)],
        columns=labels,
        index=pd.RangeIndex(len(ts_us)),
        verify_integrity=False,
    )


@cache
def _header() -> tuple[Any, Any]:
    import pandas as pd

    return pd.Index(COLUMNS), pd.api.types.pandas_dtype(TS_DTYPE)


def empty() -> pd.DataFrame:
    """Return a bar frame without rows."""
    import numpy as np

    return bar_frame(np.empty(0, dtype="int64"), {name: np.empty(0) for name in VALUES})


def ts_us(bars: pd.DataFrame) -> np.ndarray:
    """Return the bars' starts as int64 microseconds since 1970 UTC."""
    starts: np.ndarray = array(bars, "ts").as_unit("us").asi8
    return starts


def array(frame: pd.DataFrame, name: str) -> Any:
    """Return a column's array without a copy: NumPy's for values, pandas' own for `ts`, booleans and labels.

    `frame[name]` creates a Series, which takes ten times as long: a fifth of a tick's time.
    """
    return frame._get_column_array(frame.columns.get_loc(name))  # type: ignore[operator]
