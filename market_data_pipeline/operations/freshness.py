"""How fresh the series of the active universe are: each one, counted by tier and state, and the worst of each state.

Every row is a series that ought to exist, computed or not. PostgreSQL counts and ranks, so that only what is shown of a
large universe is loaded.
Keep out: what a report is made of (reports), and the question of the sensor and the checks (orchestration.queries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.due import freshness
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import Tier, Timeframe

if TYPE_CHECKING:
    from market_data_pipeline.operations.report_documents import SeriesFreshness

# The clock is read once: as a function of each row it would cost as much as the rest. `behind_since` is null for what
# was never computed and never in the future, so that its order is that of falling staleness.
_STANDING: Final = """
with instant as materialized (select market_data.clock() as now),
standing as (
    select
        s.symbol, s.tier, frames.timeframe, frames.place, t.consecutive_failures,
        case when t.features_computed_at is not null then
            least(coalesce(t.next_due_at, t.features_computed_at), (select now from instant))
        end as behind_since
    from market_data.symbols as s
    cross join unnest(cast(:timeframes as text [])) with ordinality as frames (timeframe, place)
    left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = frames.timeframe
    where s.active
),
series as materialized (
    select
        *,
        case
            when behind_since is null then 'MISSING'
            when behind_since >= (select now from instant) - cast(:fresh as interval) then 'FRESH'
            when behind_since >= (select now from instant) - cast(:aging as interval) then 'AGING'
            else 'STALE'
        end as status
    from standing
)"""

# A text of its own: with `symbol is null or …`, the plan kept for a prepared statement took twice as long.
_STANDING_OF_SYMBOL: Final = _STANDING.replace("where s.active", "where s.active and s.symbol = :symbol")

_COUNTS: Final = """
select
    tier, status, count(*) as series, count(*) filter (where consecutive_failures > 0) as failing,
    extract(epoch from (select now from instant) - min(behind_since))::double precision as worst_seconds
from series
group by tier, status
order by tier, status
"""

_WORST: Final = """,
counted as (select status, count(*) as in_state from series group by status)
select
    state.status, state.in_state, w.symbol, w.timeframe, w.tier, t.verified_at, t.next_due_at, t.features_computed_at,
    t.last_ts, coalesce(t.consecutive_failures, 0) as consecutive_failures, t.last_error_class, t.last_error,
    extract(epoch from instant.now - w.behind_since)::double precision as staleness_seconds,
    extract(epoch from greatest(instant.now - t.features_computed_at, interval '0'))::double precision as age_seconds
from instant
cross join counted as state
cross join lateral (
    select * from series where series.status = state.status
    order by behind_since nulls first, symbol, place
    limit cast(:limit as bigint)
) as w
left join market_data.series_state as t on t.symbol = w.symbol and t.timeframe = w.timeframe
order by w.behind_since nulls first, w.symbol, w.place
"""


class Count(NamedTuple):
    """The series of one tier in one state; a state that no series is in has none."""

    tier: Tier
    status: Freshness
    series: int
    failing: int  # whose last execution failed
    worst_seconds: float | None  # staleness of the stalest; None for what was never computed


class InState(NamedTuple):
    """All series of a state counted, and the worst of them in order."""

    series: int
    worst: list[SeriesFreshness]


def freshness_counts(connection: sa.Connection) -> list[Count]:
    """Return how many series of the active universe are in which state, by tier."""
    rows = connection.execute(sa.text(_STANDING + _COUNTS), _values())
    return [Count(Tier(r.tier), Freshness[r.status], r.series, r.failing, r.worst_seconds) for r in rows]


def series_freshness(connection: sa.Connection, symbol: str | None = None) -> list[SeriesFreshness]:
    """Return every series of the active universe, or of one symbol: never computed first, then by falling staleness."""
    values = {**_values(), "limit": None}
    if symbol is None:
        return [_series(row) for row in connection.execute(sa.text(_STANDING + _WORST), values)]
    rows = connection.execute(sa.text(_STANDING_OF_SYMBOL + _WORST), {**values, "symbol": symbol})
    return [_series(row) for row in rows]


def worst_series(connection: sa.Connection, limit: int | None) -> dict[Freshness, InState]:
    """Return how many series each state has and the worst `limit` of them, at least 1 (None: all).

    One statement, since looking at every series is most of what counting and ranking cost.
    """
    rows = connection.execute(sa.text(_STANDING + _WORST), {**_values(), "limit": limit}).all()
    counts = {row.status: row.in_state for row in rows}
    worst: dict[str, list[SeriesFreshness]] = {status: [] for status in counts}
    for row in rows:
        worst[row.status].append(_series(row))
    return {state: InState(counts.get(state.name, 0), worst.get(state.name, [])) for state in Freshness}


def _values() -> dict[str, Any]:
    return {
        "timeframes": [timeframe.value for timeframe in Timeframe],
        "fresh": FRESHNESS[Freshness.FRESH].up_to,
        "aging": FRESHNESS[Freshness.AGING].up_to,
    }


def _series(row: sa.Row[Any]) -> SeriesFreshness:
    staleness = row.staleness_seconds
    return {
        "symbol": row.symbol,
        "timeframe": row.timeframe,
        "tier": row.tier,
        "status": freshness(staleness).name,  # type: ignore[typeddict-item]  # the enum's names are these four
        "staleness_seconds": staleness,
        "age_seconds": row.age_seconds,
        "within_rpo": staleness is not None and staleness <= TIER_OBJECTIVES[Tier(row.tier)].rpo.total_seconds(),
        "verified_at": row.verified_at,
        "next_due_at": row.next_due_at,
        "features_computed_at": row.features_computed_at,
        "last_ts": row.last_ts,
        "consecutive_failures": row.consecutive_failures,
        "last_error_class": row.last_error_class,
        "last_error": row.last_error,
    }
