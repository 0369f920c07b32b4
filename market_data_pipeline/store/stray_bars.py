"""Bars that the vendor sent although they lie in no session: kept apart from the series, and never computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.bars import VALUES, array

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

# Per series, the newest: weeks of nights of 5-minute bars. A vendor that serves every night must not fill the disk.
KEPT: Final = 1_000

_WRITE: Final = """
    insert into market_data.stray_bars (
        symbol, timeframe, ts, open, high, low, close, volume, vwap, trades, seen_at
    )
    select
        %(symbol)s, %(timeframe)s, bar.ts, bar.open, bar.high, bar.low, bar.close,
        nullif(bar.volume, 'NaN'), nullif(bar.vwap, 'NaN'), nullif(bar.trades, 'NaN'), %(now)s
    from unnest(
        %(ts)s::timestamptz[], %(open)s::float8[], %(high)s::float8[], %(low)s::float8[], %(close)s::float8[],
        %(volume)s::float8[], %(vwap)s::float8[], %(trades)s::float8[]
    ) as bar (ts, open, high, low, close, volume, vwap, trades)
    on conflict (symbol, timeframe, ts) do update set
        open = excluded.open,
        high = excluded.high,
        low = excluded.low,
        close = excluded.close,
        volume = excluded.volume,
        vwap = excluded.vwap,
        trades = excluded.trades,
        seen_at = excluded.seen_at
"""
_TRIM: Final = """
    delete from market_data.stray_bars
    where symbol = %(symbol)s and timeframe = %(timeframe)s and ts < (
        select ts from market_data.stray_bars
        where symbol = %(symbol)s and timeframe = %(timeframe)s
        order by ts desc
        offset %(kept)s - 1 limit 1
    )
"""


def write_stray_bars(connection: StoreConnection, series: Series, bars: pd.DataFrame | None, now: datetime) -> None:
    """Keep the newest `KEPT` bars of a series that lie in no session.

    Args:
        connection: a transaction; the caller commits.
        series: a fetched one.
        bars: a bar frame of what the last answer had; None for nothing.
        now: when that was, aware UTC.
    """
    if bars is None or not len(bars):
        return
    newest = bars[-KEPT:]
    columns = {name: array(newest, name).tolist() for name in VALUES}
    starts = newest["ts"].dt.to_pydatetime().tolist()
    connection.execute(_WRITE, {**series._asdict(), **columns, "ts": starts, "now": now})
    connection.execute(_TRIM, {**series._asdict(), "kept": KEPT})
