"""How fresh the series of the active universe are now: the one SQL definition of it, and every query that uses it.

A series is MISSING while it was never computed; else its staleness is how long its next bar has been due, and the state
follows from the thresholds of `domain.objectives`. Its tier's RPO is kept while the staleness does not exceed it. A
series of which no bars are expected (`domain.life`) is never late, and counted apart. API, pages, command line,
metrics, checks, sensors and alerts all read these columns. Keep out: the share of time that a series was within its RPO
(attainment).
"""

# ruff: noqa: S608 - the statements are put together from constants of this module

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe
from market_data_pipeline.reports.models import SeriesByStatus, SeriesFreshness, StalenessReport, StalenessSummary
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NOT_EXPECTED: Final = "NOT_EXPECTED"  # where reports list series of which no bars are expected
STATUSES: Final = (*(state.name for state in Freshness), NOT_EXPECTED)

LISTED: Final = 200  # series listed per tier, worst first; the counts are exact


class Selection(NamedTuple):
    """Which series a report is about; what is empty selects all.

    Attributes:
        symbols: these.
        timeframes: these.
        tier: those of it.
        part: of symbols that contain this text, whatever the case of its letters.
    """

    symbols: Collection[str] = ()
    timeframes: Collection[Timeframe] = ()
    tier: Tier | None = None
    part: str = ""

    def of_symbols(self, row: str) -> str:
        """Return the conditions, each after `and`, on a row of `symbols`."""
        return self._named(row) + (f" and {row}.tier = :tier" if self.tier else "")

    def of_state(self, row: str) -> str:
        """Return the conditions, each after `and`, on a row of `series_state`, whose tier may be of before."""
        return self._named(row) + (
            f" and {row}.timeframe = any(cast(:timeframes as text[]))" if self.timeframes else ""
        )

    def _named(self, row: str) -> str:
        return (f" and {row}.symbol = any(cast(:symbols as text[]))" if self.symbols else "") + (
            f" and position(upper(:part) in upper({row}.symbol)) > 0" if self.part else ""
        )


EVERY: Final = Selection()

# Every series that should exist, with a row in series_state or without. `behind_since` is null for what was never
# computed and never in the future, so that it sorts by falling staleness. A symbol that has just been followed has its
# RPO to be loaded: `alerting`, and with it `within_rpo`, waits for that as the attainment does; `late`, by which series
# are refreshed, does not. Of a delisted security, which is followed for its past, nothing is ever `alerting`. The clock
# is read once: read for each row, it would cost as much as the rest.
_EXPECTING: Final = "(" + ", ".join(f"'{life}'" for life in Life if life.expects_bars) + ")"
_INSTANT: Final = """
instant as materialized (
    select
        c.now, c.now - cast(:fresh as interval) as fresh_from, c.now - cast(:aging as interval) as aging_from
    from (select market_data.clock() as now) as c
),
objective as materialized (
    select o.tier, instant.now - o.rpo as late_before
    from unnest(cast(:tiers as text[]), cast(:rpos as interval[])) as o (tier, rpo)
    cross join instant
)"""
# Of a series that is not among these, nothing is due, and nothing has failed. Most never are: what is asked about all
# of them is answered from these and from how many there are.
_LAGGING: Final = f"""(
        t.next_due_at < (select now from instant) or t.next_due_at is null or t.features_computed_at is null
        or t.life <> '{Life.TRADING}' or t.consecutive_failures > 0
    )"""


def series_cte(selection: Selection = EVERY, *, condition: str = "true", absent: bool = True) -> str:
    """Return the expressions of a statement that end with `series`: those selected, as `series_values` has it.

    Args:
        selection: which series.
        condition: on a row `t` of series_state.
        absent: whether those without a row are among them. Few symbols lack one, and counting the rows of each symbol
            is cheaper than looking for every row.
    """
    without = f"""
    union all
    select
        s.symbol, s.tier, s.asset_class, f.timeframe, f.place, null::integer, o.late_before,
        coalesce(s.followed_since, s.added_at), s.security is null, null::timestamptz, '{Life.TRADING}', true
    from market_data.symbols as s
    inner join objective as o on o.tier = s.tier
    left join (
        select t.symbol, array_agg(t.timeframe) as timeframes, count(*) as held from market_data.series_state as t
        where true {selection.of_state("t")}
        group by t.symbol
    ) as h on h.symbol = s.symbol
    cross join unnest(cast(:timeframes as text[])) with ordinality as f (timeframe, place)
    where
        s.active {selection.of_symbols("s")}
        and h.held is distinct from cardinality(cast(:timeframes as text[]))
        and (h.held is null or f.timeframe <> all(h.timeframes))
"""
    return f"""{_INSTANT},
due as (
    select
        s.symbol, s.tier, s.asset_class, t.timeframe,
        array_position(cast(:timeframes as text[]), t.timeframe) as place, t.consecutive_failures, o.late_before,
        coalesce(s.followed_since, s.added_at) as followed_since, s.security is null as current,
        case when t.features_computed_at is not null then
            least(coalesce(t.next_due_at, t.features_computed_at), (select now from instant))
        end as behind_since,
        t.life, t.life in {_EXPECTING} as expected
    from market_data.series_state as t
    inner join market_data.symbols as s on s.symbol = t.symbol
    inner join objective as o on o.tier = s.tier
    where s.active {selection.of_symbols("s")} {selection.of_state("t")} and {condition}
    {without if absent else ""}
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


def lagging_cte(selection: Selection = EVERY) -> str:
    """Return `series_cte` with only those series of which something is due, has failed or is not expected."""
    return series_cte(selection, condition=_LAGGING)


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
# Of those that are equally far behind, first what fails or is silent.
WORST_FIRST: Final = f"""
order by r.expected desc, r.behind_since nulls first,
    coalesce(r.consecutive_failures, 0) = 0 and r.life = '{Life.TRADING}', r.symbol, r.place
"""


def counted_cte(selection: Selection = EVERY) -> str:
    """Return the expression `counted`, the counts of each tier, from `series`, which has all that lag at least."""
    return f"""
counted as (
    select
        w.tier, w.symbols,
        w.series - coalesce(c.not_expected, 0) as series,
        w.series - coalesce(c.rows - c.fresh, 0) as fresh,
        coalesce(c.fresh, 0) as fresh_lagging,
        coalesce(c.aging, 0) as aging,
        coalesce(c.stale, 0) as stale,
        coalesce(c.missing, 0) as missing,
        coalesce(c.silent, 0) as silent,
        coalesce(c.not_expected, 0) as not_expected,
        coalesce(c.late, 0) as late,
        coalesce(c.outside, 0) as outside,
        coalesce(c.failing, 0) as failing,
        coalesce(
            cast(extract(epoch from (select now from instant) - c.behind_since) as double precision),
            case when w.series > coalesce(c.rows, 0) then 0 end
        ) as worst_seconds
    from (
        select s.tier, count(*) as symbols, count(*) * cardinality(cast(:timeframes as text[])) as series
        from market_data.symbols as s
        inner join objective as o on o.tier = s.tier
        where s.active {selection.of_symbols("s")}
        group by s.tier
    ) as w
    left join (
        select
            tier,
            count(*) as rows,
            count(*) filter (where listed = 'FRESH') as fresh,
            count(*) filter (where listed = 'AGING') as aging,
            count(*) filter (where listed = 'STALE') as stale,
            count(*) filter (where listed = 'MISSING') as missing,
            count(*) filter (where life = '{Life.SILENT}') as silent,
            count(*) filter (where not expected) as not_expected,
            count(*) filter (where late) as late,
            count(*) filter (where alerting) as outside,
            count(*) filter (where consecutive_failures > 0) as failing,
            min(behind_since) filter (where expected) as behind_since
        from series
        group by tier
    ) as c on c.tier = w.tier
)"""


def _counted_with_worst(series: str, selection: Selection, part: str, condition: str) -> str:
    """Return the query for the counts of each tier and the worst `:limit` series of each of `:parts`.

    Those are values of the column `part`. One statement, because reading every series is most of the cost of counting
    and ranking; only series that meet `condition` are sorted.
    """
    return f"""
with {series},
{counted_cte(selection)},
worst as (
    select w.*
    from unnest(cast(:parts as text[])) as p (part)
    cross join lateral (
        select r.* from series as r where r.{part} = p.part and {condition}
        {WORST_FIRST} limit cast(:limit as bigint) offset :offset
    ) as w
)
select c.tier as counted_tier, c.symbols, c.series, c.late, c.outside, c.fresh, c.fresh_lagging, c.aging, c.stale,
    c.missing, c.silent, c.not_expected, c.failing, c.worst_seconds, r.listed, {SERIES_COLUMNS}, {_WAITING}
from counted as c
left join worst as r on r.tier = c.tier
{JOIN_STATE}
{WORST_FIRST}
"""


_BY_TIER: Final = _counted_with_worst(lagging_cte(), EVERY, "tier", "r.expected and (r.late or r.status <> 'FRESH')")
_COUNTS: Final = f"with {lagging_cte()}, {counted_cte()} select * from counted"


def _on_time(selection: Selection) -> str:
    """Return the query for those of the selected series that do not lag, in the order of the reports.

    It goes from symbol to symbol and ends with the last one that is listed.
    """
    return f"""
with {_INSTANT}
select {SERIES_COLUMNS}
from (
    select
        s.symbol, t.timeframe, s.tier, 'FRESH' as status, t.life, false as alerting, instant.now as behind_since,
        array_position(cast(:timeframes as text[]), t.timeframe) as place
    from market_data.symbols as s
    inner join objective as o on o.tier = s.tier
    cross join instant
    inner join market_data.series_state as t on t.symbol = s.symbol
    where s.active {selection.of_symbols("s")} {selection.of_state("t")} and not {_LAGGING}
    order by s.symbol, place
    limit :limit offset :offset
) as r
{JOIN_STATE}
order by r.symbol, r.place
"""


_WORST_SYMBOLS: Final = f"""
with {series_cte(Selection(tier=Tier.CRITICAL))},
worst as (
    select
        symbol, count(*) over () as symbols,
        min(case when expected then coalesce(behind_since, '-infinity') else 'infinity' end) as behind_since
    from series
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
with {series_cte()}
select r.alerting, r.asset_class, a.detail as alerted, {SERIES_COLUMNS}, {_WAITING}
from series as r
left join market_data.open_alerts as a on a.kind = 'series' and a.subject = r.symbol || '|' || r.timeframe
{JOIN_STATE}
where r.alerting <> (a.subject is not null)
{WORST_FIRST}
"""


_LATE_SUBJECTS: Final = f"""
with {lagging_cte()} select symbol || '|' || timeframe from series where alerting and asset_class = :asset_class
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

    symbols: int = 0
    series: int = 0  # all that it should hold
    late: int = 0  # beyond the RPO, missing ones included
    outside: int = 0  # of these, those that count as outside it: a new symbol has its RPO to be loaded
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


_COUNTS_OF_TIER: Final = tuple(one.name for one in fields(TierFreshness) if one.name != "worst")


class WorstSymbols(NamedTuple):
    """The symbols of a tier that are furthest behind, with all of their series."""

    symbols: int  # of the tier, whether listed or not
    now: datetime  # the pipeline's, aware UTC
    series: list[SeriesFreshness]  # symbol by symbol, the worst one first


class AlertChanges(NamedTuple):
    """What has changed since the last alert, worst first: series now beyond their RPO, and those back within it."""

    late: list[LaggingSeries]
    recovered: list[LaggingSeries]


def tier_counts(connection: sa.Connection) -> dict[Tier, TierFreshness]:
    """Return the counts of every tier, in order, without its worst series."""
    counts = {row.tier: counts_of(row._asdict()) for row in connection.execute(sa.text(_COUNTS), series_values())}
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
            found[tier] = counts_of(of_tier[0]._asdict(), worst)
    return found


def staleness_report(
    source: sa.Engine,
    limit: int | None = 50,
    selection: Selection = EVERY,
    *,
    offset: int = 0,
    statuses: Collection[str] = STATUSES,
) -> StalenessReport:
    """Return how many series are fresh, aging, stale and missing, and the worst `limit` of each (None: all).

    Args:
        source: the database.
        limit: of each state.
        selection: which series are counted and listed.
        offset: how many of each state, the worst, are left out.
        statuses: of which of `STATUSES` series are listed; all are counted.

    Returns:
        The report; `next` is for the caller to set, who knows the address.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    series = series_cte(selection) if limit is None else lagging_cte(selection)
    values = {**series_values(selection), "parts": list(statuses), "limit": limit, "offset": offset}
    with snapshot(source) as connection:
        now = read_clock(connection)
        statement = _counted_with_worst(series, selection, "listed", "true")
        rows = connection.execute(sa.text(statement), values).all()
        tiers = {row.counted_tier: row for row in rows}.values()
        on_time: Sequence[sa.Row[Any]] = ()
        listed_fresh = sum(row.listed == "FRESH" for row in rows)
        if limit is not None and "FRESH" in statuses and listed_fresh < limit:
            passed = max(0, offset - sum(tier.fresh_lagging for tier in tiers))
            rest = {**values, "limit": limit - listed_fresh, "offset": passed}
            on_time = connection.execute(sa.text(_on_time(selection)), rest).all()
    listed: dict[str, list[SeriesFreshness]] = {part: [] for part in STATUSES}
    for row in rows:
        if row.symbol is not None:
            listed[row.listed].append(_series(row))
    listed["FRESH"] += [_series(row) for row in on_time]
    summary = StalenessSummary(
        fresh_count=sum(tier.fresh for tier in tiers),
        aging_count=sum(tier.aging for tier in tiers),
        stale_count=sum(tier.stale for tier in tiers),
        missing_count=sum(tier.missing for tier in tiers),
        silent_count=sum(tier.silent for tier in tiers),
        not_expected_count=sum(tier.not_expected for tier in tiers),
        total_monitored=sum(tier.series for tier in tiers),
    )
    return StalenessReport(
        timestamp=now,
        summary=summary,
        by_status=SeriesByStatus(**{status.lower(): of_it for status, of_it in listed.items()}),
        truncated=any(
            offset + len(listed[status]) < getattr(summary, f"{status.lower()}_count") for status in statuses
        ),
        next=None,
    )


def series_freshness(connection: sa.Connection, *symbols: str) -> list[SeriesFreshness]:
    """Return every series of the active universe, or of symbols: never computed first, then by falling staleness."""
    selection = Selection(symbols)
    statement = f"with {series_cte(selection)} select {SERIES_COLUMNS} from series as r {JOIN_STATE} {WORST_FIRST}"
    return [_series(row) for row in connection.execute(sa.text(statement), series_values(selection))]


def worst_symbols(connection: sa.Connection, tier: Tier, limit: int) -> WorstSymbols | None:
    """Return the `limit` symbols of a tier that are furthest behind; None for a tier without symbols."""
    values = {**series_values(Selection(tier=tier)), "limit": limit}
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


def series_values(selection: Selection = EVERY) -> dict[str, Any]:
    """Return the parameters of `series_cte` and `counted_cte`."""
    timeframes = [timeframe for timeframe in Timeframe if not selection.timeframes or timeframe in selection.timeframes]
    return {
        "tiers": [tier.value for tier in TIER_OBJECTIVES],
        "rpos": [objective.rpo for objective in TIER_OBJECTIVES.values()],
        "timeframes": [timeframe.value for timeframe in timeframes],
        "fresh": FRESHNESS[Freshness.FRESH].up_to,
        "aging": FRESHNESS[Freshness.AGING].up_to,
        **({"symbols": list(selection.symbols)} if selection.symbols else {}),
        **({"tier": selection.tier.value} if selection.tier else {}),
        **({"part": selection.part} if selection.part else {}),
    }


def counts_of(row: Mapping[Any, Any], worst: tuple[LaggingSeries, ...] = ()) -> TierFreshness:
    """Return a tier's counts from a row of `counted_cte`."""
    return TierFreshness(**{name: row[name] for name in _COUNTS_OF_TIER}, worst=worst)


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
