"""What the vendor's reference data said of a ticker (`listings`), and the days on which a market did not trade."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.life import Listing

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.domain.series import AssetClass, Timeframe
    from market_data_pipeline.store.copy import StoreConnection


def read_listing(connection: StoreConnection, symbol: str) -> Listing | None:
    """Return what the vendor said of a symbol when it was last asked, None when it never was."""
    rows = connection.rows(
        """
        select asked_at, known, active, list_date, delisted_at, name
        from market_data.listings
        where symbol = %(symbol)s
        """,
        {"symbol": symbol},
    )
    return Listing(**rows[0]) if rows else None


def write_listing(connection: StoreConnection, symbol: str, listing: Listing) -> None:
    """Store what the vendor says of a symbol, in the caller's transaction."""
    connection.execute(
        """
        insert into market_data.listings (symbol, asked_at, known, active, list_date, delisted_at, name)
        values (%(symbol)s, %(asked_at)s, %(known)s, %(active)s, %(list_date)s, %(delisted_at)s, %(name)s)
        on conflict (symbol) do update set
            asked_at = excluded.asked_at,
            known = excluded.known,
            active = excluded.active,
            list_date = excluded.list_date,
            delisted_at = excluded.delisted_at,
            name = excluded.name
        """,
        {"symbol": symbol, **asdict(listing)},
    )


def forget_listing(connection: StoreConnection, symbol: str) -> None:
    """Forget what the vendor said of a symbol, in the caller's transaction."""
    connection.execute("delete from market_data.listings where symbol = %(symbol)s", {"symbol": symbol})


def others_ended(connection: StoreConnection, asset_class: AssetClass, since: datetime) -> bool:
    """Return whether the vendor, asked at `since` or later, said of any followed symbol that it is not listed."""
    rows = connection.rows(
        """
        select exists (
            select from market_data.listings as l
            inner join market_data.symbols as s on s.symbol = l.symbol and s.active
            where
                s.asset_class = %(asset_class)s and s.security is null
                and l.asked_at >= %(since)s and l.known is not null and not l.active
        ) as found
        """,
        {"asset_class": str(asset_class), "since": since},
    )
    return bool(rows[0]["found"])


def days_without_trades(
    connection: StoreConnection, asset_class: AssetClass, timeframe: Timeframe, days: Collection[date]
) -> dict[date, bool]:
    """Return those of `days` on which several followed symbols of an asset class were looked at and none has a bar.

    Such a day says nothing about one symbol. The value is whether it was looked at on or after a later day on which one
    of them traded: then it is the market that was closed, and not the vendor that has nothing.
    """
    rows = connection.rows(
        """
        select day, exists (
            select from market_data.symbols as s
            inner join market_data.coverage as c on c.symbol = s.symbol and c.session_date > day and c.rows > 0
            where
                s.active
                and s.asset_class = %(asset_class)s
                and c.session_date::timestamp at time zone %(zone)s <= (
                    select max(k.fetched_at) from market_data.symbols as f
                    inner join market_data.coverage as k
                        on k.symbol = f.symbol and k.timeframe = %(timeframe)s and k.session_date = day
                    where f.active and f.asset_class = %(asset_class)s
                )
        ) as was_closed
        from unnest(%(days)s::date[]) as day
        where not exists (
            select from market_data.symbols as s
            inner join market_data.coverage as c
                on c.symbol = s.symbol and c.timeframe = %(timeframe)s and c.session_date = day and c.rows > 0
            where s.active and s.asset_class = %(asset_class)s
        )
        and 2 <= (
            select count(*) from market_data.symbols as s
            inner join market_data.coverage as c
                on c.symbol = s.symbol and c.timeframe = %(timeframe)s and c.session_date = day
            where s.active and s.asset_class = %(asset_class)s
        )
        """,
        {
            "days": list(days),
            "timeframe": str(timeframe),
            "asset_class": str(asset_class),
            "zone": str(calendar_for(asset_class).tz),
        },
    )
    return {row["day"]: row["was_closed"] for row in rows}
