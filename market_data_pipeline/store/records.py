"""Records in PostgreSQL: a bar with its features is one row of `market_data.records`, under the number of its series.

Add here: what writes records. Keep out: what reads them (`bars`, `features`, `many_series`, `series_rows`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.bars import PRICES, VALUES, array, ts_us
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.feature_values import CODES, FLOATS, extra_of, stored_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Rows that one statement updates: their values take 2 MB.
_PIECE: Final = 1 << 14
# From so many rows on, what is packed of a series is removed at once: each row would look for it otherwise, for 10 us.
_MANY: Final = 1000


def series_id(connection: StoreConnection, series: Series) -> int:
    """Return the number of a series in `market_data.records`; it gets one if it has none.

    Raises:
        ConfigurationError: the bars of this database are still being moved by `market-data migrate`.
    """
    known = connection.series_ids.get(series)
    if known is None:
        statement: LiteralString = "select market_data.series_id(%(symbol)s, %(timeframe)s) as id"
        known = connection.series_ids[series] = connection.rows(statement, series._asdict())[0]["id"]
    return int(known)


def series_ids(connection: StoreConnection, series: Sequence[Series]) -> list[int]:
    """Return the numbers of several series, as `series_id` does."""
    if missing := [each for each in series if each not in connection.series_ids]:
        rows = connection.rows(
            """
            select wanted.at, market_data.series_id(wanted.symbol, wanted.timeframe) as id
            from unnest(%(symbols)s::text[], %(timeframes)s::text[]) with ordinality as wanted (symbol, timeframe, at)
            """,
            {"symbols": [each.symbol for each in missing], "timeframes": [str(each.timeframe) for each in missing]},
        )
        connection.series_ids |= {missing[row["at"] - 1]: row["id"] for row in rows}
    return [connection.series_ids[each] for each in series]


def append_records(
    connection: StoreConnection, series: Series, bars: pd.DataFrame, features: pa.Table | None, now: datetime
) -> None:
    """Store bars that are not stored yet, with their features.

    Args:
        connection: the transaction.
        series: whose bars.
        bars: a bar frame.
        features: their features, row by row, as `feature_values.feature_table` returns them; None for bars without any.
        now: becomes `ingested_at` and `features_computed_at`.
    """
    import numpy as np
    import pyarrow as pa

    rows = len(bars)
    if not rows:
        return
    starts = ts_us(bars)
    ensure_partitions(connection, series.timeframe, int(starts[0]), int(starts[-1]))
    unpack_many(connection, series, rows)
    number = np.full(rows, series_id(connection, series), "int32")
    columns = _bar_columns(number, starts, {name: array(bars, name) for name in VALUES}, now)
    if features is not None:
        columns |= {name: features[name] for name in (*FLOATS, CODES)}
        columns["features_after"] = pa.array(np.zeros(rows, "int32"))
        if (extra := extra_of(features)) is not None:
            columns["extra"] = extra
    connection.copy(f"records_{series.timeframe}", pa.table(columns))


def append_many(
    connection: StoreConnection,
    timeframe: Timeframe,
    numbers: np.ndarray,
    starts: np.ndarray,
    values: Mapping[str, np.ndarray],
    features: Mapping[str, Any],
    now: datetime,
) -> None:
    """Store bars of several series of one timeframe, none of which are stored, with their 17 features.

    Args:
        connection: the transaction.
        timeframe: of the series.
        numbers: of each bar, the number of its series, int32.
        starts: int64 microseconds since 1970 UTC.
        values: one float64 array for each of `domain.bars.VALUES`.
        features: as `domain.features.compute.features_of_many` returns them.
        now: becomes `ingested_at` and `features_computed_at`.
    """
    import numpy as np
    import pyarrow as pa

    ensure_partitions(connection, timeframe, int(starts.min()), int(starts.max()))
    columns = _bar_columns(numbers, starts, values, now) | stored_values(features)
    columns["features_after"] = pa.array(np.zeros(len(starts), "int32"))
    connection.copy(f"records_{timeframe}", pa.table(columns))


def _bar_columns(
    numbers: np.ndarray, starts: np.ndarray, values: Mapping[str, np.ndarray], now: datetime
) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    trades = values["trades"]
    absent = np.isnan(trades)
    return {
        "series": pa.array(numbers),
        "ts": pa.array(starts).cast(instant),
        **{name: pa.array(values[name]) for name in PRICES},
        **{name: pa.array(values[name], from_pandas=True) for name in ("volume", "vwap")},
        "trades": pa.array(np.where(absent, 0, trades).astype("int32"), mask=absent),
        "ingested_at": pa.repeat(pa.scalar(now, type=instant), len(starts)),
    }


def update_features(connection: StoreConnection, series: Series, features: pa.Table, now: datetime) -> None:
    """Replace the features of stored bars.

    Args:
        connection: the transaction.
        series: whose bars.
        features: as `feature_values.feature_table` returns them; every row's bar is stored.
        now: becomes `features_computed_at`, rounded up to whole seconds after `ingested_at`.
    """
    number = series_id(connection, series)
    unpack_many(connection, series, features.num_rows)
    for begin in range(0, features.num_rows, _PIECE):
        piece = features.slice(begin, _PIECE)
        extra = extra_of(piece, binary=False)
        starts = piece["ts"].cast("int64").to_numpy()
        connection.execute(
            _update(series.timeframe),
            {
                "series": number,
                "now": now,
                "ts": starts.astype("datetime64[us]"),
                "first": _EPOCH + timedelta(microseconds=int(starts[0])),
                "last": _EPOCH + timedelta(microseconds=int(starts[-1])),
                "codes": piece[CODES].to_numpy(),
                "extra": None if extra is None else extra.to_pylist(),
                **{name: _floats(piece[name]) for name in FLOATS},
            },
        )


def unpack_many(connection: StoreConnection, series: Series, rows: int) -> None:
    """Remove what is packed of a series before many rows of it change in this transaction."""
    if rows >= _MANY:
        connection.execute(
            "select market_data.unpack_series(%(series)s::int)::text", {"series": series_id(connection, series)}
        )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """Return the values as float64, NaN for null."""
    found: Any = column.to_numpy()
    return found.astype("float64", copy=False)  # type: ignore[no-any-return]


def _update(timeframe: Timeframe) -> LiteralString:
    assigned = ", ".join(f"{name} = nullif(new.{name}, 'NaN')" for name in FLOATS)
    arrays = ", ".join(f"%({name})s::float8[]" for name in FLOATS)
    return f"""
        update market_data.records_{timeframe} as r
        set
            {assigned},
            codes = new.codes,
            extra = new.extra::jsonb,
            features_after = ceil(extract(epoch from %(now)s::timestamptz - r.ingested_at))
        from unnest(
            %(ts)s::timestamptz[], %(codes)s::int4[], coalesce(%(extra)s::text[], '{{}}'), {arrays}
        ) as new (ts, codes, extra, {", ".join(FLOATS)})
        where r.series = %(series)s and r.ts = new.ts and r.ts between %(first)s and %(last)s
    """  # noqa: S608 - names of columns and partitions


def ensure_partitions(connection: StoreConnection, timeframe: Timeframe, first_us: int, last_us: int) -> None:
    """Make the partitions for bars that start from `first_us` to `last_us`, microseconds, where there are none."""
    first, last = (_EPOCH + timedelta(microseconds=us) for us in (first_us, last_us))
    # The coarsest partition that there is spans a month, or a year: what lies in a month that is known needs no look.
    wanted = {(timeframe, year, month) for year, month in _months(first, last)}
    if wanted <= connection.partitions:
        return
    connection.execute(
        "select market_data.make_partitions(%(timeframe)s, %(first)s::timestamptz, %(last)s::timestamptz)::text",
        {"timeframe": str(timeframe), "first": first, "last": last},
    )
    connection.partitions |= wanted


def _months(first: datetime, last: datetime) -> list[tuple[int, int]]:
    return [divmod(month, 12) for month in range(first.year * 12 + first.month - 1, last.year * 12 + last.month)]
