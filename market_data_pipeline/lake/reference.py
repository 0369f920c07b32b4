"""The small tables of the lake.

`splits` and `dividends` adjust bars, `tickers` has the former names of what is followed, `series` what is held of each.
They are written whole, when their content has changed.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.calendar import calendar_for, from_us
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.lake.state import read_state
from market_data_pipeline.lake.tables import (
    DESCRIPTIONS,
    DIVIDENDS,
    SERIES,
    SPLITS,
    TICKERS,
    Kind,
    LakeTable,
    SyncedTable,
)
from market_data_pipeline.store.dividends import dividend_history
from market_data_pipeline.store.reference import split_history
from market_data_pipeline.store.securities import former_tickers

if TYPE_CHECKING:
    import pyarrow as pa

    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.snapshot import Snapshot


def sync_splits(lake: Lake, now: Snapshot) -> SyncedTable:
    """Write `splits` if it differs from the database's."""
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    new_york = calendar_for(AssetClass.US_EQUITY)
    rows = split_history(now.connection)
    for row in rows:
        row["in_force_from"] = new_york.midnight(row["execution_date"])
    schema = pa.schema(
        [
            pa.field("symbol", pa.string(), False),
            pa.field("execution_date", pa.date32(), False),
            pa.field("in_force_from", instant, False),
            pa.field("split_from", pa.float64(), False),
            pa.field("split_to", pa.float64(), False),
            pa.field("factor", pa.float64(), False),
            pa.field("counts", pa.bool_(), False),
            pa.field("first_seen_at", instant, False),
            pa.field("superseded_at", instant),
        ]
    )
    return _written(lake, SPLITS, pa.Table.from_pylist(rows, schema))


def sync_dividends(lake: Lake, now: Snapshot) -> SyncedTable:
    """Write `dividends` if it differs from the database's."""
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    new_york = calendar_for(AssetClass.US_EQUITY)
    rows = dividend_history(now.connection)
    for row in rows:
        row["in_force_from"] = new_york.midnight(row["ex_date"])
    schema = pa.schema(
        [
            pa.field("symbol", pa.string(), False),
            pa.field("ex_date", pa.date32(), False),
            pa.field("in_force_from", instant, False),
            pa.field("amount", pa.float64(), False),
            pa.field("currency", pa.string(), False),
            pa.field("declaration_date", pa.date32()),
            pa.field("record_date", pa.date32()),
            pa.field("pay_date", pa.date32()),
            pa.field("frequency", pa.int64()),
            pa.field("type", pa.string()),
            pa.field("first_seen_at", instant, False),
            pa.field("superseded_at", instant),
        ]
    )
    return _written(lake, DIVIDENDS, pa.Table.from_pylist(rows, schema))


def sync_tickers(lake: Lake, now: Snapshot) -> SyncedTable:
    """Write `tickers` if it differs from the database's."""
    import pyarrow as pa

    rows = [{"ticker": ticker, "symbol": symbol} for ticker, symbol in sorted(former_tickers(now.connection).items())]
    schema = pa.schema([pa.field("ticker", pa.string(), False), pa.field("symbol", pa.string(), False)])
    return _written(lake, TICKERS, pa.Table.from_pylist(rows, schema))


def sync_series(lake: Lake, now: Snapshot) -> SyncedTable:
    """Write `series` if what the tables of bars hold has changed."""
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    rows: list[dict[str, Any]] = []
    for timeframe in Timeframe:
        state = read_state(lake.open(LakeTable(Kind.BARS, timeframe).name))
        for symbol, held in state.series.items() if state else ():
            rows.append(
                {
                    "symbol": symbol,
                    "timeframe": str(timeframe),
                    "revision": held.revision,
                    "held_until": from_us(held.until_us),
                    "log_id": held.position.log_id,
                }
            )
    schema = pa.schema(
        [
            pa.field("symbol", pa.string(), False),
            pa.field("timeframe", pa.string(), False),
            pa.field("revision", pa.int64(), False),
            pa.field("held_until", instant, False),
            pa.field("log_id", pa.int64(), False),
        ]
    )
    return _written(lake, SERIES, pa.Table.from_pylist(rows, schema))


def _written(lake: Lake, name: str, rows: pa.Table) -> SyncedTable:
    from deltalake import write_deltalake

    began = perf_counter()
    delta = lake.open(name)
    changed = delta is None or not _same(delta.to_pyarrow_table(), rows)
    if changed:
        if lake.local is not None:
            (lake.local / name).mkdir(parents=True, exist_ok=True)
        with lake.translated():
            write_deltalake(
                lake.table_url(name),
                rows,
                mode="overwrite",
                name=name,
                description=DESCRIPTIONS[name],
                storage_options=dict(lake.options) or None,
            )
        delta = lake.open(name)
    assert delta is not None  # noqa: S101 - it was written if it was not there
    files = delta.get_add_actions(flatten=True)
    size = sum(files.column("size_bytes").to_pylist())
    return SyncedTable(
        name,
        delta.version(),
        0,
        len(rows) if changed else 0,
        len(rows),
        files.num_rows,
        size,
        None,
        (),
        perf_counter() - began,
    )


def _same(held: pa.Table, rows: pa.Table) -> bool:
    return bool(held.select(rows.column_names).cast(rows.schema).equals(rows)) if len(held) == len(rows) else False
