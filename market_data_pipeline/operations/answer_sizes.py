"""How large the vendor's answers are, learned from those that came before.

A first backfill is planned as if somebody traded in every minute, which is true of liquid names; what is held then
tells how many pages a thinner one fills, and what its answers weighed. Keep out: what is asked for (plan).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.series import Timeframe, asset_class_of
from market_data_pipeline.domain.sessions import calendar_for, slot_count

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from market_data_pipeline.store.bulk import Bulk

_MEMORY: Final = timedelta(days=28)  # of bars, to tell how often a symbol trades
_SESSIONS: Final = 5  # fewer settled ones tell nothing
_LARGE_ANSWER: Final = 1_000  # bars; what stands around them weighs little then
_LARGE_ANSWERS: Final = 500  # looked at: a backfill of several hundred symbols


def bytes_per_bar(bulk: Bulk) -> dict[str, float]:
    """Return the bytes a bar of each symbol's last large answers, and of all of them under the empty name."""
    rows = bulk.rows(
        """
        select coalesce(symbol, '') as symbol, sum(bytes)::float8 / sum(rows_fetched) as bytes_per_bar
        from (
            select symbol, bytes, rows_fetched
            from market_data.ingest_log
            where timeframe = '5m' and rows_fetched >= $1::bigint and bytes > 0 and rate_limited = 0
            order by id desc
            limit $2::bigint
        ) as large
        group by grouping sets ((symbol), ())
        having sum(rows_fetched) > 0
        """,
        *(_LARGE_ANSWER, _LARGE_ANSWERS),
    )
    return {row["symbol"]: row["bytes_per_bar"] for row in rows}


def traded_parts(bulk: Bulk, symbols: Collection[str], now: datetime) -> dict[str, tuple[float, float]]:
    """Return the part of the minutes with a trade and of the 5m slots with a bar, of symbols that hold enough to tell.

    Of a 5m bar with n trades 5 * (1 - 0.8**n) minutes have one, when the trades fall anywhere in it alike.
    """
    if not symbols:
        return {}
    since = now - _MEMORY
    rows = bulk.rows(
        """
        with days as (
            select symbol, array_agg(session_date) as dates, sum(rows)::float8 as rows
            from market_data.coverage
            where timeframe = '5m' and symbol = any($1::text[]) and session_date >= $2::timestamptz::date
                and status in ('complete', 'empty_confirmed')
            group by symbol
        ),

        traded as (
            select symbol, avg(1 - power(0.8, least(coalesce(trades, 100), 100)))::float8 as minutes
            from market_data.bars
            where timeframe = '5m' and symbol = any($1::text[]) and ts >= $2
            group by symbol
        )

        select days.symbol, days.dates, days.rows, coalesce(traded.minutes, 1) as minutes
        from days left join traded on traded.symbol = days.symbol
        """,
        *(sorted(symbols), since),
    )
    traded = {}
    for row in rows:
        calendar = calendar_for(asset_class_of(row["symbol"]))
        sessions = [session for day in row["dates"] if (session := calendar.session_on(day)) is not None]
        if len(sessions) >= _SESSIONS:
            filled = row["rows"] / sum(slot_count(Timeframe.M5, session) for session in sessions)
            traded[row["symbol"]] = (filled * row["minutes"], filled)
    return traded
