"""How fresh the series of the active universe are now: the one SQL definition of it, and every query that uses it.

A series is MISSING while it was never computed; else its staleness is how long its next bar has been due, and the state
follows from the thresholds of `domain.objectives`. Its tier's RPO is kept while the staleness does not exceed it. A
series of which no bars are expected (`domain.life`) is never late, and counted apart. API, pages, command line,
metrics, checks, sensors and alerts all read these columns. Keep out: the share of time that a series was within its RPO
(attainment).
"""

# ruff: noqa: S608 - the statements are put together from constants of this module

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe
from market_data_pipeline.reports.models import SeriesByStatus, SeriesFreshness, StalenessReport, StalenessSummary
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Collection

NOT_EXPECTED: Final = "NOT_EXPECTED"  # where reports list series of which no bars are expected

LISTED: Final = 200  # series listed per tier, worst first; the counts are exact

# Every series that should exist, with a row in series_state or without. `behind_since` is null for what was never
# computed and never in the future, so that it sorts by falling staleness. A symbol that has just been followed has its
# RPO to be loaded: `alerting`, and with it `within_rpo`, waits for that as the attainment does; `late`, by which series
# are refreshed, does not. Of a delisted security, which is followed for its past, nothing is ever `alerting`. The clock
# is read once: read for each row, it would cost as much as the rest.
_EXPECTING: Final = "(" + ", ".join(f"'{life}'" for life in Life if life.expects_bars) + ")"
SERIES_CTE: Final = f"""
instant as materialized (
    select
        c.now, c.now - cast(:fresh as interval) as fresh_from, c.now - cast(:aging as interval) as aging_from
    from (select market_data.clock() as now) as c
),
objective as materialized (
    select o.tier, instant.now - o.rpo as late_before
    from unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as o (tier, rpo)
    cross join instant
),
due as (
    select
        s.symbol, s.tier, s.asset_class, f.timeframe, f.place, t.consecutive_failures, o.late_before,
        coalesce(s.followed_since, s.added_at) as followed_since, s.security is null as current,
        case when t.features_computed_at is not null then
            least(coalesce(t.next_due_at, t.features_computed_at), (select now from instant))
        end as behind_since,
        coalesce(t.life, '{Life.TRADING}') as life,
        t.life is null or t.life in {_EXPECTING} as expected
    from market_data.symbols as s
    inner join objective as o on o.tier = s.tier
    cross join unnest(cast(:timeframes as text[])) with ordinality as f (timeframe, place)
    left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = f.timeframe
    where s.active
    offset 0 -- computed once, not wherever it is read
),
series as materialized (
    select
        d.symbol, d.tier, d.asset_class, d.timeframe, d.place, d.consecutive_failures, d.behind_since, d.life,
        d.expected, v.status,
        case when d.expected then v.status else '{NOT_EXPECTED}' end as listed,
        d.expected and coalesce(d.behind_since < d.late_before, true) as late,
        d.expected and d.current and coalesce(d.behind_since, d.followed_since) < d.late_before as alerting
    from due as d
    cross join lateral (
        select case
            when d.behind_since is null then 'MISSING'
            when d.behind_since >= (select fresh_from from instant) then 'FRESH'
            when d.behind_since >= (select aging_from from instant) then 'AGING'
            else 'STALE'
        end as status
    ) as v
)"""

# A separate text: with `symbol is null or …`, the plan kept for a prepared statement took twice as long.
_SERIES_OF_SYMBOL: Final = SERIES_CTE.replace("where s.active", "where s.active and s.symbol = :symbol")

# What `SeriesFreshness` and `LaggingSeries` hold, from a row `r` of `series` and its state `t`.
SERIES_COLUMNS: Final = """
    r.symbol, r.timeframe, r.tier, r.status, r.life, t.life_since, not r.alerting as within_rpo,
    cast(extract(epoch from (select now from instant) - r.behind_since) as double precision) as staleness_seconds,
    cast(
        extract(epoch from greatest((select now from instant) - t.features_computed_at, interval '0'))
        as double precision
    ) as age_seconds,
    t.verified_at, t.next_due_at, t.features_computed_at, t.last_ts,
    coalesce(t.consecutive_failures, 0) as consecutive_failures, t.last_error_class, t.last_error
"""
_WAITING: Final = """
    exists (
        select from market_data.rate_limit_pauses where until > clock_timestamp()
        union all
        select from market_data.rate_limit_queue where expires_at > clock_timestamp()
    ) as waiting
"""
JOIN_STATE: Final = "left join market_data.series_state as t on t.symbol = r.symbol and t.timeframe = r.timeframe"
_WORST_FIRST: Final = "order by r.expected desc, r.behind_since nulls first, r.symbol, r.place"

_COUNTED: Final = """
    select
        tier,
        count(*) filter (where expected) as series,
        count(*) filter (where late) as late,
        count(*) filter (where expected and status = 'FRESH') as fresh,
        count(*) filter (where expected and status = 'AGING') as aging,
        count(*) filter (where expected and status = 'STALE') as stale,
        count(*) filter (where expected and status = 'MISSING') as missing,
        count(*) filter (where life = 'silent') as silent,
        count(*) filter (where not expected) as not_expected,
        count(*) filter (where consecutive_failures > 0) as failing,
        cast(
            extract(epoch from (select now from instant) - min(behind_since) filter (where expected))
            as double precision
        ) as worst_seconds
    from series
    group by tier
"""


def _counted_with_worst(part: str, condition: str) -> str:
    """Return the query for the counts of each tier and the worst `:limit` series of each of `:parts`.

    Those are values of the column `part`. One statement, because reading every series is most of the cost of counting
    and ranking; only series that meet `condition` are sorted.
    """
    return f"""
with {SERIES_CTE},
counted as ({_COUNTED}),
worst as (
    select w.*
    from unnest(cast(:parts as text[])) as p (part)
    cross join lateral (
        select r.* from series as r where r.{part} = p.part and {condition}
        {_WORST_FIRST} limit cast(:limit as bigint) offset :offset
    ) as w
)
select c.tier as counted_tier, c.series, c.late, c.fresh, c.aging, c.stale, c.missing, c.silent, c.not_expected,
    c.failing, c.worst_seconds, r.expected, {SERIES_COLUMNS}, {_WAITING}
from counted as c
left join worst as r on r.tier = c.tier
{JOIN_STATE}
{_WORST_FIRST}
"""


_BY_TIER: Final = _counted_with_worst("tier", "r.expected and (r.late or r.status <> 'FRESH')")
_BY_STATUS: Final = _counted_with_worst("listed", "true")
_COUNTS: Final = f"with {SERIES_CTE} {_COUNTED}"
_ALL: Final = f"with {SERIES_CTE} select {SERIES_COLUMNS} from series as r {JOIN_STATE} {_WORST_FIRST}"
_OF_SYMBOL: Final = f"with {_SERIES_OF_SYMBOL} select {SERIES_COLUMNS} from series as r {JOIN_STATE} {_WORST_FIRST}"

_WORST_SYMBOLS: Final = f"""
with {SERIES_CTE},
worst as (
    select
        symbol, count(*) over () as symbols,
        min(case when expected then coalesce(behind_since, '-infinity') else 'infinity' end) as behind_since
    from series where tier = :tier
    group by symbol
    order by 3, symbol limit :limit
)
select w.symbols, (select now from instant) as now, {SERIES_COLUMNS}
from worst as w
inner join series as r on r.symbol = w.symbol
{JOIN_STATE}
order by w.behind_since, r.symbol, r.place
"""

_ALERT_CHANGES: Final = f"""
with {SERIES_CTE}
select r.alerting, r.asset_class, a.detail as alerted, {SERIES_COLUMNS}, {_WAITING}
from series as r
left join market_data.open_alerts as a on a.kind = 'series' and a.subject = r.symbol || '|' || r.timeframe
{JOIN_STATE}
where r.alerting <> (a.subject is not null)
{_WORST_FIRST}
"""


_LATE_SUBJECTS: Final = f"""
with {SERIES_CTE} select symbol || '|' || timeframe from series where alerting and asset_class = :asset_class
"""


class LaggingSeries(SeriesFreshness):
    """A series that is not fresh, or beyond its tier's RPO, and why."""

    reason: str
    is_answered: bool  # the vendor was asked after the first missing bar was due, and had none
    alerted: str | None = None  # the detail of its open alert

    @property
    def series(self) -> Series:
        """Which series it is."""
        return Series(self.symbol, Timeframe(self.timeframe))


@dataclass(frozen=True, slots=True)
class TierFreshness:
    """How fresh a tier is now; the counts are exact."""

    series: int = 0  # all that it should hold
    late: int = 0  # beyond the RPO, missing ones included
    fresh: int = 0
    aging: int = 0
    stale: int = 0
    missing: int = 0  # never computed
    silent: int = 0  # of the above, those that have had no bars for longer than usual
    not_expected: int = 0  # halted, delisted or unknown to the vendor: not in any count above
    failing: int = 0  # whose last execution failed
    worst_seconds: float | None = None  # staleness of the stalest; None when nothing was computed
    worst: tuple[LaggingSeries, ...] = ()  # the first `LISTED` of those that lag, worst first, where requested

    @property
    def late_series(self) -> tuple[LaggingSeries, ...]:
        """Those of `worst` that are beyond the RPO, or were never computed, which are loaded without waiting for it."""
        return tuple(one for one in self.worst if not one.within_rpo or one.status == "MISSING")


class WorstSymbols(NamedTuple):
    """The symbols of a tier that are furthest behind, with all of their series."""

    symbols: int  # of the tier, whether listed or not
    now: datetime  # the pipeline's, aware UTC
    series: list[SeriesFreshness]  # symbol by symbol, the worst one first


class Selection(NamedTuple):
    """Which series a report is about; what is empty selects all."""

    symbols: Collection[str] = ()
    timeframes: Collection[Timeframe] = ()
    tier: Tier | None = None

    def holds(self, one: SeriesFreshness) -> bool:
        """Return whether the report is about this series."""
        return (
            (not self.symbols or one.symbol in self.symbols)
            and (not self.timeframes or one.timeframe in self.timeframes)
            and self.tier in {None, one.tier}
        )


_EVERY: Final = Selection()


class AlertChanges(NamedTuple):
    """What has changed since the last alert, worst first: series now beyond their RPO, and those back within it."""

    late: list[LaggingSeries]
    recovered: list[LaggingSeries]


def tier_counts(connection: sa.Connection) -> dict[Tier, TierFreshness]:
    """Return the counts of every tier, in order, without its worst series."""
    counts = {row.tier: _counts(row, row.tier) for row in connection.execute(sa.text(_COUNTS), series_values())}
    return {tier: counts.get(tier, TierFreshness()) for tier in Tier}


def tier_freshness(engine: sa.Engine) -> dict[Tier, TierFreshness]:
    """Return the counts and the worst series of every tier at the database's `market_data.clock()`, in one query."""
    values = {**series_values(), "parts": [tier.value for tier in Tier], "limit": LISTED, "offset": 0}
    with engine.connect() as connection:
        rows = connection.execute(sa.text(_BY_TIER), values).all()
    found = dict.fromkeys(Tier, TierFreshness())
    for tier in Tier:
        if of_tier := [row for row in rows if row.counted_tier == tier]:
            worst = tuple(_lagging(row) for row in of_tier if row.symbol is not None)
            found[tier] = _counts(of_tier[0], tier, worst)
    return found


def staleness_report(
    source: sa.Engine, limit: int | None = 50, selection: Selection = _EVERY, *, offset: int = 0
) -> StalenessReport:
    """Return how many series are fresh, aging, stale and missing, and the worst `limit` of each (None: all).

    The first `offset` of each state are left out. `next` is for the caller to set, who knows the address.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    if selection != _EVERY:
        return _selected_report(source, limit, selection, offset)
    values = {
        **series_values(),
        "parts": [*(state.name for state in Freshness), NOT_EXPECTED],
        "limit": limit,
        "offset": offset,
    }
    with snapshot(source) as connection:
        now = read_clock(connection)
        rows = connection.execute(sa.text(_BY_STATUS), values).all()
    tiers = {row.counted_tier: row for row in rows}.values()
    listed: dict[str, list[SeriesFreshness]] = {part: [] for part in values["parts"]}
    for row in rows:
        if row.symbol is not None:
            listed[row.status if row.expected else NOT_EXPECTED].append(_series(row))
    summary = StalenessSummary(
        fresh_count=sum(tier.fresh for tier in tiers),
        aging_count=sum(tier.aging for tier in tiers),
        stale_count=sum(tier.stale for tier in tiers),
        missing_count=sum(tier.missing for tier in tiers),
        silent_count=sum(tier.silent for tier in tiers),
        not_expected_count=sum(tier.not_expected for tier in tiers),
        total_monitored=sum(tier.series for tier in tiers),
    )
    return _report(now, summary, {status.lower(): series for status, series in listed.items()}, offset)


def _report(
    now: datetime, summary: StalenessSummary, listed: dict[str, list[SeriesFreshness]], offset: int
) -> StalenessReport:
    truncated = any(offset + len(of_it) < getattr(summary, f"{part}_count") for part, of_it in listed.items())
    return StalenessReport(
        timestamp=now, summary=summary, by_status=SeriesByStatus(**listed), truncated=truncated, next=None
    )


def _selected_report(source: sa.Engine, limit: int | None, selection: Selection, offset: int) -> StalenessReport:
    with snapshot(source) as connection:
        now = read_clock(connection)
        selected = [one for one in series_freshness(connection) if selection.holds(one)]
    expected = [one for one in selected if Life(one.life).expects_bars]
    listed = {state.name: [one for one in expected if one.status == state.name] for state in Freshness}
    listed[NOT_EXPECTED] = [one for one in selected if not Life(one.life).expects_bars]
    counts = {f"{part.lower()}_count": len(of_it) for part, of_it in listed.items()}
    silent = sum(Life(one.life) is Life.SILENT for one in selected)
    summary = StalenessSummary(**counts, silent_count=silent, total_monitored=len(expected))
    end = None if limit is None else offset + limit
    return _report(now, summary, {part.lower(): of_it[offset:end] for part, of_it in listed.items()}, offset)


def series_freshness(connection: sa.Connection, symbol: str | None = None) -> list[SeriesFreshness]:
    """Return every series of the active universe, or of one symbol: never computed first, then by falling staleness."""
    if symbol is None:
        return [_series(row) for row in connection.execute(sa.text(_ALL), series_values())]
    return [_series(row) for row in connection.execute(sa.text(_OF_SYMBOL), {**series_values(), "symbol": symbol})]


def worst_symbols(connection: sa.Connection, tier: Tier, limit: int) -> WorstSymbols | None:
    """Return the `limit` symbols of a tier that are furthest behind; None for a tier without symbols."""
    values = {**series_values(), "tier": tier.value, "limit": limit}
    rows = connection.execute(sa.text(_WORST_SYMBOLS), values).all()
    return WorstSymbols(rows[0].symbols, rows[0].now, [_series(row) for row in rows]) if rows else None


def alert_changes(connection: sa.Connection) -> AlertChanges:
    """Return the series whose state differs from what `open_alerts` says was reported of them.

    A series that was never computed counts as late once its symbol has been followed for longer than the RPO.
    """
    rows = connection.execute(sa.text(_ALERT_CHANGES), series_values()).all()
    return AlertChanges(
        [_lagging(row) for row in rows if row.alerting], [_lagging(row) for row in rows if not row.alerting]
    )


def late_subjects(connection: sa.Connection, asset_class: AssetClass) -> set[str]:
    """Return the series of an asset class that are late enough for an alert, as subjects of `open_alerts`."""
    values = {**series_values(), "asset_class": asset_class.value}
    return set(connection.execute(sa.text(_LATE_SUBJECTS), values).scalars())


def read_clock(connection: sa.Connection) -> datetime:
    """Return the pipeline's now, aware UTC: the database's `market_data.clock()`, which a replay sets."""
    now: datetime = connection.execute(sa.text("select market_data.clock()")).scalar_one()
    return now.astimezone(UTC)


def instant(value: datetime) -> str:
    """Return an instant to the minute, in UTC, for tables and sentences."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def series_values() -> dict[str, Any]:
    """Return the parameters of `SERIES_CTE`."""
    return {
        "tiers": [tier.value for tier in TIER_OBJECTIVES],
        "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
        "timeframes": [timeframe.value for timeframe in Timeframe],
        "fresh": FRESHNESS[Freshness.FRESH].up_to,
        "aging": FRESHNESS[Freshness.AGING].up_to,
    }


def _counts(row: sa.Row[Any], tier: Tier, worst: tuple[LaggingSeries, ...] = ()) -> TierFreshness:
    return TierFreshness(
        series=row.series,
        late=row.late,
        fresh=row.fresh,
        aging=row.aging,
        stale=row.stale,
        missing=row.missing,
        silent=row.silent,
        not_expected=row.not_expected,
        failing=row.failing,
        worst_seconds=row.worst_seconds,
        worst=worst,
    )


def _series(row: sa.Row[Any]) -> SeriesFreshness:
    return SeriesFreshness(**row._mapping)


def _lagging(row: sa.Row[Any]) -> LaggingSeries:
    return LaggingSeries(**row._mapping, reason=_reason(row), is_answered=_is_answered(row))


def _is_answered(row: sa.Row[Any]) -> bool:
    due_at, asked_at = row.next_due_at, row.verified_at
    return row.last_error is None and asked_at is not None and (due_at is None or asked_at >= due_at)


def _reason(row: sa.Row[Any]) -> str:
    """Return why a series lags, as far as its state shows."""
    if row.last_error is not None:
        times = f" ({row.consecutive_failures} times in a row)" if row.consecutive_failures > 1 else ""
        return f"{row.last_error_class}: {row.last_error}{times}"
    waiting = "it waits for the vendor's rate limit." if row.waiting else "no run has reached it."
    if row.verified_at is None:
        return f"{'Never computed' if row.staleness_seconds is None else 'Not refreshed yet'}: {waiting}"
    if _is_answered(row):
        last = f" since {instant(row.last_ts)}" if row.last_ts else ""
        return f"No bars from the vendor{last}, last asked at {instant(row.verified_at)}."
    return f"Not refreshed since {instant(row.verified_at)}: {waiting}"
