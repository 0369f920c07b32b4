"""How well the tiers' RPOs were kept: the share of time that each series was within its RPO.

A series is outside while its staleness exceeds its tier's RPO, so a closed market, which makes nothing due, counts as
within, and so does a series of which no bars are expected. A series that was never computed is due from when its symbol
was followed. The periods outside come from
`ingest_log`, where each execution records the one that it ended, and from `series_state` for the open one.
"""

from __future__ import annotations

import math
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.models import Attainment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from market_data_pipeline.domain.series import Series

# A day shows today's trouble, thirty days whether it is the exception.
WINDOWS: Final[Mapping[str, timedelta]] = MappingProxyType({"24h": timedelta(hours=24), "30d": timedelta(days=30)})

_ATTAINMENT: Final = sa.text("""
    with promised as (
        select
            s.symbol, frames.timeframe, s.tier, rpos.rpo,
            case
                when state.life in ('halted', 'delisted', 'unknown') or s.security is not null then market_data.clock()
                else state.next_due_at
            end as next_due_at,
            coalesce(s.followed_since, s.added_at) as followed_since
        from market_data.symbols as s
        inner join unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as rpos (tier, rpo) on rpos.tier = s.tier
        cross join unnest(cast(:timeframes as text[])) as frames (timeframe)
        left join market_data.series_state as state on state.symbol = s.symbol and state.timeframe = frames.timeframe
        where s.active and (cast(:symbol as text) is null or s.symbol = :symbol)
    ),
    outside as (
        select l.symbol, l.timeframe, l.outside_rpo_since as since, l.finished_at as until
        from market_data.ingest_log as l
        where
            l.outside_rpo_since is not null
            and l.finished_at > market_data.clock() - cast(:longest as interval)
            and l.finished_at <= market_data.clock()
            and not exists (
                select from market_data.symbols as past where past.symbol = l.symbol and past.security is not null
            )
            and (cast(:symbol as text) is null or l.symbol = :symbol)
        union all
        select
            p.symbol, p.timeframe,
            market_data.outside_rpo_since(p.symbol, p.timeframe, p.next_due_at, p.rpo, market_data.clock()),
            market_data.clock()
        from promised as p
        where coalesce(p.next_due_at + p.rpo, '-infinity') < market_data.clock()
    ),
    windows as (
        select
            p.*, w.name, greatest(p.followed_since, market_data.clock() - w.length) as begins_at
        from promised as p
        cross join unnest(cast(:names as text[]), cast(:lengths as interval[])) as w (name, length)
        where p.followed_since < market_data.clock()
    ),
    periods as (
        select symbol, timeframe, unnest(range_agg(tstzrange(since, until))) as period
        from outside
        where since < until
        group by symbol, timeframe
    ),
    lost as (
        select w.symbol, w.timeframe, w.name, sum(upper(o.period) - greatest(lower(o.period), w.begins_at)) as length
        from periods as o
        inner join windows as w
            on w.symbol = o.symbol and w.timeframe = o.timeframe and w.begins_at < upper(o.period)
        group by w.symbol, w.timeframe, w.name
    ),
    by_series as (
        select
            w.tier, w.name, w.symbol, w.timeframe,
            extract(epoch from market_data.clock() - w.begins_at) as seconds,
            extract(epoch from coalesce(l.length, interval '0')) as lost
        from windows as w
        left join lost as l on l.symbol = w.symbol and l.timeframe = w.timeframe and l.name = w.name
        where cast(:timeframe as text) is null or w.timeframe = :timeframe
    )
    select
        tier, name,
        count(*) as series,
        count(*) filter (where lost > 0) as series_outside,
        cast(1 - sum(lost) / sum(seconds) as double precision) as share,
        cast(min(1 - lost / seconds) as double precision) as worst_share,
        (array_agg(symbol || '|' || timeframe order by lost / seconds desc, symbol))[1] as worst_series
    from by_series
    group by tier, name
""")


def rpo_attainment(connection: sa.Connection, series: Series | None = None) -> list[Attainment]:
    """Return each tier's attainment in each of `WINDOWS`, in the order of the tiers; only that of `series` if given.

    A window ends now and begins no earlier than when the symbol was followed. A tier's share is taken over the time of
    all its series together; a tier without symbols is left out.
    """
    rows = connection.execute(
        _ATTAINMENT,
        {
            "tiers": [str(tier) for tier in TIER_OBJECTIVES],
            "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
            "timeframes": [str(timeframe) for timeframe in Timeframe],
            "names": list(WINDOWS),
            "lengths": list(WINDOWS.values()),
            "longest": max(WINDOWS.values()),
            "symbol": None if series is None else series.symbol,
            "timeframe": None if series is None else str(series.timeframe),
        },
    )
    found = {(row.tier, row.name): row for row in rows}
    return [
        Attainment(
            tier=tier,
            window=name,
            rpo_seconds=objective.rpo.total_seconds(),
            share=row.share,
            series=row.series,
            series_outside=row.series_outside,
            worst_series=row.worst_series,
            worst_share=row.worst_share,
        )
        for tier, objective in TIER_OBJECTIVES.items()
        for name in WINDOWS
        if (row := found.get((str(tier), name))) is not None
    ]


def percent(share: float) -> str:
    """Return a share between 0 and 1 as text, rounded down so that only an RPO kept throughout reads as 100 %."""
    return "100 %" if share >= 1 else f"{math.floor(share * 10_000) / 100:.2f} %"
