"""What a rule about stored values is, and how its SQL speaks of bars, features and sessions.

A rule's query selects the rows that break it from `b`: the bars (or features) of one tier's active symbols, with their
`asset_class`. Its first columns are the keys symbol, timeframe and ts; the others are the values that show what is
wrong. `market_data.sessions` is the calendar. Add here: SQL that several rules need. Keep out: the rules themselves
(bar_rules, feature_rules) and running them (expectations).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe


class Severity(StrEnum):
    """What a broken rule means for whoever reads the values."""

    ERROR = "error"  # values are wrong, or rows are missing or double: do not use these series before it is mended
    WARN = "warn"  # odd, and known to come from the vendor or to mend itself: look at it when it stays


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule about the rows of `market_data.bars` or `market_data.features`."""

    name: str  # of the asset check
    holds: str  # a sentence: what is so
    broken: str  # what is wrong with the rows that break it, behind their number: `3 rows …`
    severity: Severity
    why: str  # of that severity, and of a tolerance if there is one
    query: str  # selects the rows that break it

    @property
    def description(self) -> str:
        """What the check's page says."""
        return f"{self.holds} {self.severity.value.capitalize()}: {self.why}"


def by_timeframe(column: str, values: dict[Timeframe, str]) -> str:
    """Return the SQL expression that chooses a value by a timeframe column."""
    whens = " ".join(f"when '{timeframe}' then {value}" for timeframe, value in values.items())
    return f"case {column} {whens} end"


# The nominal length of a bar. A day bar is an hour shorter when clocks go forward.
SPAN: Final = by_timeframe(
    "b.timeframe",
    {t: "interval '23 hours'" if t is Timeframe.D1 else f"interval '{t.minutes} minutes'" for t in Timeframe},
)

# A session's last 4h bar may be cut short by an early close, so that it is over after one hour.
SHORTEST: Final = by_timeframe(
    "b.timeframe",
    {
        t: {Timeframe.H4: "interval '1 hour'", Timeframe.D1: "interval '23 hours'"}.get(
            t, f"interval '{t.minutes} minutes'"
        )
        for t in Timeframe
    },
)

_ZONE: Final = " ".join(f"when '{each}' then '{calendar_for(each).tz.key}'" for each in AssetClass)
SESSION_DATE: Final = f"cast(b.ts at time zone (case b.asset_class {_ZONE} end) as date)"

# A session with its regular hours: 09:30 to 16:00 New York, to 13:00 on early closes; round-the-clock markets have no
# others.
REGULAR_OPEN: Final = "case d.asset_class when 'crypto' then d.opens_at else d.opens_at + interval '330 minutes' end"
REGULAR_CLOSE: Final = "case d.asset_class when 'crypto' then d.closes_at else d.closes_at - interval '4 hours' end"


def finite(column: str, *, above: str = "", at_least: str = "") -> str:
    """Return the SQL condition that a number is within its bound and neither NaN nor infinite.

    NULL makes it NULL. PostgreSQL sorts NaN above every number, so that one comparison refuses both.
    """
    low = f"{column} > {above}" if above else f"{column} >= {at_least}" if at_least else f"{column} > '-infinity'"
    return f"({low} and {column} < 'infinity')"


# `t` are the tier's symbols and `b` their rows; a rule that names `b` twice is to be planned as a whole. `{batch}` is
# left for Great Expectations, which puts the rows of `table_rows` there.
_STATEMENT: Final = """
with t as (
    select s.symbol, s.asset_class from market_data.symbols as s where s.tier = '{tier}' and s.active
),
b as not materialized (
    select r.*, t.asset_class from {{batch}} as r join t on t.symbol = r.symbol
)
select count(*) over () as rows_in_all, bad.* from ({query}) as bad order by 2, 3, 4 limit {sample}"""


def rule_statement(rule: Rule, tier: Tier, sample: int) -> str:
    """Return the statement that yields the first `sample` rows of a tier that break a rule, each with their number."""
    return _STATEMENT.format(tier=tier.value, query=rule.query, sample=sample)


def table_rows(table: str) -> str:
    """Return the query for all rows of `market_data.<table>`."""
    return f"select * from market_data.{table}"  # noqa: S608 - `bars` or `features`
