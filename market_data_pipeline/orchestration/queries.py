"""The questions that sensors and checks ask the market database.

Add here: a question about many series at once. Keep out: anything that writes a series (store), and Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Series, Tier, Timeframe

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

LATE_LISTED: Final = 200  # series beyond their RPO that one look lists per tier, worst first; the counts are exact


@dataclass(frozen=True, slots=True)
class LateSeries:
    """A series beyond its tier's RPO; instants are aware UTC, None where there is none."""

    series: Series
    staleness_seconds: float | None  # None: never computed
    last_ts: datetime | None
    next_due_at: datetime | None
    consecutive_failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class TierFreshness:
    """How a tier stands right now."""

    series: int  # all that it should hold
    late: int  # beyond the RPO, missing ones included
    missing: int  # never computed
    worst: tuple[LateSeries, ...]  # the first `LATE_LISTED` of the late ones, worst first


# A series that has never been computed has no due bar: it counts as later than every other. The cross join finds those
# without a row in series_state, too. All series are only counted, and only late ones put in order: with one in ten of
# 50,000 late that takes a third of the time of ranking them all. The clock is read once; as a function of each row it
# would cost as much as the rest.
_FRESHNESS: Final = """
with objective as (
    select o.tier, (select market_data.clock()) - o.rpo as late_before
    from unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as o(tier, rpo)
),
standing as materialized (
    select s.tier, s.symbol, t.timeframe, st.next_due_at, coalesce(st.next_due_at < o.late_before, true) as late
    from market_data.symbols as s
    join objective as o on o.tier = s.tier
    cross join unnest(cast(:timeframes as text[])) as t(timeframe)
    left join market_data.series_state as st on st.symbol = s.symbol and st.timeframe = t.timeframe
    where s.active
),
counted as (
    select
        tier, count(*) as series_count, count(*) filter (where late) as late_count,
        count(*) - count(next_due_at) as missing_count
    from standing group by tier
),
ranked as (
    select
        tier, symbol, timeframe,
        row_number() over (partition by tier order by next_due_at nulls first, symbol, timeframe) as position
    from standing where late
)
select
    c.*, r.symbol, r.timeframe, st.last_ts, st.next_due_at, st.last_error,
    coalesce(st.consecutive_failures, 0) as consecutive_failures,
    cast(extract(epoch from (select market_data.clock()) - st.next_due_at) as double precision) as staleness
from counted as c
left join ranked as r on r.tier = c.tier and r.position <= :listed
left join market_data.series_state as st on st.symbol = r.symbol and st.timeframe = r.timeframe
order by c.tier, r.position
"""


def tier_freshness(engine: Engine) -> dict[Tier, TierFreshness]:
    """Return how every tier stands against its RPO, at the database's `market_data.clock()`, in one query."""
    import sqlalchemy as sa

    values = {
        "tiers": [tier.value for tier in TIER_OBJECTIVES],
        "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
        "timeframes": [timeframe.value for timeframe in Timeframe],
        "listed": LATE_LISTED,
    }
    with engine.connect() as connection:
        rows = connection.execute(sa.text(_FRESHNESS), values).all()
    standing = dict.fromkeys(Tier, TierFreshness(0, 0, 0, ()))
    for tier in Tier:
        of_tier = [row for row in rows if row.tier == tier]
        if of_tier:
            first = of_tier[0]
            late = tuple(
                LateSeries(
                    Series(row.symbol, Timeframe(row.timeframe)),
                    row.staleness,
                    row.last_ts,
                    row.next_due_at,
                    row.consecutive_failures,
                    row.last_error,
                )
                for row in of_tier
                if row.symbol
            )
            standing[tier] = TierFreshness(first.series_count, first.late_count, first.missing_count, late)
    return standing
