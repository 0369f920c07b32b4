"""The rules about splits: closes that jump without a known reason, and splits that are in doubt.

They are run as those of `quality`, on the same `b` and `t`.
"""

# ruff: noqa: S608 - the statements are put together from constants of this package

from __future__ import annotations

import math
from typing import Final

from market_data_pipeline.domain import jumps
from market_data_pipeline.domain.calendar import EXCHANGE_ZONE_NAME
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.reports.quality import ACROSS_RULES, BAR_RULES, FEATURE_RULES, Rule, Severity

_RATIOS: Final = ", ".join(f"('{name}', {math.log(factor)!r})" for name, factor in jumps.RATIOS.items())

# As `domain.jumps`, symbol by symbol, so that no plan of PostgreSQL's compares the bars of all with each other. The
# turnover of the sessions before is read for the few unusual rows only.
_UNEXPLAINED: Final = f"""
    select t.symbol, '{Timeframe.D1}' as timeframe, j.ts, j.previous_ts, j.previous_close, j.close, j.change,
        j.resembles
    from t cross join lateral (
        with splits as materialized (
            select s.factor, s.execution_date::timestamp at time zone '{EXCHANGE_ZONE_NAME}' as since
            from market_data.splits as s
            where s.symbol = t.symbol and s.counts
            and s.execution_date <= (market_data.clock() at time zone '{EXCHANGE_ZONE_NAME}')::date
        ),
        adjusted as materialized (
            select b.ts, b.close * f.factor as close, ln(b.close * f.factor) as level, b.close * b.volume as turnover
            from b cross join lateral (
                select market_data.product(s.factor) as factor from splits as s where b.ts < s.since
            ) as f
            where b.symbol = t.symbol and b.timeframe = '{Timeframe.D1}' and b.close > 0 and b.close < 'infinity'
        ),
        changes as materialized (
            select a.*, a.level - lag(a.level) over series as change, lag(a.ts) over series as previous_ts,
                lag(a.close) over series as previous_close
            from adjusted as a window series as (order by a.ts)
        ),
        middle as materialized (
            select percentile_cont(0.5) within group (order by c.change) as change from changes as c
        ),
        usual as materialized (
            select percentile_cont(0.5) within group (order by abs(c.change - m.change)) as off,
                count(c.change) as changes
            from changes as c cross join middle as m
        )
        select c.*, (
            select k.name from (values {_RATIOS}) as k (name, change)
            where abs(c.change - k.change) <= {jumps.RESEMBLES} order by abs(c.change - k.change) limit 1
        ) as resembles
        from (
            select c.*, lag(c.change) over series as change_before, lead(c.change) over series as change_after
            from changes as c window series as (order by c.ts)
        ) as c
        cross join middle as m
        cross join usual as u
        where case
            when u.changes < {jumps.FEWEST} then abs(c.change) >= {jumps.WITHOUT_HABITS} and (
                abs(c.change) >= {jumps.ALWAYS}
                or exists (
                    select from (values {_RATIOS}) as k (name, change)
                    where abs(c.change - k.change) <= {jumps.RESEMBLES}
                )
            )
            else abs(c.change - m.change) > greatest({jumps.LEAST}, {jumps.DEVIATIONS * jumps.ROBUST} * u.off * sqrt(
                greatest(1, extract(epoch from c.ts - c.previous_ts) / 86400 / {jumps.USUAL_DAYS})))
        end
        and (abs(c.change) >= {jumps.ALWAYS} or not (
            least(abs(c.change + coalesce(c.change_before, 0)), abs(c.change + coalesce(c.change_after, 0)))
            <= {jumps.TAKEN_BACK} * abs(c.change)
            or coalesce(c.turnover >= {jumps.NEWS} * (
                select percentile_cont(0.5) within group (order by p.turnover) from (
                    select x.close * x.volume as turnover from market_data.records_{Timeframe.D1} as x
                    where x.series = (
                        select n.id from market_data.series as n
                        where n.symbol = t.symbol and n.timeframe = '{Timeframe.D1}'
                    ) and x.ts < c.ts
                    order by x.ts desc limit {jumps.NEWS_SESSIONS}
                ) as p
            ), false)
        ))
    ) as j"""

SPLIT_RULES: Final = (
    Rule(
        name="closes_have_no_unexplained_jump",
        holds="No session's adjusted close lies on another level than the one before, beyond what the name does.",
        broken="closes jump without a known reason, the largest first",
        severity=Severity.WARN,
        why="a split may be missing, or the ticker was given to another security; `resembles` is the ratio that the "
        "jump looks like, new shares for old. Crashes, which come with many times the usual turnover, and prints that "
        "the next session takes back are not counted.",
        query=_UNEXPLAINED,
        order="abs(bad.change) desc, 2, 4",
    ),
    Rule(
        name="splits_are_beyond_doubt",
        holds="Each symbol's splits are known, and the vendor's list is at most a day old.",
        broken="doubts about splits, so adjusted prices may be wrong",
        severity=Severity.WARN,
        why="bars are stored as traded and adjusted by what is known; every refresh tries again.",
        query=f"""
            select t.symbol, '{Timeframe.D1}' as timeframe, d.since as ts, d.doubt from t join (
                select s.symbol, s.execution_date::timestamp at time zone '{EXCHANGE_ZONE_NAME}' as since, s.doubt
                from market_data.splits as s where s.doubt is not null
                union all
                select n.symbol, n.seen_at, n.error from market_data.unreadable_splits as n
                union all
                select k.symbol, f.since, f.error
                from market_data.reference_failures as f cross join market_data.symbols as k
                where f.name = 'splits' and k.asset_class = '{AssetClass.US_EQUITY}'
                and f.since < market_data.clock() - interval '1 day'
            ) as d on d.symbol = t.symbol""",
    ),
)

# All rules, by the table whose rows they are about.
RULES: Final = {"bars": (*BAR_RULES, *ACROSS_RULES, *SPLIT_RULES), "features": FEATURE_RULES}
