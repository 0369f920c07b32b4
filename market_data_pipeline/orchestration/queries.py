"""The questions that sensors and checks ask the market database.

Add here: a question about many series at once. Keep out: anything that writes a series (store), and Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.due import freshness
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import Series, Tier, Timeframe

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
