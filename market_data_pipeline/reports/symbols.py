"""Which symbols are followed, and what is held of each: for programs that begin with a list of symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.models import FollowedSymbol, HeldSeries, SymbolList

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.series import Tier

# A page is cut before its series are read.
_FOLLOWED: Final = sa.text("""
    with page as (
        select s.symbol, s.tier, s.asset_class, s.added_at from market_data.symbols as s
        where
            s.active
            and s.symbol > :after
            and s.tier = coalesce(cast(:tier as text), s.tier)
        order by s.symbol
        limit :limit
    )

    select p.symbol, p.tier, p.asset_class, p.added_at, t.timeframe, t.first_ts, t.last_ts, t.bar_count, t.life
    from page as p
    left join market_data.series_state as t on t.symbol = p.symbol and t.bar_count > 0
    order by p.symbol
""")


def followed_symbols(
    connection: sa.Connection, now: datetime, *, after: str = "", tier: Tier | None = None, limit: int
) -> SymbolList:
    """Return the first `limit` followed symbols that come after `after`, in alphabetical order, at `now`."""
    rows = connection.execute(_FOLLOWED, {"after": after, "tier": tier and tier.value, "limit": limit + 1}).all()
    symbols: dict[str, dict[str, Any]] = {}
    for row in rows:
        names = ("symbol", "tier", "asset_class", "added_at")
        found = symbols.setdefault(row.symbol, {**{name: getattr(row, name) for name in names}, "series": []})
        if row.timeframe is not None:
            found["series"].append(
                HeldSeries(
                    timeframe=row.timeframe,
                    first_ts=row.first_ts,
                    last_ts=row.last_ts,
                    bar_count=row.bar_count,
                    life=row.life,
                )
            )
    order = list(Timeframe)
    for found in symbols.values():
        found["series"].sort(key=lambda one: order.index(Timeframe(one.timeframe)))
    page = [FollowedSymbol(**found) for found in symbols.values()][:limit]
    return SymbolList(
        timestamp=now,
        symbols_returned=len(page),
        truncated=len(symbols) > limit,
        next=None,
        symbols=page,
    )
