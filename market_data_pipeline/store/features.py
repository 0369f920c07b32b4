"""Features in PostgreSQL: read, and replace the rows that changed.

Add here: statements on `features`. Keep out: computing them (domain.features).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.store.bars import partition

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.bulk import Bulk


def feature_table(features: pd.DataFrame) -> pa.Table:
    """Return a frame of `domain.features.compute_features` as Arrow: `ts` and the 17 columns, null where NaN or NA."""
    import pyarrow as pa

    from market_data_pipeline.domain.features import FEATURES

    ts = pa.array(features["ts"].to_numpy(dtype="datetime64[us]").view("int64")).cast(pa.timestamp("us", tz="UTC"))
    types = {"float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
    columns = {"ts": ts}
    for feature in FEATURES:
        array = pa.array(features[feature.name], from_pandas=True)
        columns[feature.name] = array.cast(types[feature.dtype])
    return pa.table(columns)


def read_features(bulk: Bulk, series: Series, start: datetime) -> pa.Table:
    """Return the stored features with `ts` at or after `start`, ascending: `ts` and the 17 columns."""
    return bulk.arrow(
        """
        select
            ts, log_return, return_1h, return_1d, volatility_20, volatility_50, atr, rolling_volume_20, volume_ratio,
            hh, hl, lh, ll, trend_direction, structure_label, volatility_regime, trend_regime, compression_regime
        from market_data.features
        where symbol = $1 and timeframe = $2 and ts >= $3
        order by ts
        """,
        *(series.symbol, str(series.timeframe), start),
    )


def changed_rows(stored: pa.Table, computed: pa.Table) -> np.ndarray:
    """Return a mask over `computed`: True where the row is not stored exactly so."""
    import numpy as np
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
        both_null = pc.and_(pc.is_null(new), pc.is_null(old))
        changed |= ~pc.or_(equal, both_null).to_numpy()
    return changed


def append_features(bulk: Bulk, series: Series, features: pa.Table, now: datetime) -> None:
    """Store feature rows that are not held yet."""
    import pyarrow as pa

    rows = features.num_rows
    if not rows:
        return
    table = (
        features.add_column(0, "symbol", pa.repeat(pa.scalar(series.symbol), rows))
        .add_column(1, "timeframe", pa.repeat(pa.scalar(str(series.timeframe)), rows))
        .append_column("features_computed_at", pa.repeat(pa.scalar(now, type=pa.timestamp("us", tz="UTC")), rows))
    )
    bulk.copy(partition("features", series.timeframe), table)


def remove_features(bulk: Bulk, series: Series, ts: list[datetime]) -> None:
    """Take out the rows at `ts`: they are about to be stored anew, or their bars are gone."""
    if ts:
        bulk.execute(
            "delete from market_data.features where symbol = $1 and timeframe = $2 and ts = any($3)",
            *(series.symbol, str(series.timeframe), ts),
        )
