"""Which symbols no longer trade, and which markets the vendor has no bars of: questions about all followed symbols.

Keep out: when one series counts as silent (domain.life, ingest.coverage) and how late each is (freshness).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import AssetClass, Timeframe

if TYPE_CHECKING:
    from datetime import date

# A market counts as silent from two symbols on: a single one says nothing about the others.
_FEWEST: Final = 2

# A silent series was asked for after its first missing bar was due, which is longer ago than an RPO. Any bar that
# starts at the last of those instants or later shows that the market trades.
_SILENT_MARKETS: Final = sa.text("""
    with series as (
        select
            s.asset_class, s.symbol, t.last_ts, t.next_due_at,
            t.last_error is null
            and t.verified_at >= t.next_due_at
            and t.next_due_at < market_data.clock() - min(o.rpo) over (partition by s.asset_class) as is_silent
        from market_data.symbols as s
        inner join unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as o (tier, rpo) on o.tier = s.tier
        inner join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = :timeframe
        where s.active and t.life in ('trading', 'silent') and t.features_computed_at is not null
    ),
    silent as (
        select asset_class, count(*) as symbols, max(next_due_at) as due_at
        from series
        where is_silent
        group by asset_class
    )
    select m.asset_class, m.symbols, max(a.last_ts) as last_ts
    from silent as m
    inner join series as a on a.asset_class = m.asset_class
    where m.symbols >= :fewest
    group by m.asset_class, m.symbols, m.due_at
    having max(a.last_ts) < m.due_at
""")

_ANYONE_TRADES: Final = sa.text("""
    select exists (
        select from market_data.symbols as s
        left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = :timeframe
        where s.active and s.asset_class = :asset_class and coalesce(t.life, 'trading') in ('trading', 'silent')
    )
""")

_DAYS_WITHOUT_BARS: Final = sa.text("""
    select c.session_date, max(c.fetched_at) as asked_at
    from market_data.coverage as c
    inner join market_data.symbols as s on s.symbol = c.symbol and s.active and s.asset_class = :asset_class
    where c.timeframe = :timeframe and c.session_date >= :since and c.session_date < :today
    group by c.session_date
    having max(c.rows) = 0
    order by c.session_date
""")

_LIFE_CHANGES: Final = sa.text("""
    select s.symbol, coalesce(t.life, 'trading') as life, t.life_since, a.detail as alerted
    from market_data.symbols as s
    left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = :timeframe
    left join market_data.open_alerts as a on a.kind = 'life' and a.subject = s.symbol
    where
        s.active
        and s.security is null -- nobody who follows a security that has ended needs to be told
        and case when t.life in ('halted', 'delisted', 'unknown') then t.life end is distinct from a.detail
    order by s.symbol
""")


class SilentMarket(NamedTuple):
    """A market of which the vendor has had no bar of any symbol for longer than an RPO."""

    asset_class: AssetClass
    symbols: int  # that were asked for, all in vain
    last_ts: datetime  # start of the last bar of any of them, aware UTC


class LifeChange(NamedTuple):
    """A symbol whose life differs from what was alerted."""

    symbol: str
    life: Life
    since: datetime | None
    alerted: Life | None


def silent_markets(connection: sa.Connection) -> dict[AssetClass, SilentMarket]:
    """Return the markets of which the vendor sends no bars at all."""
    values = {
        "tiers": [tier.value for tier in TIER_OBJECTIVES],
        "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
        "timeframe": str(Timeframe.M5),
        "fewest": _FEWEST,
    }
    found = [
        SilentMarket(AssetClass(row.asset_class), row.symbols, row.last_ts.astimezone(UTC))
        for row in connection.execute(_SILENT_MARKETS, values)
    ]
    return {market.asset_class: market for market in found}


def anyone_trades(connection: sa.Connection, asset_class: AssetClass) -> bool:
    """Return whether bars of any followed symbol of the asset class are expected."""
    values = {"timeframe": str(Timeframe.M5), "asset_class": str(asset_class)}
    return bool(connection.execute(_ANYONE_TRADES, values).scalar_one())


def days_without_bars(
    connection: sa.Connection, asset_class: AssetClass, since: date, today: date
) -> dict[date, datetime]:
    """Return the session days in [since, today) of which no followed symbol of an asset class has a bar.

    With each comes when the vendor last answered about it, aware.
    """
    values = {"asset_class": str(asset_class), "timeframe": str(Timeframe.M5), "since": since, "today": today}
    return {row.session_date: row.asked_at for row in connection.execute(_DAYS_WITHOUT_BARS, values)}


def life_changes(connection: sa.Connection) -> list[LifeChange]:
    """Return the symbols that have ceased to trade, or trade again, since the last alert; a symbol's 5m bars decide."""
    return [
        LifeChange(row.symbol, Life(row.life), row.life_since, None if row.alerted is None else Life(row.alerted))
        for row in connection.execute(_LIFE_CHANGES, {"timeframe": str(Timeframe.M5)})
    ]
