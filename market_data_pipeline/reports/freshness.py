"""The questions that sensors and checks ask the market database.

Add here: a question about many series at once. Keep out: anything that writes a series (store), and Dagster.

How fresh the series of the active universe are: each one, counted by tier and state, and the worst of each state.

Every row is a series that ought to exist, computed or not. PostgreSQL counts and ranks, so that only what is shown of a
large universe is loaded.
Keep out: what a report is made of (reports), and the question of the sensor and the checks (orchestration.queries).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.freshness import freshness
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import Series, Tier, Timeframe
from market_data_pipeline.reports.models import SeriesFreshness

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine


LISTED: Final = 200  # series that one look lists per tier, worst first; the counts are exact


@dataclass(frozen=True, slots=True)
class LaggingSeries:
    """A series that is not fresh, or beyond its tier's RPO; instants are aware UTC, None where there is none."""

    series: Series
    status: Freshness
    late: bool  # beyond the tier's RPO, or never computed
    staleness_seconds: float | None  # None: never computed
    last_ts: datetime | None
    next_due_at: datetime | None
    consecutive_failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class TierFreshness:
    """How a tier stands right now; the counts are exact."""

    series: int = 0  # all that it should hold
    late: int = 0  # beyond the RPO, missing ones included
    aging: int = 0
    stale: int = 0
    missing: int = 0  # never computed
    untold: int = 0  # worth an alert that was not sent yet
    told_over: int = 0  # not worth their alert any more, which was not told yet
    worst: tuple[LaggingSeries, ...] = ()  # the first `LISTED` of those that lag, worst first

    @property
    def late_series(self) -> tuple[LaggingSeries, ...]:
        """Those of `worst` that are beyond the RPO."""
        return tuple(lagging for lagging in self.worst if lagging.late)


# A series that has never been computed has no due bar: it counts as later than every other, but nobody is alarmed by it
# before its symbol has been followed for the RPO. The cross join finds those without a row in series_state, too. The
# clock is read once: as a function of each row it would cost as much as the rest.
STANDING: Final = """
objective as (
    select o.tier, (select market_data.clock()) - o.rpo as late_before
    from unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as o(tier, rpo)
),
standing as materialized (
    select
        s.tier, s.symbol, t.timeframe, d.due,
        coalesce(d.due < o.late_before, true) as late,
        coalesce(d.due, s.followed_since, s.added_at) < o.late_before as alarming,
        a.subject is not null as told
    from market_data.symbols as s
    join objective as o on o.tier = s.tier
    cross join unnest(cast(:timeframes as text[])) as t(timeframe)
    left join market_data.series_state as st on st.symbol = s.symbol and st.timeframe = t.timeframe
    left join market_data.open_alerts as a on a.kind = 'series' and a.subject = s.symbol || '|' || t.timeframe
    cross join lateral (
        select case when st.features_computed_at is not null then coalesce(st.next_due_at, st.features_computed_at) end
    ) as d (due)
    where s.active
)
"""

# What `lagging` reads of a row of `standing` called r and its state called st.
DETAILS: Final = """
    r.symbol, r.timeframe, r.late, st.last_ts, st.next_due_at, st.verified_at, st.last_error_class, st.last_error,
    coalesce(st.consecutive_failures, 0) as consecutive_failures,
    case when r.due is not null then
        cast(extract(epoch from greatest((select market_data.clock()) - r.due, interval '0')) as double precision)
    end as staleness,
    exists (
        select from market_data.rate_limit_pauses where until > clock_timestamp()
        union all
        select from market_data.rate_limit_queue where expires_at > clock_timestamp()
    ) as waiting
"""

# All series are only counted, and only those that lag are put in order: with one in ten of 50,000 that takes a third of
# the time of ranking them all.
_FRESHNESS: Final = f"""
with {STANDING},
now_and_then as (
    select
        (select market_data.clock()) - cast(:fresh as interval) as aging_before,
        (select market_data.clock()) - cast(:aging as interval) as stale_before
),
counted as (
    select
        tier,
        count(*) as series_count,
        count(*) filter (where late) as late_count,
        count(*) filter (where due < n.aging_before and due >= n.stale_before) as aging_count,
        count(*) filter (where due < n.stale_before) as stale_count,
        count(*) - count(due) as missing_count,
        count(*) filter (where alarming and not told) as untold_count,
        count(*) filter (where told and not alarming) as told_over_count
    from standing cross join now_and_then as n
    group by tier
),
ranked as (
    select s.*, row_number() over (partition by tier order by due nulls first, symbol, timeframe) as place
    from standing as s cross join now_and_then as n
    where late or due < n.aging_before
)
select c.*, {DETAILS}
from counted as c
left join ranked as r on r.tier = c.tier and r.place <= :listed
left join market_data.series_state as st on st.symbol = r.symbol and st.timeframe = r.timeframe
order by c.tier, r.place
"""  # noqa: S608 - all parts are ours


def standing_values() -> dict[str, Any]:
    """Return the values of `STANDING`'s parameters."""
    return {
        "tiers": [tier.value for tier in TIER_OBJECTIVES],
        "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
        "timeframes": [timeframe.value for timeframe in Timeframe],
    }


def tier_freshness(engine: Engine) -> dict[Tier, TierFreshness]:
    """Return how every tier stands, at the database's `market_data.clock()`, in one query."""
    import sqlalchemy as sa

    values = standing_values() | {
        "fresh": FRESHNESS[Freshness.FRESH].up_to,
        "aging": FRESHNESS[Freshness.AGING].up_to,
        "listed": LISTED,
    }
    with engine.connect() as connection:
        rows = connection.execute(sa.text(_FRESHNESS), values).all()
    found: dict[Tier, TierFreshness] = dict.fromkeys(Tier, TierFreshness())
    for tier in Tier:
        if of_tier := [row for row in rows if row.tier == tier]:
            first = of_tier[0]
            found[tier] = TierFreshness(
                series=first.series_count,
                late=first.late_count,
                aging=first.aging_count,
                stale=first.stale_count,
                missing=first.missing_count,
                untold=first.untold_count,
                told_over=first.told_over_count,
                worst=tuple(lagging(row) for row in of_tier if row.symbol is not None),
            )
    return found


def lagging(row: Any) -> LaggingSeries:
    """Return a row with `DETAILS` as a value."""
    return LaggingSeries(
        series=Series(row.symbol, Timeframe(row.timeframe)),
        status=freshness(row.staleness),
        late=row.late,
        staleness_seconds=row.staleness,
        last_ts=row.last_ts,
        next_due_at=row.next_due_at,
        consecutive_failures=row.consecutive_failures,
        reason=_reason(row),
    )


def _reason(row: Any) -> str:
    """Return why a series lags, as far as its state tells."""
    if row.last_error is not None:
        times = f" ({row.consecutive_failures} times in a row)" if row.consecutive_failures > 1 else ""
        return f"{row.last_error_class}: {row.last_error}{times}"
    if row.staleness is None and row.verified_at is None:
        return "Never computed: " + (
            "it waits for the vendor's rate limit." if row.waiting else "no run has reached it."
        )
    asked = row.verified_at
    if asked is not None and (row.next_due_at is None or asked >= row.next_due_at):
        last = f" since {instant(row.last_ts)}" if row.last_ts else ""
        return f"No bars from the vendor{last}, asked at {instant(asked)}."
    since = f"Not refreshed since {instant(asked)}" if asked else "Not refreshed yet"
    return f"{since}: " + ("it waits for the vendor's rate limit." if row.waiting else "no run has reached it.")


def instant(value: datetime) -> str:
    """Return an instant as tables and sentences for people have it."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%MZ}"


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
    return SeriesFreshness(
        symbol=row.symbol,
        timeframe=row.timeframe,
        tier=row.tier,
        status=freshness(staleness).name,
        staleness_seconds=staleness,
        age_seconds=row.age_seconds,
        within_rpo=staleness is not None and staleness <= TIER_OBJECTIVES[Tier(row.tier)].rpo.total_seconds(),
        verified_at=row.verified_at,
        next_due_at=row.next_due_at,
        features_computed_at=row.features_computed_at,
        last_ts=row.last_ts,
        consecutive_failures=row.consecutive_failures,
        last_error_class=row.last_error_class,
        last_error=row.last_error,
    )
