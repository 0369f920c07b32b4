"""The rules that stored bars and features must satisfy, as SQL, and how bad it is when one is broken.

A rule's query selects the rows that break it from `b`: the bars or features of one tier's active symbols, with their
`asset_class`; `t` is the table of these symbols, and `market_data.sessions` the calendar. The first columns are the
keys symbol, timeframe and ts; the others show what is wrong. The database refuses most of these faults when a bar is
written; these rules look for them in what is stored, however it got there. Severities and tolerances were chosen on
recorded data: twenty years of day bars of four symbols, and minutes of ten sessions, break none of the rules.

Add here: a rule. Keep out: running them (orchestration.checks).
"""

# ruff: noqa: S608 - the statements are put together from constants of this package

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe


class Severity(StrEnum):
    """What a broken rule means for those who read the values."""

    ERROR = "error"  # values are wrong, or rows are missing or duplicated: do not use these series until it is fixed
    WARN = "warn"  # odd, and known to come from the vendor or to be fixed by a refresh: look into it if it stays


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule about the rows of `market_data.bars` or `market_data.features`."""

    name: str  # of the asset check
    holds: str  # a sentence: what must be true
    broken: str  # what is wrong with the rows that break it, after their number: `3 rows …`
    severity: Severity
    why: str  # the reason for the severity, and for a tolerance if there is one
    query: str  # selects the rows that break it
    order: str = "2, 3, 4"  # which rows the sample shows first; by default those of the first keys

    @property
    def description(self) -> str:
        """Return what the check's page says."""
        return f"{self.holds} {self.severity.value.capitalize()}: {self.why}"


def _by_timeframe(column: str, values: dict[Timeframe, str]) -> str:
    """Return the SQL expression that chooses a value by a timeframe column."""
    whens = " ".join(f"when '{timeframe}' then {value}" for timeframe, value in values.items())
    return f"case {column} {whens} end"


# The nominal length of a bar. A day bar is an hour shorter when clocks go forward.
_SPAN: Final = _by_timeframe(
    "b.timeframe",
    {t: "interval '23 hours'" if t is Timeframe.D1 else f"interval '{t.minutes} minutes'" for t in Timeframe},
)

# A session's last 4h bar may be cut short by an early close, and then ends after one hour.
_SHORTEST: Final = _by_timeframe(
    "b.timeframe",
    {
        t: {Timeframe.H4: "interval '1 hour'", Timeframe.D1: "interval '23 hours'"}.get(
            t, f"interval '{t.minutes} minutes'"
        )
        for t in Timeframe
    },
)

_ZONE: Final = " ".join(f"when '{each}' then '{calendar_for(each).tz.key}'" for each in AssetClass)
_SESSION_DATE: Final = f"cast(b.ts at time zone (case b.asset_class {_ZONE} end) as date)"

# A session's regular hours: 09:30 to 16:00 New York, to 13:00 on early closes; a round-the-clock session has no others.
_EXTENDED: Final = ", ".join(f"'{each}'" for each in AssetClass if calendar_for(each).has_extended_hours)
_REGULAR_OPEN: Final = f"d.opens_at + case when d.asset_class in ({_EXTENDED}) then interval '330 minutes' else '0' end"
_REGULAR_CLOSE: Final = f"d.closes_at - case when d.asset_class in ({_EXTENDED}) then interval '4 hours' else '0' end"

# Where the grid of a session's intraday bars starts: round the clock it is that of the day, when it opens later, too.
_GRID: Final = f"case when d.asset_class in ({_EXTENDED}) then d.opens_at else d.day_start end"
_INDEX: Final = f"b.asset_class = '{AssetClass.INDEX}'"


def _finite(column: str, *, above: str = "", at_least: str = "") -> str:
    """Return the SQL condition that a number is within its bound and neither NaN nor infinite.

    NULL makes it NULL. PostgreSQL sorts NaN above every number, so one comparison rejects both.
    """
    low = f"{column} > {above}" if above else f"{column} >= {at_least}" if at_least else f"{column} > '-infinity'"
    return f"({low} and {column} < 'infinity')"


# `t` are the tier's symbols and `b` their rows; `not materialized` lets a rule that names `b` twice be planned as a
# whole. Great Expectations replaces `{batch}` by the rows of `table_rows`.
_STATEMENT: Final = """
with t as (
    select s.symbol, s.asset_class from market_data.symbols as s where s.tier = '{tier}' and s.active
),
b as not materialized (
    select r.*, t.asset_class from {{batch}} as r join t on t.symbol = r.symbol
)
select count(*) over () as rows_in_all, bad.* from ({query}) as bad order by {order} limit {sample}"""


def rule_statement(rule: Rule, tier: Tier, sample: int) -> str:
    """Return the statement that yields the first `sample` rows of a tier that break a rule, each with their total."""
    return _STATEMENT.format(tier=tier.value, query=rule.query, order=rule.order, sample=sample)


def table_rows(table: str) -> str:
    """Return the query for all rows of `market_data.<table>`."""
    return f"select * from market_data.{table}"


_UNIQUE_KEYS: Final = Rule(
    name="keys_are_unique",
    holds="No series holds two rows with the same start.",
    broken="are stored twice",
    severity=Severity.ERROR,
    why="the primary key forbids it, so an index is damaged or was dropped, and every sum counts these rows twice.",
    query="select b.symbol, b.timeframe, b.ts, count(*) as copies from b group by 1, 2, 3 having count(*) > 1",
)

BAR_RULES: Final = (
    _UNIQUE_KEYS,
    Rule(
        name="bars_are_in_order",
        holds="Each bar starts when the previous one ends, or later.",
        broken="start before the previous bar has ended",
        severity=Severity.ERROR,
        why="what happened in the overlap is counted twice.",
        query=f"""
            select * from (
                select b.symbol, b.timeframe, b.ts, lag(b.ts) over series as previous_ts, {_SPAN} as length
                from b window series as (partition by b.symbol, b.timeframe order by b.ts)
            ) as o where o.ts < o.previous_ts + o.length""",
    ),
    Rule(
        name="prices_are_positive",
        holds="Open, high, low and close are numbers above 0.",
        broken="have a price that is not a number above 0",
        severity=Severity.ERROR,
        why="returns and logarithms of such prices are meaningless.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close
            from b where not ({" and ".join(_finite(f"b.{price}", above="0") for price in PRICES)})""",
    ),
    Rule(
        name="prices_are_consistent",
        holds="low <= open, close <= high.",
        broken="have an open or close outside low and high",
        severity=Severity.ERROR,
        why="one of the four prices is wrong, and no recorded bar shows it.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close
            from b where b.low > least(b.open, b.close) or b.high < greatest(b.open, b.close)""",
    ),
    Rule(
        name="volume_is_not_negative",
        holds="Volume is a number of 0 or more, and so is the number of trades where there is one; an index has none.",
        broken="have an impossible volume or number of trades",
        severity=Severity.ERROR,
        why="sums and ratios of volume are wrong.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.volume, b.trades
            from b where case when {_INDEX} then coalesce(b.volume, b.trades) is not null
            else not coalesce({_finite("b.volume", at_least="0")}, false) or b.trades < 0 end""",
    ),
    Rule(
        name="vwap_lies_within_the_bar",
        holds="The volume-weighted average price lies between low and high.",
        broken="have an average price outside low and high",
        severity=Severity.WARN,
        why="the vendor averages trades that its high and low leave out (odd lots, late prints); nothing here uses it.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.low, b.vwap, b.high
            from b where b.vwap < b.low * (1 - 1e-9) or b.vwap > b.high * (1 + 1e-9) or b.vwap = 'nan'""",
    ),
    Rule(
        name="no_bar_from_the_future",
        holds="Every bar had ended when it was stored.",
        broken="were stored before they had ended",
        severity=Severity.ERROR,
        why="a bar in progress holds part of its trades, and looks ahead when it is read as of an earlier instant.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.ingested_at
            from b where b.ts + {_SHORTEST} > least(b.ingested_at, market_data.clock())""",
    ),
    Rule(
        name="bars_lie_in_sessions",
        holds="Every bar starts in a session of its exchange, on the session's grid.",
        broken="start outside every session or off its grid",
        severity=Severity.ERROR,
        why="holidays, early closes and clock changes are known exactly, so either a time zone or the calendar is "
        "wrong; in twenty years of recorded bars there is none.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, d.session_date, d.opens_at, d.closes_at
            from b left join market_data.sessions as d
            on d.asset_class = b.asset_class and d.session_date = {_SESSION_DATE}
            where d.session_date is null or case when b.timeframe = '{Timeframe.D1}' then b.ts <> d.day_start
            else b.ts + {_SPAN} <= d.opens_at or b.ts >= d.closes_at or date_bin({_SPAN}, b.ts, {_GRID}) <> b.ts end""",
    ),
    Rule(
        name="every_session_has_its_day_bar",
        holds="Between the first and the last day bar every session has one, or the vendor confirmed that it has none.",
        broken="have no day bar",
        severity=Severity.WARN,
        why="the next refresh requests it. Days requested within the last three days are not counted: they may still "
        "be confirmed empty.",
        query=f"""
            select e.symbol, '{Timeframe.D1}' as timeframe, e.ts, e.session_date, c.status as coverage
            from (
                select r.symbol, d.session_date, d.day_start as ts from (
                    select b.symbol, b.asset_class, min(b.ts) as first_ts, max(b.ts) as last_ts
                    from b where b.timeframe = '{Timeframe.D1}' group by 1, 2
                ) as r
                join market_data.sessions as d on d.asset_class = r.asset_class
                where d.day_start between r.first_ts and r.last_ts
            ) as e
            left join market_data.bars as x
            on x.symbol = e.symbol and x.timeframe = '{Timeframe.D1}' and x.ts = e.ts
            left join market_data.coverage as c
            on c.symbol = e.symbol and c.timeframe = '{Timeframe.D1}' and c.session_date = e.session_date
            where x.ts is null and coalesce(c.status, '') not in ('empty_confirmed', 'clamped') and not (
                coalesce(c.status, '') in ('provisional', 'failed')
                and c.fetched_at > market_data.clock() - interval '3 days'
            )""",
    ),
    Rule(
        name="coverage_counts_its_bars",
        holds="Each session day holds as many fetched bars as its coverage says.",
        broken="session days hold a different number of bars than their coverage says",
        severity=Severity.ERROR,
        why="bars and coverage commit together, so rows were lost or added by something else, and no refresh will "
        "request that day again.",
        query=f"""
            select coalesce(c.symbol, n.symbol) as symbol, coalesce(c.timeframe, n.timeframe) as timeframe, d.day_start,
                coalesce(c.session_date, n.session_date) as session_date, coalesce(c.rows, 0) as covered,
                coalesce(n.held, 0) as held
            from (
                select b.symbol, b.timeframe, {_SESSION_DATE} as session_date, b.asset_class, count(*) as held
                from b where b.timeframe in ('{Timeframe.M5}', '{Timeframe.D1}') group by 1, 2, 3, 4
            ) as n
            full join (
                select k.* from market_data.coverage as k join t on t.symbol = k.symbol
            ) as c on c.symbol = n.symbol and c.timeframe = n.timeframe and c.session_date = n.session_date
            left join market_data.sessions as d
            on d.asset_class = n.asset_class and d.session_date = n.session_date
            where coalesce(c.rows, 0) <> coalesce(n.held, 0)""",
    ),
    Rule(
        name="state_agrees_with_the_bars",
        holds="The state of each series gives its number of bars, its first and its last one.",
        broken="series have different bars than their state says",
        severity=Severity.ERROR,
        why="freshness, reports and the next refresh rely on the state.",
        query="""
            select coalesce(st.symbol, n.symbol) as symbol, coalesce(st.timeframe, n.timeframe) as timeframe, n.last_ts,
                n.first_ts, coalesce(n.held, 0) as held, st.last_ts as state_last_ts, st.first_ts as state_first_ts,
                coalesce(st.bar_count, 0) as state_bars
            from (
                select b.symbol, b.timeframe, count(*) as held, min(b.ts) as first_ts, max(b.ts) as last_ts
                from b group by 1, 2
            ) as n
            full join (
                select k.* from market_data.series_state as k join t on t.symbol = k.symbol
            ) as st on st.symbol = n.symbol and st.timeframe = n.timeframe
            where coalesce(st.bar_count, 0) <> coalesce(n.held, 0)
            or st.first_ts is distinct from n.first_ts or st.last_ts is distinct from n.last_ts""",
    ),
    Rule(
        name="instants_agree_with_the_database",
        holds="What the pipeline says it stored at an instant, the database recorded within five minutes of it.",
        broken="were stored at another time than they say",
        severity=Severity.WARN,
        why="the clocks of the pipeline and the database differ, or someone stored values as if at another time: what "
        "`as_of` answers is then wrong. A commit takes seconds, a minute at most where it waits for a lock. A replay, "
        "whose clock stands still, is left out.",
        query="""
            select r.symbol, r.timeframe, coalesce(r.ts, r.claimed_at) as ts, r.relation, r.instant, r.claimed_at,
                r.recorded_at
            from market_data.recorded_instants as r join t on t.symbol = r.symbol
            where r.recorded_at - r.claimed_at not between interval '-1 minute' and interval '5 minutes'
            and market_data.clock() between now() - interval '1 minute' and now() + interval '1 minute'""",
    ),
)

_RESAMPLED: Final = ", ".join(f"'{t}'" for t in Timeframe if not t.is_base)
_SPANS: Final = ", ".join(f"('{t}', interval '{t.minutes} minutes')" for t in Timeframe if not t.is_base)

_ROUNDED: Final = 0.999999999  # volumes have fractions: their sum depends on the order

ACROSS_RULES: Final = (
    Rule(
        name="day_volume_holds_the_minutes",
        holds="A day bar's volume is at least that of all 5-minute bars of its session.",
        broken="have less volume than the 5-minute bars of their session",
        severity=Severity.WARN,
        why="a correction may reach minutes and day on different nights, and each is then right on its own. The "
        "vendor's day bars hold the extended hours and trades that belong to no minute; recorded day bars of another "
        "source hold the regular hours' volume exactly (83 to 97 % of the session's), which is accepted as well.",
        query=f"""
            select m.symbol, '{Timeframe.D1}' as timeframe, x.ts, x.volume, m.minutes, m.regular_minutes from (
                select b.symbol, d.session_date, d.day_start, sum(b.volume) as minutes,
                    sum(b.volume) filter (where b.ts >= {_REGULAR_OPEN} and b.ts < {_REGULAR_CLOSE}) as regular_minutes
                from b join market_data.sessions as d
                on d.asset_class = b.asset_class and d.session_date = {_SESSION_DATE}
                where b.timeframe = '{Timeframe.M5}'
                group by 1, 2, 3
            ) as m
            join market_data.bars as x on x.symbol = m.symbol and x.timeframe = '{Timeframe.D1}' and x.ts = m.day_start
            where x.volume < m.minutes * {_ROUNDED}
            and not coalesce(x.volume between m.regular_minutes * {_ROUNDED} and m.regular_minutes / {_ROUNDED}, false)
            and 2 = (
                select count(*) from market_data.coverage as c
                where c.symbol = m.symbol and c.session_date = m.session_date and c.status = 'complete'
            )""",
    ),
    Rule(
        name="resampled_bars_equal_their_minutes",
        holds="Each 15m, 1h and 4h bar has the high, low and volume of the 5-minute bars that it spans.",
        broken="differ from the 5-minute bars that they span",
        severity=Severity.ERROR,
        why="they are made of those bars and of nothing else; a series that waits to be resampled again is left out.",
        query=f"""
            select p.symbol, p.timeframe, p.ts, p.high, p.high_of_5m, p.low, p.low_of_5m, p.volume, p.volume_of_5m
            from (
                -- Grouped, not joined: the planner takes what is grouped for few rows, and looks each up on its own.
                select e.symbol, e.timeframe, e.ts,
                    max(e.high) filter (where e.stored) as high, max(e.high) filter (where not e.stored) as high_of_5m,
                    min(e.low) filter (where e.stored) as low, min(e.low) filter (where not e.stored) as low_of_5m,
                    max(e.volume) filter (where e.stored) as volume,
                    max(e.volume) filter (where not e.stored) as volume_of_5m
                from (
                    select b.symbol, b.timeframe, b.ts, b.high, b.low, b.volume, true as stored
                    from b where b.timeframe in ({_RESAMPLED})
                    union all
                    select b.symbol, k.timeframe, date_bin(k.span, b.ts, {_GRID}) as ts,
                        max(b.high) as high, min(b.low) as low, sum(b.volume) as volume, false as stored
                    from b join market_data.sessions as d
                    on d.asset_class = b.asset_class and d.session_date = {_SESSION_DATE}
                    cross join (values {_SPANS}) as k (timeframe, span)
                    where b.timeframe = '{Timeframe.M5}'
                    group by 1, 2, 3
                ) as e
                group by 1, 2, 3
                having bool_or(e.stored) and bool_or(not e.stored)
            ) as p
            join market_data.series_state as made on made.symbol = p.symbol and made.timeframe = p.timeframe
            join market_data.series_state as base
            on base.symbol = p.symbol and base.timeframe = '{Timeframe.M5}' and base.revision = made.base_revision
            where p.high <> p.high_of_5m or p.low <> p.low_of_5m or (p.volume is null) <> (p.volume_of_5m is null)
            or abs(p.volume - p.volume_of_5m) > 1e-9 * p.volume_of_5m""",
    ),
)

# A return of a price above 0 is above -1, and so is its logarithm above minus infinity.
_BOUNDS: Final = {
    "log_return": _finite("b.log_return"),
    **{name: _finite(f"b.{name}", above="-1") for name in ("return_1h", "return_1d")},
    **{
        name: _finite(f"b.{name}", at_least="0")
        for name in ("volatility_20", "volatility_50", "atr", "rolling_volume_20", "volume_ratio")
    },
}
_STRUCTURE: Final = "case when b.hh and b.hl then 'bullish' when b.lh and b.ll then 'bearish' else 'range' end"

# `return_1d` of intraday bars reaches back to the previous session, so the first session has none; that of day bars
# warms up in bars. Volume may be 0 throughout a window, which then has no ratio; an index has no volume at all.
_WARMED: Final = {feature.name: feature.warm_up for feature in FEATURES if feature.warm_up is not None}
_EMPTY: Final = " or ".join(
    f"(b.ts >= w.after[{after + 1}] and b.{name} is null"
    + {
        "rolling_volume_20": f" and not {_INDEX})",
        "volume_ratio": f" and b.rolling_volume_20 <> 0 and not {_INDEX})",
    }.get(name, ")")
    for name, after in _WARMED.items()
)
_LONGEST: Final = max(_WARMED.values())

FEATURE_RULES: Final = (
    _UNIQUE_KEYS,
    Rule(
        name="every_bar_has_features",
        holds="Every bar has its features.",
        broken="are a bar without features",
        severity=Severity.ERROR,
        why="both are one row, written by one commit: something else removed the features.",
        query="""
            select x.symbol, x.timeframe, x.ts
            from (select k.symbol, k.timeframe, k.ts from market_data.bars as k join t on t.symbol = k.symbol) as x
            left join (select b.symbol, b.timeframe, b.ts from b) as f
            on f.symbol = x.symbol and f.timeframe = x.timeframe and f.ts = x.ts
            where f.ts is null""",
    ),
    Rule(
        name="features_are_filled_after_warm_up",
        holds="From the bar at which its window is full, no feature is null.",
        broken="have a null feature whose window is full",
        severity=Severity.ERROR,
        why="a model that drops incomplete rows loses these silently.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, {", ".join(f"b.{name}" for name in _WARMED)}
            from b join (
                with first as materialized (
                    select n.symbol, n.timeframe, array(
                        select k.ts from market_data.records as k
                        where k.series = n.id order by k.ts limit {_LONGEST + 1}
                    ) as after
                    from market_data.series as n join t on t.symbol = n.symbol
                )
                select * from first
            ) as w on w.symbol = b.symbol and w.timeframe = b.timeframe
            where {_EMPTY} or (b.timeframe = '{Timeframe.D1}' and b.ts >= w.after[2] and b.return_1d is null)
            or b.ts >= w.after[1] + interval '25 hours' and b.return_1d is null""",
    ),
    Rule(
        name="values_are_bounded",
        holds="Returns are above -1; volatility, range, volume and ratio are 0 or more; nothing is infinite or NaN.",
        broken="have a value outside its bounds",
        severity=Severity.ERROR,
        why="no price above 0 gives such a value, and one of them spoils every mean that includes it.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, {", ".join(f"b.{name}" for name in _BOUNDS)}
            from b where not ({" and ".join(f"coalesce({bound}, true)" for bound in _BOUNDS.values())})""",
    ),
    Rule(
        name="labels_are_known",
        holds="The structure label follows from the highs and lows beside it, which do not exclude each other.",
        broken="have flags that exclude each other, or a label that contradicts them",
        severity=Severity.ERROR,
        why="labels are written by this code alone, from the same values.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.structure_label, b.hh, b.hl, b.lh, b.ll
            from b where b.hh and b.lh or b.hl and b.ll or b.structure_label <> {_STRUCTURE}""",
    ),
    Rule(
        name="features_follow_their_bars",
        holds="No row of features is older than the bar that it was computed from.",
        broken="were computed before their bar was last corrected",
        severity=Severity.ERROR,
        why="a correction and its features are one commit, so these still show the old prices.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.features_computed_at, x.ingested_at as bar_ingested_at
            from b join market_data.bars as x on x.symbol = b.symbol and x.timeframe = b.timeframe and x.ts = b.ts
            where b.features_computed_at < x.ingested_at
            -- A row that a correction leaves as it was is not written again: before features are warm, and where only
            -- the VWAP or the number of trades was corrected.
            and b.atr is not null and (x.volume is null or b.rolling_volume_20 is not null)
            and (x.high, x.low, x.close, x.volume) is distinct from (
                select row(r.high, r.low, r.close, r.volume) from market_data.bar_revisions as r
                where r.symbol = x.symbol and r.timeframe = x.timeframe and r.ts = x.ts
                order by r.superseded_at desc limit 1
            )""",
    ),
)
