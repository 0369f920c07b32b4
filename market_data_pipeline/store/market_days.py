"""The whole-market answers of recent days in PostgreSQL (`market_days`), for the symbols that were followed then."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.bars import VALUES

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.store.copy import StoreConnection

Values = tuple[float, ...]  # in the order of `domain.bars.VALUES`, NaN for what the vendor did not send
_KEEP_DAYS: Final = 14  # longer than any day is provisional
_NOTHING: Final[Values] = (nan,) * len(VALUES)


class Unsettled(NamedTuple):
    """A session day whose day bar of a symbol is not final."""

    symbol: str
    session_date: date
    status: str | None  # None, as the two below, when the day was never fetched
    rows: int | None
    fetched_at: datetime | None
    doubted_at: datetime | None = None
    reason: str | None = None


class StoredDay(NamedTuple):
    """One whole-market answer: when it was requested, and the values of each followed symbol, None without a row."""

    fetched_at: datetime
    values: dict[str, Values | None]


def unsettled_days(
    connection: StoreConnection, dates: Collection[date], symbols: Collection[str], *, most: int
) -> dict[str, list[Unsettled]]:
    """Return the days among `dates` whose day bars are not final, by symbol of a US equity.

    Args:
        connection: a connection.
        dates: session dates that a 1d series should hold.
        symbols: those to look at besides every followed US equity.
        most: symbols with more such days are left out.
    """
    rows = connection.rows(
        """
        with candidates as (
            select symbol from market_data.symbols where active and asset_class = 'us_equity'
            union
            select symbol from unnest(%(symbols)s::text[]) as symbol
        ),

        unsettled as (
            select
                candidates.symbol, days.session_date, known.status, known.rows, known.fetched_at, known.doubted_at,
                known.reason, count(*) over (partition by candidates.symbol) as days
            from candidates
            cross join unnest(%(dates)s::date[]) as days (session_date)
            left join market_data.coverage as known
                on
                    known.symbol = candidates.symbol
                    and known.timeframe = '1d'
                    and known.session_date = days.session_date
            where
                known.status is null
                or known.status not in ('complete', 'empty_confirmed') and (known.status <> 'clamped' or known.rows = 0)
        )

        select symbol, session_date, status, rows, fetched_at, doubted_at, reason
        from unsettled
        where days <= %(most)s
        order by symbol, session_date
        """,
        {"dates": list(dates), "symbols": list(symbols), "most": most},
    )
    found: dict[str, list[Unsettled]] = {}
    for row in rows:
        found.setdefault(row["symbol"], []).append(Unsettled(**row))
    return found


def read_market_days(connection: StoreConnection, dates: Collection[date]) -> dict[date, StoredDay]:
    """Return the stored answer of each of `dates` that has one."""
    rows = connection.rows(
        """
        select session_date, symbol, fetched_at, open, high, low, close, volume, vwap, trades::float8 as trades
        from market_data.market_days
        where session_date = any(%(dates)s::date[])
        """,
        {"dates": list(dates)},
    )
    found: dict[date, StoredDay] = {}
    for row in rows:
        stored = found.setdefault(row["session_date"], StoredDay(row["fetched_at"], {}))
        absent = row["close"] is None
        values = None if absent else tuple(nan if row[name] is None else row[name] for name in VALUES)
        stored.values[row["symbol"]] = values
    return found


def listed_symbols(connection: StoreConnection) -> dict[str, bool | None]:
    """Return, for each symbol, whether all stored answers name it (True), none (False), or some (None)."""
    rows = connection.rows(
        """
        select symbol, case count(close) when count(*) then true when 0 then false end as listed
        from market_data.market_days
        group by symbol
        """
    )
    return {row["symbol"]: row["listed"] for row in rows}


def write_market_day(connection: StoreConnection, day: date, market: pd.DataFrame, now: datetime) -> StoredDay:
    """Store the answer for `day` that was requested at `now`, in place of an earlier one, and return what was stored.

    Only the followed US equities are kept; days more than two weeks before `day` are deleted.

    Args:
        connection: a transaction; the caller commits.
        day: the session's date.
        market: a bar frame with a column `symbol`, at most one row each.
        now: when it was requested, aware UTC.
    """
    followed = connection.rows(
        "select symbol from market_data.symbols where active and asset_class = 'us_equity' order by symbol"
    )
    symbols: list[str] = [row["symbol"] for row in followed]
    ours = market[market["symbol"].isin(symbols)]
    published: dict[str, Values] = {
        symbol: tuple(values)
        for symbol, *values in zip(ours["symbol"], *(ours[name].tolist() for name in VALUES), strict=True)
    }
    stored = StoredDay(now, {symbol: published.get(symbol) for symbol in symbols})
    if not symbols:
        return stored
    rows = [values or _NOTHING for values in stored.values.values()]
    columns = {name: [row[at] for row in rows] for at, name in enumerate(VALUES)}
    connection.execute(
        """
        delete from market_data.market_days
        where session_date = %(day)s::date or session_date < %(day)s::date - %(keep)s::int
        """,
        {"day": day, "keep": _KEEP_DAYS},
    )
    connection.execute(
        """
        insert into market_data.market_days (
            session_date, symbol, fetched_at, open, high, low, close, volume, vwap, trades
        )
        select
            %(day)s, bar.symbol, %(now)s, nullif(bar.open, 'NaN'), nullif(bar.high, 'NaN'), nullif(bar.low, 'NaN'),
            nullif(bar.close, 'NaN'), nullif(bar.volume, 'NaN'), nullif(bar.vwap, 'NaN'), nullif(bar.trades, 'NaN')
        from unnest(
            %(symbols)s::text[], %(open)s::float8[], %(high)s::float8[], %(low)s::float8[], %(close)s::float8[],
            %(volume)s::float8[], %(vwap)s::float8[], %(trades)s::float8[]
        ) as bar (symbol, open, high, low, close, volume, vwap, trades)
        """,
        {"day": day, "now": now, "symbols": symbols, **columns},
    )
    return stored
