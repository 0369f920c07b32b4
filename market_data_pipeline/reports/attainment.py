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

# What `market_data.outside_rpo_since` says of one series is `greatest(outside_from, last.finished_at)` here: called for
# each, it takes a twentieth of a millisecond, which is seconds when a whole market is late.
# The clock is read once, and time is added up by symbol: of each series only the time that it was outside is looked at.
_ATTAINMENT: Final = sa.text("""
    with instant as materialized (select market_data.clock() as now),
    frames as (
        select timeframe from unnest(cast(:timeframes as text[])) as f (timeframe)
        where cast(:timeframe as text) is null or timeframe = :timeframe
    ),
    followed as materialized (
        select
            s.symbol, s.tier, rpos.rpo, coalesce(s.followed_since, s.added_at) as followed_since,
            s.security is not null as past
        from market_data.symbols as s
        inner join unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as rpos (tier, rpo) on rpos.tier = s.tier
        where s.active and (cast(:symbol as text) is null or s.symbol = :symbol)
    ),
    lacking as (
        select f.symbol, f.rpo, f.followed_since, h.timeframes
        from followed as f
        left join (
            select t.symbol, array_agg(t.timeframe) as timeframes, count(*) as held from market_data.series_state as t
            where cast(:symbol as text) is null or t.symbol = :symbol
            group by t.symbol
        ) as h on h.symbol = f.symbol
        where not f.past and h.held is distinct from cardinality(cast(:timeframes as text[]))
    ),
    behind as (
        select
            f.symbol, t.timeframe, greatest(f.followed_since, t.next_due_at) + f.rpo as outside_from, instant.now
        from market_data.series_state as t
        cross join instant
        inner join followed as f on f.symbol = t.symbol
        where
            (t.next_due_at < instant.now or t.next_due_at is null)
            and t.life not in ('halted', 'delisted', 'unknown')
            and not f.past
        union all
        select l.symbol, frames.timeframe, l.followed_since + l.rpo, instant.now
        from lacking as l
        cross join instant
        inner join frames on l.timeframes is null or frames.timeframe <> all(l.timeframes)
    ),
    outside as (
        select l.symbol, l.timeframe, l.outside_rpo_since as since, l.finished_at as until
        from market_data.ingest_log as l
        cross join instant
        where
            l.outside_rpo_since is not null
            and l.finished_at > instant.now - cast(:longest as interval)
            and l.finished_at <= instant.now
            and (cast(:symbol as text) is null or l.symbol = :symbol)
            and not exists (select from followed as past where past.symbol = l.symbol and past.past)
        union all
        select b.symbol, b.timeframe, greatest(b.outside_from, last.finished_at), b.now
        from behind as b
        left join lateral (
            select l.finished_at from market_data.ingest_log as l
            where l.symbol = b.symbol and l.timeframe = b.timeframe
            order by l.id desc limit 1
        ) as last on true
        where b.outside_from < b.now
    ),
    windows as (
        select w.name, instant.now - w.length as begins_at, instant.now
        from unnest(cast(:names as text[]), cast(:lengths as interval[])) as w (name, length)
        cross join instant
    ),
    periods as (
        select o.symbol, o.timeframe, unnest(range_agg(tstzrange(o.since, o.until))) as period
        from outside as o
        inner join frames on frames.timeframe = o.timeframe
        where o.since < o.until
        group by o.symbol, o.timeframe
    ),
    lost as materialized (
        select
            f.tier, w.name, o.symbol, o.timeframe,
            cast(extract(epoch from w.now - b.begins_at) as double precision) as seconds,
            cast(
                extract(epoch from sum(upper(o.period) - greatest(lower(o.period), b.begins_at))) as double precision
            ) as lost
        from periods as o
        inner join followed as f on f.symbol = o.symbol
        cross join windows as w
        cross join lateral (select greatest(f.followed_since, w.begins_at) as begins_at) as b
        where f.followed_since < w.now and b.begins_at < upper(o.period)
        group by f.tier, w.name, o.symbol, o.timeframe, b.begins_at, w.now
    ),
    -- Most symbols were followed at the same few instants.
    whole as (
        select
            g.tier, w.name, cast(sum(g.symbols) * f.frames as bigint) as series,
            cast(
                sum(g.symbols * extract(epoch from w.now - greatest(g.followed_since, w.begins_at))) * f.frames
                as double precision
            ) as seconds,
            min(g.symbol) || '|' || min(f.timeframe) as first_series
        from (
            select tier, followed_since, count(*) as symbols, min(symbol) as symbol from followed
            group by tier, followed_since
        ) as g
        cross join windows as w
        cross join (select count(*) as frames, min(timeframe) as timeframe from frames) as f
        where g.followed_since < w.now
        group by g.tier, w.name, f.frames
    ),
    worst as (
        select m.*, n.series
        from (
            select tier, name, count(*) as series_outside, sum(lost) as lost, max(lost / seconds) as share
            from lost
            group by tier, name
        ) as m
        cross join lateral (
            select min(l.symbol || '|' || l.timeframe) as series from lost as l
            where l.tier = m.tier and l.name = m.name and l.lost / l.seconds = m.share
        ) as n
    )
    select
        w.tier, w.name, w.series,
        coalesce(o.series_outside, 0) as series_outside,
        1 - coalesce(o.lost, 0) / w.seconds as share,
        1 - coalesce(o.share, 0) as worst_share,
        coalesce(o.series, w.first_series) as worst_series
    from whole as w
    left join worst as o on o.tier = w.tier and o.name = w.name
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
