"""What must hold of stored bars, and how bad it is when it does not.

The way into the database refuses most of these faults bar by bar; here they are looked for in what is stored, whoever
stored it. Severities and tolerances were chosen by what recorded data show: twenty years of day bars of four symbols,
and minutes of ten sessions, break none of the rules. Add here: a rule about bars. Keep out: features (feature_rules).

What must hold between timeframes: day bars against minutes, and coarser bars against those they are made of.

Add here: a rule about bars that compares two timeframes. Keep out: rules about bars one by one (bar_rules).
"""

# ruff: noqa: S608  the SQL is put together from constants of this package

from __future__ import annotations

from typing import Final

from market_data_pipeline.domain.bars import PRICES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.quality.rules import (
    REGULAR_CLOSE,
    REGULAR_OPEN,
    SESSION_DATE,
    SHORTEST,
    SPAN,
    Rule,
    Severity,
    finite,
)

UNIQUE_KEYS: Final = Rule(
    name="keys_are_unique",
    holds="No series holds two rows with the same start.",
    broken="stand twice",
    severity=Severity.ERROR,
    why="the primary key forbids it, so an index is damaged or was dropped, and every sum counts these rows twice.",
    query="select b.symbol, b.timeframe, b.ts, count(*) as copies from b group by 1, 2, 3 having count(*) > 1",
)

BAR_RULES: Final = (
    UNIQUE_KEYS,
    Rule(
        name="bars_are_in_order",
        holds="Each bar starts when the one before it is over, or later.",
        broken="start before the bar before them is over",
        severity=Severity.ERROR,
        why="what happened in the overlap is counted twice.",
        query=f"""
            select * from (
                select b.symbol, b.timeframe, b.ts, lag(b.ts) over series as previous_ts, {SPAN} as length
                from b window series as (partition by b.symbol, b.timeframe order by b.ts)
            ) as o where o.ts < o.previous_ts + o.length""",
    ),
    Rule(
        name="prices_are_positive",
        holds="Open, high, low and close are numbers above 0.",
        broken="have a price that is not a number above 0",
        severity=Severity.ERROR,
        why="returns and logarithms of such prices mean nothing.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close
            from b where not ({" and ".join(finite(f"b.{price}", above="0") for price in PRICES)})""",
    ),
    Rule(
        name="prices_are_consistent",
        holds="low <= open, close <= high.",
        broken="have an open or close outside of low and high",
        severity=Severity.ERROR,
        why="one of the four prices is wrong, and no recorded bar shows it.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close
            from b where b.low > least(b.open, b.close) or b.high < greatest(b.open, b.close)""",
    ),
    Rule(
        name="volume_is_not_negative",
        holds="Volume is a number of 0 or more, and so is the number of trades where the vendor sends one.",
        broken="have a volume or a number of trades that cannot be",
        severity=Severity.ERROR,
        why="sums and ratios of volume are wrong.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.volume, b.trades
            from b where not {finite("b.volume", at_least="0")} or b.trades < 0""",
    ),
    Rule(
        name="vwap_lies_within_the_bar",
        holds="The volume-weighted average price lies between low and high.",
        broken="have an average price outside of low and high",
        severity=Severity.WARN,
        why="the vendor averages trades that its high and low leave out (odd lots, late prints); nothing here uses it.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.low, b.vwap, b.high
            from b where b.vwap < b.low * (1 - 1e-9) or b.vwap > b.high * (1 + 1e-9) or b.vwap = 'nan'""",
    ),
    Rule(
        name="no_bar_from_the_future",
        holds="Every bar was over when it was stored.",
        broken="were stored before they were over",
        severity=Severity.ERROR,
        why="a bar in progress holds part of its trades, and looks ahead when it is read as of an earlier instant.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, b.ingested_at
            from b where b.ts + {SHORTEST} > least(b.ingested_at, market_data.clock())""",
    ),
    Rule(
        name="bars_lie_in_sessions",
        holds="Every bar starts in a session of its exchange, on the session's grid.",
        broken="start outside of every session or off its grid",
        severity=Severity.ERROR,
        why="holidays, early closes and changes of clock are known exactly, so either a time zone or the calendar is "
        "wrong; in twenty years of recorded bars there is none.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, d.session_date, d.opens_at, d.closes_at
            from b left join market_data.sessions as d
            on d.asset_class = b.asset_class and d.session_date = {SESSION_DATE}
            where d.session_date is null or case when b.timeframe = '{Timeframe.D1}' then b.ts <> d.day_start
            else b.ts < d.opens_at or b.ts >= d.closes_at or date_bin({SPAN}, b.ts, d.opens_at) <> b.ts end""",
    ),
    Rule(
        name="every_session_has_its_day_bar",
        holds="Between the first and the last day bar every session has one, unless the vendor confirmed to have none.",
        broken="have no day bar",
        severity=Severity.WARN,
        why="the next refresh asks for it. What was asked for within three days is not counted: it may be confirmed "
        "empty yet.",
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
        broken="session days hold another number of bars than their coverage says",
        severity=Severity.ERROR,
        why="bars and coverage commit together, so rows were lost or added by something else, and no refresh will ask "
        "for that day again.",
        query=f"""
            select coalesce(c.symbol, n.symbol) as symbol, coalesce(c.timeframe, n.timeframe) as timeframe, d.day_start,
                coalesce(c.session_date, n.session_date) as session_date, coalesce(c.rows, 0) as covered,
                coalesce(n.held, 0) as held
            from (
                select b.symbol, b.timeframe, {SESSION_DATE} as session_date, b.asset_class, count(*) as held
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
        holds="The state of each series tells its number of bars, its first and its last one.",
        broken="series have other bars than their state says",
        severity=Severity.ERROR,
        why="freshness, reports and the next refresh go by the state.",
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
)

_SPANS: Final = ", ".join(f"('{t}', interval '{t.minutes} minutes')" for t in Timeframe if not t.is_base)

_ROUNDED: Final = 0.999999999  # volumes have fractions: their sum is not the same in every order

ACROSS_RULES: Final = (
    Rule(
        name="day_volume_holds_the_minutes",
        holds="A day bar's volume is at least that of all 5-minute bars of its session.",
        broken="have less volume than the 5-minute bars of their session",
        severity=Severity.WARN,
        why="a correction may reach minutes and day in different nights, and either is then right by itself. The "
        "vendor's day bars hold the extended hours and trades that belong to no minute; recorded day bars of another "
        "source hold the regular hours' volume to the share (83 to 97 % of the session's), which is as good.",
        query=f"""
            select m.symbol, '{Timeframe.D1}' as timeframe, x.ts, x.volume, m.minutes, m.regular_minutes from (
                select b.symbol, d.session_date, d.day_start, sum(b.volume) as minutes,
                    sum(b.volume) filter (where b.ts >= {REGULAR_OPEN} and b.ts < {REGULAR_CLOSE}) as regular_minutes
                from b join market_data.sessions as d
                on d.asset_class = b.asset_class and d.session_date = {SESSION_DATE}
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
        why="they are made of those bars and of nothing else; a series that waits to be made again is left out.",
        query=f"""
            select c.symbol, c.timeframe, c.ts, c.high, m.high as high_of_5m, c.low, m.low as low_of_5m,
                c.volume, m.volume as volume_of_5m
            from (
                select b.symbol, k.timeframe, date_bin(k.span, b.ts, d.opens_at) as ts,
                    max(b.high) as high, min(b.low) as low, sum(b.volume) as volume
                from b join market_data.sessions as d
                on d.asset_class = b.asset_class and d.session_date = {SESSION_DATE}
                cross join (values {_SPANS}) as k (timeframe, span)
                where b.timeframe = '{Timeframe.M5}'
                group by 1, 2, 3
            ) as m
            join market_data.bars as c on c.symbol = m.symbol and c.timeframe = m.timeframe and c.ts = m.ts
            join market_data.series_state as made on made.symbol = c.symbol and made.timeframe = c.timeframe
            join market_data.series_state as base
            on base.symbol = c.symbol and base.timeframe = '{Timeframe.M5}' and base.revision = made.base_revision
            where c.high <> m.high or c.low <> m.low or abs(c.volume - m.volume) > 1e-9 * m.volume""",
    ),
)
