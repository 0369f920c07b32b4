"""Bars in PostgreSQL: read them, and remove corrected ones with the old values kept in `bar_revisions`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, LiteralString

from market_data_pipeline.domain.bars import VALUES, bar_frame
from market_data_pipeline.store.records import series_id, unpack_many

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

_KINDS: Final = {"ts": "instant", **dict.fromkeys(VALUES, "float")}
# About a year of 5m bars; the server's memory for their features is 25 MB.
_PIECE: Final = 1 << 16
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def read_bars(
    connection: StoreConnection, series: Series, start: datetime, end: datetime, *, as_of: datetime | None = None
) -> pd.DataFrame:
    """Return the stored raw bars with `ts` in [start, end) as a bar frame, as they are or as they were at `as_of`."""
    parameters: dict[str, object] = {"start": start, "end": end}
    if as_of is None:
        relation, series_is = _records(series)
        parameters["series"] = series_id(connection, series)
    else:
        relation, series_is = "market_data.bars_as_of(%(symbol)s, %(timeframe)s, %(as_of)s)", "true"
        parameters |= {**series._asdict(), "as_of": as_of}
    columns = read_pieces(
        connection,
        _KINDS,
        f"""
        select ts, open, high, low, close, volume, vwap, trades
        from {relation}
        where {series_is} and ts >= %(start)s and ts < %(end)s
        order by ts
        """,  # noqa: S608 - one of two relations
        parameters,
    )
    return _frame(columns)


def read_bars_before(connection: StoreConnection, series: Series, before: datetime, count: int) -> pd.DataFrame:
    """Return the last `count` stored raw bars with `ts` before `before` as a bar frame, ascending."""
    relation, series_is = _records(series)
    columns = connection.columns(
        _KINDS,
        f"""
        select * from (
            select ts, open, high, low, close, volume, vwap, trades
            from {relation}
            where {series_is} and ts < %(before)s
            order by ts desc
            limit %(count)s
        ) as newest
        order by ts
        """,  # noqa: S608 - a partition
        {"series": series_id(connection, series), "before": before, "count": count},
    )
    return _frame(columns)


def read_pieces(
    connection: StoreConnection, kinds: Mapping[str, str], statement: LiteralString, parameters: Mapping[str, object]
) -> dict[str, Any]:
    """Return a query's columns as `StoreConnection.columns` does, in pieces, of which the server holds one at a time.

    Args:
        connection: the transaction.
        kinds: the columns; the first is `ts`.
        statement: a query with ascending `ts` from `%(start)s` on.
        parameters: its parameters, `start` among them.
    """
    import numpy as np

    pieces = []
    while True:
        piece = connection.columns(kinds, f"{statement} limit {_PIECE}", parameters)
        pieces.append(piece)
        if len(piece["ts"]) < _PIECE:
            break
        parameters = {**parameters, "start": _EPOCH + timedelta(microseconds=int(piece["ts"][-1]) + 1)}
    if len(pieces) == 1:
        return pieces[0]
    return {
        name: list(chain.from_iterable(piece[name] for piece in pieces))
        if kind == "text"
        else np.concatenate([piece[name] for piece in pieces])
        for name, kind in kinds.items()
    }


def supersede_bars(connection: StoreConnection, series: Series, ts: list[datetime], now: datetime, run_id: str) -> None:
    """Remove the records at `ts`; their bars are kept in `bar_revisions`, with the run that superseded them."""
    if not ts:
        return
    unpack_many(connection, series, len(ts))
    connection.execute(  # with the owner's rights: the pipeline's own do not include deleting a bar
        """
        select market_data.supersede_bars(
            %(symbol)s, %(timeframe)s, %(ts)s::timestamptz[], %(now)s::timestamptz, %(run_id)s
        )::text
        """,
        {**series._asdict(), "ts": ts, "now": now, "run_id": run_id},
    )


def extent(connection: StoreConnection, series: Series) -> dict[str, Any]:
    """Return `first_ts`, `last_ts` (None when nothing is stored) and `bar_count` of a series."""
    relation, series_is = _records(series)
    return connection.rows(
        f"select min(ts) as first_ts, max(ts) as last_ts, count(*) as bar_count from {relation} where {series_is}",  # noqa: S608 - a partition
        {"series": series_id(connection, series)},
    )[0]


def _records(series: Series) -> tuple[LiteralString, LiteralString]:
    """Return where the bars of a series are stored, and the condition for them, with its number as `series`."""
    return f"market_data.records_{series.timeframe}", "series = %(series)s"


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    return bar_frame(columns["ts"], {name: columns[name] for name in VALUES})
