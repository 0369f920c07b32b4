"""All series at once, for one page: counts by tier, what fails, what is furthest behind, and a page of symbols.

The counts are of everything; only what is shown is read in full. Keep out: wording for a screen, and what each series'
state means (freshness).
"""

# ruff: noqa: S608 - the statement is put together from constants

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports.freshness import (
    EVERY,
    STATUSES,
    WORST_FIRST,
    Selection,
    TierFreshness,
    counted_cte,
    counts_of,
    lagging_cte,
    series_freshness,
    series_values,
)

if TYPE_CHECKING:
    from market_data_pipeline.reports.models import SeriesFreshness

PAGE: Final = 100  # symbols on one page: 100 kB of HTML
REASONS: Final = 10  # of failures, so that what follows stays in reach
EXAMPLES: Final = 5  # series named for each of them
OUTSIDE: Final = 12  # series outside their RPO that are named


class State(StrEnum):
    """A state that symbols are filtered by: that of one of their series."""

    FRESH = "fresh"
    AGING = "aging"
    STALE = "stale"
    MISSING = "missing"
    NOT_EXPECTED = "not_expected"
    FAILING = "failing"  # its last execution failed
    OUTSIDE = "outside"  # outside its tier's RPO


class Wanted(NamedTuple):
    """Which symbols are listed, in which order.

    Attributes:
        part: those that contain this text, whatever the case of its letters.
        tier: those of it; None for all.
        states: those of which a series is in one of these; all where there is none.
        worst_first: by what is furthest behind, else in alphabetical order; None for the former where all that are
            followed fill more than one page.
        page: from 1 on.
    """

    part: str = ""
    tier: Tier | None = None
    states: frozenset[State] = frozenset()
    worst_first: bool | None = None
    page: int = 1

    @property
    def is_filtered(self) -> bool:
        """Whether some symbols may not be listed."""
        return bool(self.part or self.tier or self.states)


ALL: Final = Wanted()


class Failing(NamedTuple):
    """Series whose last execution failed for the same reason: how many, and the first of them, worst first."""

    error_class: str
    error: str
    series: int
    examples: list[SeriesFreshness]


@dataclass(frozen=True, slots=True)
class Overview:
    """Every series at one instant.

    Attributes:
        tiers: counts of the tiers that have symbols, in their order.
        is_loaded: whether anything was ever computed.
        failing: the `REASONS` most frequent reasons of failures.
        reasons: how many there are.
        outside: the `OUTSIDE` series outside their RPO that are furthest behind.
        matching: how many symbols the filter leaves.
        page: which page of them this is; the last one where fewer are left than were asked for.
        worst_first: whether they are ordered by what is furthest behind.
        symbols: those of the page, each with its series in the order of the timeframes.
    """

    tiers: dict[Tier, TierFreshness]
    is_loaded: bool
    failing: list[Failing]
    reasons: int
    outside: list[SeriesFreshness]
    matching: int
    page: int
    worst_first: bool
    symbols: dict[str, list[SeriesFreshness]]

    @property
    def pages(self) -> int:
        """How many pages of symbols there are, at least 1."""
        return max(1, -(-self.matching // PAGE))

    def total(self, name: str) -> int:
        """Return the sum of a count of `TierFreshness` over the tiers."""
        return sum(getattr(tier, name) for tier in self.tiers.values())


# Whether a symbol has a series in the state: `r` sums up those of its series that lag, the others are fresh.
_ANY: Final[dict[State, str]] = {
    State.FRESH: "coalesce(r.fresh, true) or r.lagging < cardinality(cast(:timeframes as text[]))",
    **{state: f"coalesce(r.{state}, false)" for state in State if state is not State.FRESH},
}
_STATE_COLUMNS: Final = ",\n        ".join(
    [
        *(f"bool_or(listed = '{status}') as {status.lower()}" for status in STATUSES),
        "bool_or(consecutive_failures > 0) as failing",
        "bool_or(alerting) as outside",
    ]
)


def _statement(wanted: Wanted, *, of_failures: bool) -> str:
    selected = Selection(tier=wanted.tier, part=wanted.part).of_symbols("s")
    in_state = " or ".join(f"({_ANY[state]})" for state in sorted(wanted.states)) or "true"
    failures = f"""
failures as materialized (
    select
        coalesce(t.last_error_class, '') as error_class, coalesce(t.last_error, '') as error, count(*) as series,
        (array_agg(json_build_array(r.symbol, r.timeframe) {WORST_FIRST}))[1:{EXAMPLES}] as examples
    from series as r
    inner join market_data.series_state as t on t.symbol = r.symbol and t.timeframe = r.timeframe
    where r.consecutive_failures > 0
    group by 1, 2
),
"""
    failing = f"""
    (
        select json_agg(f) from (
            select f.* from failures as f order by f.series desc, f.error_class, f.error limit {REASONS}
        ) as f
    ) as failing,
    (select count(*) from failures) as reasons
"""
    return f"""
with {lagging_cte()},
{counted_cte()},
{failures if of_failures else ""}
ranked as (
    select
        symbol, count(*) as lagging,
        min(case when expected then coalesce(behind_since, '-infinity') else 'infinity' end) as behind_since,
        {_STATE_COLUMNS}
    from series
    group by symbol
),
matching as materialized (
    select s.symbol, case
        when r.lagging = cardinality(cast(:timeframes as text[])) then r.behind_since
        else least(r.behind_since, instant.now)
    end as behind_since
    from market_data.symbols as s
    inner join objective as o on o.tier = s.tier
    cross join instant
    left join ranked as r on r.symbol = s.symbol
    where s.active {selected} and ({in_state})
),
matched as (select count(*) as symbols from matching)
select
    (select json_agg(c) from counted as c) as tiers,
    exists (
        select from market_data.series_state as t
        inner join market_data.symbols as s on s.symbol = t.symbol
        where s.active and t.features_computed_at is not null
    ) as is_loaded,
    matched.symbols as matching,
    array(
        select m.symbol from matching as m
        order by
            case when coalesce(cast(:worst_first as boolean), (select sum(c.symbols) from counted as c) > {PAGE})
                then m.behind_since end,
            m.symbol
        limit {PAGE} offset :offset
    ) as symbols,
    (
        select json_agg(json_build_array(r.symbol, r.timeframe)) from (
            select r.symbol, r.timeframe from series as r where r.alerting {WORST_FIRST} limit {OUTSIDE}
        ) as r
    ) as outside,
    {failing if of_failures else "null as failing, 0 as reasons"}
from matched
"""


def overview(connection: sa.Connection, wanted: Wanted = ALL, *, of_failures: bool) -> Overview:
    """Return every series at the database's `market_data.clock()`, and one page of symbols.

    Args:
        connection: inside a snapshot.
        wanted: which symbols are listed; the counts are of all.
        of_failures: whether to sum up why executions failed.
    """
    statement = sa.text(_statement(wanted, of_failures=of_failures))
    values = {
        **series_values(EVERY),
        **series_values(Selection(tier=wanted.tier, part=wanted.part)),
        "worst_first": wanted.worst_first,
    }
    page = wanted.page
    found = connection.execute(statement, {**values, "offset": (page - 1) * PAGE}).one()
    if not found.symbols and found.matching:
        page = -(-found.matching // PAGE)
        found = connection.execute(statement, {**values, "offset": (page - 1) * PAGE}).one()
    named = {
        *found.symbols,
        *(symbol for symbol, _ in found.outside or ()),
        *(symbol for reason in found.failing or () for symbol, _ in reason["examples"]),
    }
    series: defaultdict[str, dict[str, SeriesFreshness]] = defaultdict(dict)
    for one in series_freshness(connection, *sorted(named)) if named else ():
        series[one.symbol][one.timeframe] = one
    order = values["timeframes"]
    counts = {one["tier"]: one for one in found.tiers or ()}
    return Overview(
        tiers={tier: counts_of(counts[tier]) for tier in Tier if tier in counts},
        is_loaded=found.is_loaded,
        failing=[
            Failing(one["error_class"], one["error"], one["series"], [series[s][t] for s, t in one["examples"]])
            for one in found.failing or ()
        ],
        reasons=found.reasons,
        outside=[series[symbol][timeframe] for symbol, timeframe in found.outside or ()],
        matching=found.matching,
        page=page if found.matching else 1,
        worst_first=(
            sum(one["symbols"] for one in counts.values()) > PAGE if wanted.worst_first is None else wanted.worst_first
        ),
        symbols={
            symbol: sorted(series[symbol].values(), key=lambda one: order.index(one.timeframe))
            for symbol in found.symbols
        },
    )
