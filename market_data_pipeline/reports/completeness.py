"""Whether every series is complete, what runs have done for that so far, and what is held.

For `up`, `backfill` and what measures them. Keep out: lists of Dagster's runs (executions).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.features.definitions import FEATURE_VERSION
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TierProgress(Counters):
    """What some runs have done for one tier; its seconds are summed over symbols that ran side by side.

    Attributes:
        done: series whose execution succeeded and left no gap that was due.
        with_gaps: series whose execution succeeded, but for which the vendor had no usable bars that
            were due.
        failed: series whose execution failed.
        latest_symbols: the last few that were finished, separated by spaces.
    """

    tier: str
    done: int = 0
    with_gaps: int = 0
    failed: int = 0
    latest_symbols: str = ""

    @property
    def bars_written(self) -> int:
        """Bars that were inserted, changed or withdrawn."""
        return self.rows_inserted + self.rows_updated


@dataclass(frozen=True, slots=True)
class FailedSeries:
    """A series that failed, and why."""

    symbol: str
    timeframe: str
    error_class: str
    error: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a tier: its series, their bars and their feature rows."""

    tier: str
    series: int
    bars: int
    features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCost(Counters):
    """What one execution of one series cost, as `ingest_log` records it."""

    symbol: str
    timeframe: str
    tier: str
    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime
    error: str | None


# Complete: the last execution succeeded, nothing that should be held is due (nothing is where no bars are expected),
# and derived rows come from the base rows that are there now.
_INCOMPLETE: Final = sa.text("""
    select count(*)
    from market_data.symbols as m
    cross join unnest(cast(:timeframes as text[])) as t (timeframe)
    left join market_data.series_state as s on s.symbol = m.symbol and s.timeframe = t.timeframe
    left join market_data.series_state as b on b.symbol = m.symbol and b.timeframe = '5m'
    where m.active and not coalesce(
        s.verified_at is not null
        and s.last_error is null
        and (s.next_due_at > market_data.clock() or s.life in ('halted', 'delisted', 'unknown'))
        and s.feature_version = :feature_version
        and rtrim(s.own_features, '!') = :own_features
        and (s.timeframe in ('5m', '1d') or s.base_revision = b.revision),
        false
    )
""")

_UNLOADED: Final = sa.text("""
    select count(*)
    from market_data.symbols as m
    cross join unnest(cast(:timeframes as text[])) as t (timeframe)
    left join market_data.series_state as s on s.symbol = m.symbol and s.timeframe = t.timeframe
    where m.active and (s.verified_at is null or s.last_error is not null)
""")

_SUMS: Final = ", ".join(
    f"coalesce(sum({counter.name}), 0)::{'bigint' if counter.type == 'int' else 'double precision'} as {counter.name}"
    for counter in fields(Counters)
)
# A run that Dagster retried has two rows for a series: the newest says how it ended, the sums say what it cost.
_PROGRESS: Final = sa.text(f"""
    with rows as (
        select
            l.*,
            s.tier,
            (coalesce(s.next_due_at <= s.verified_at, true) and s.life in ('trading', 'silent'))
            or l.days_refused > 0 as has_gaps,
            row_number() over (partition by l.symbol, l.timeframe order by l.id desc) as newest,
            row_number() over (partition by s.tier order by l.id desc) as age
        from market_data.ingest_log as l
        join market_data.series_state as s using (symbol, timeframe)
        where l.run_id = any(:run_ids)
    )
    select
        tier,
        count(*) filter (where newest = 1 and status <> 'failed' and not has_gaps) as done,
        count(*) filter (where newest = 1 and status <> 'failed' and has_gaps) as with_gaps,
        count(*) filter (where newest = 1 and status = 'failed') as failed,
        {_SUMS},
        coalesce(string_agg(distinct symbol, ' ') filter (where age <= 6), '') as latest_symbols
    from rows
    group by tier
""")  # noqa: S608 - names of Counters

_FAILED: Final = sa.text("""
    select symbol, timeframe, error_class, error
    from (
        select l.*, row_number() over (partition by l.symbol, l.timeframe order by l.id desc) as newest
        from market_data.ingest_log as l
        where l.run_id = any(:run_ids)
    ) as rows
    where newest = 1 and status = 'failed'
    order by symbol, timeframe
""")

_WITH_GAPS: Final = sa.text("""
    select distinct symbol
    from market_data.ingest_log as l
    join market_data.series_state as s using (symbol, timeframe)
    where
        l.run_id = any(:run_ids)
        and s.last_error is null
        and (
            (coalesce(s.next_due_at <= s.verified_at, true) and s.life in ('trading', 'silent'))
            or l.days_refused > 0
        )
    order by symbol
""")

_HELD: Final = sa.text("""
    select m.tier, count(*) as series, sum(s.bar_count)::bigint as bars, sum(s.feature_count)::bigint as features
    from market_data.series_state as s
    join market_data.symbols as m using (symbol)
    where m.active
    group by m.tier
""")

_COSTS: Final = sa.text(f"""
    select
        symbol, timeframe, s.tier, l.run_id, l.status, l.started_at, l.finished_at, l.error,
        {", ".join(f"l.{counter.name}" for counter in fields(Counters))}
    from market_data.ingest_log as l
    join market_data.series_state as s using (symbol, timeframe)
    order by l.id
""")  # noqa: S608 - as above


def incomplete_series(engine: sa.Engine, own_features: str) -> int:
    """Return how many series of the active universe a refresh would change; `own_features` is their digest."""
    values = {
        "timeframes": [str(timeframe) for timeframe in Timeframe],
        "feature_version": FEATURE_VERSION,
        "own_features": own_features,
    }
    with engine.connect() as connection:
        return int(connection.execute(_INCOMPLETE, values).scalar_one())


def unloaded_series(engine: sa.Engine) -> int:
    """Return how many series of the active universe were never refreshed, or failed at their last execution."""
    with engine.connect() as connection:
        values = {"timeframes": [str(timeframe) for timeframe in Timeframe]}
        return int(connection.execute(_UNLOADED, values).scalar_one())


def run_progress(engine: sa.Engine, run_ids: Sequence[str]) -> dict[str, TierProgress]:
    """Return what the runs have done so far, by tier; a tier without a finished series is absent."""
    with engine.connect() as connection:
        rows = connection.execute(_PROGRESS, {"run_ids": list(run_ids)}).mappings()
        return {row["tier"]: TierProgress(**row) for row in rows}


def failed_series(engine: sa.Engine, run_ids: Sequence[str]) -> list[FailedSeries]:
    """Return the series whose last execution in these runs failed."""
    with engine.connect() as connection:
        rows = connection.execute(_FAILED, {"run_ids": list(run_ids)}).mappings()
        return [FailedSeries(**row) for row in rows]


def symbols_with_gaps(engine: sa.Engine, run_ids: Sequence[str]) -> list[str]:
    """Return the symbols of these runs for which the vendor had no usable bars that were due."""
    with engine.connect() as connection:
        return list(connection.execute(_WITH_GAPS, {"run_ids": list(run_ids)}).scalars())


def held(engine: sa.Engine) -> dict[str, Held]:
    """Return what is held of each tier's active symbols."""
    with engine.connect() as connection:
        return {row["tier"]: Held(**row) for row in connection.execute(_HELD).mappings()}


def series_costs(engine: sa.Engine) -> list[SeriesCost]:
    """Return the cost of every execution of every series, in the order in which they ended."""
    with engine.connect() as connection:
        return [SeriesCost(**row) for row in connection.execute(_COSTS).mappings()]
