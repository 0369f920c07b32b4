"""What the vendor announces about trading days (`announcements`), and since when it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from market_data_pipeline.domain.announcements import Announcement, DayStatus

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.domain.series import AssetClass
    from market_data_pipeline.store.copy import StoreConnection

Origin = Literal["upcoming", "now"]


def read_announcements(
    connection: StoreConnection, asset_class: AssetClass, since: date, now: datetime
) -> dict[date, Announcement]:
    """Return what the vendor said by `now` about days from `since` on; a closing precedes an early close."""
    rows = connection.rows(
        """
        select session_date, status, name, closes_at
        from market_data.announcements
        where
            asset_class = %(asset_class)s and session_date >= %(since)s
            and first_seen_at <= %(now)s and (withdrawn_at is null or withdrawn_at > %(now)s)
        order by session_date, status desc
        """,
        {"asset_class": str(asset_class), "since": since, "now": now},
    )
    return {row["session_date"]: Announcement(**{**row, "status": DayStatus(row["status"])}) for row in rows}


def write_announcements(
    connection: StoreConnection,
    asset_class: AssetClass,
    origin: Origin,
    announced: Collection[Announcement],
    since: date,
    now: datetime,
) -> None:
    """Make what is in force of one origin, for days from `since` on, equal to `announced`; the caller commits."""
    days = {
        "asset_class": str(asset_class),
        "origin": origin,
        "since": since,
        "now": now,
        "dates": [each.session_date for each in announced],
        "statuses": [str(each.status) for each in announced],
        "names": [each.name for each in announced],
        "closes": [each.closes_at for each in announced],
    }
    said = """
        unnest(%(dates)s::date[], %(statuses)s::text[], %(names)s::text[], %(closes)s::timestamptz[])
        as said (session_date, status, name, closes_at)
    """
    connection.execute(
        f"""
        update market_data.announcements as held set withdrawn_at = %(now)s
        where
            held.asset_class = %(asset_class)s and held.source = %(origin)s and held.session_date >= %(since)s
            and held.withdrawn_at is null
            and not exists (
                select from {said}
                where
                    said.session_date = held.session_date and said.status = held.status
                    and said.closes_at is not distinct from held.closes_at
            )
        """,  # noqa: S608 - our own text
        days,
    )
    connection.execute(
        f"""
        insert into market_data.announcements
            (asset_class, session_date, source, status, name, closes_at, first_seen_at)
        select %(asset_class)s, said.session_date, %(origin)s, said.status, said.name, said.closes_at, %(now)s
        from {said}
        where not exists (
            select from market_data.announcements as held
            where
                held.asset_class = %(asset_class)s and held.source = %(origin)s
                and held.session_date = said.session_date and held.withdrawn_at is null
        )
        on conflict do nothing
        """,  # noqa: S608 - our own text
        days,
    )


def was_silent(connection: StoreConnection, asset_class: AssetClass, day: date, since: datetime) -> bool:
    """Return whether 5-minute bars of a day were requested at `since` or later, and no followed symbol has any."""
    rows = connection.rows(
        """
        select max(c.fetched_at) >= %(since)s and max(c.rows) = 0 as silent
        from market_data.coverage as c
        inner join market_data.symbols as s on s.symbol = c.symbol and s.active
        where s.asset_class = %(asset_class)s and c.timeframe = '5m' and c.session_date = %(day)s
        """,
        {"asset_class": str(asset_class), "day": day, "since": since},
    )
    return bool(rows[0]["silent"])
