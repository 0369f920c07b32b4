"""What runs have done so far, read from the audit log: for a progress display and the table at the end.

Keep out: printing (progress) and Dagster's own history (reports).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class TierTotals:
    """One tier's part of some runs: series, rows, requests, and seconds summed over symbols side by side.

    Attributes:
        done: series whose execution went well and left nothing missing that was due.
        lacking: series whose execution went well, but the vendor did not give bars that were due.
        failed: series whose execution failed.
    """

    tier: str
    done: int = 0
    lacking: int = 0
    failed: int = 0
    changed: int = 0
    bars_written: int = 0
    features_written: int = 0
    requests: int = 0
    rate_limited: int = 0
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0
    latest_symbols: str = ""


@dataclass(frozen=True, slots=True)
class FailedSeries:
    """A series that failed, and why."""

    symbol: str
    timeframe: str
    error_class: str
    error: str


# A run that Dagster retried has two rows for a series; the newest tells how it ended, the sums tell what it cost.
_TOTALS: Final = sa.text("""
    with rows as (
        select
            l.*,
            s.tier,
            coalesce(s.next_due_at <= s.verified_at, true) as lacks,
            row_number() over (partition by l.symbol, l.timeframe order by l.id desc) as newest,
            row_number() over (partition by s.tier order by l.id desc) as age
        from market_data.ingest_log as l
        join market_data.series_state as s using (symbol, timeframe)
        where l.run_id = any(:run_ids)
    )
    select
        tier,
        count(*) filter (where newest = 1 and status <> 'failed' and not lacks) as done,
        count(*) filter (where newest = 1 and status <> 'failed' and lacks) as lacking,
        count(*) filter (where newest = 1 and status = 'failed') as failed,
        count(*) filter (where newest = 1 and status = 'ok') as changed,
        sum(rows_inserted + rows_updated)::bigint as bars_written,
        sum(features_written)::bigint as features_written,
        sum(requests)::bigint as requests,
        sum(rate_limited)::bigint as rate_limited,
        sum(fetch_seconds) as fetch_seconds,
        sum(store_seconds) as store_seconds,
        sum(compute_seconds) as compute_seconds,
        coalesce(string_agg(distinct symbol, ' ') filter (where age <= 6), '') as latest_symbols
    from rows
    group by tier
""")

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

_LACKING: Final = sa.text("""
    select distinct symbol
    from market_data.ingest_log as l
    join market_data.series_state as s using (symbol, timeframe)
    where l.run_id = any(:run_ids) and s.last_error is null and coalesce(s.next_due_at <= s.verified_at, true)
    order by symbol
""")

_HELD: Final = sa.text("""
    select s.tier, count(*) as series, sum(s.bar_count)::bigint as bars, sum(s.feature_count)::bigint as features
    from market_data.series_state as s
    join market_data.symbols as m using (symbol)
    where m.active
    group by s.tier
""")


def tier_totals(engine: sa.Engine, run_ids: Sequence[str]) -> dict[str, TierTotals]:
    """Return what the runs have done so far, by tier; a tier without a finished series is absent."""
    with engine.connect() as connection:
        rows = connection.execute(_TOTALS, {"run_ids": list(run_ids)}).mappings()
        return {row["tier"]: TierTotals(**row) for row in rows}


def failed_series(engine: sa.Engine, run_ids: Sequence[str]) -> list[FailedSeries]:
    """Return the series whose last execution in these runs failed."""
    with engine.connect() as connection:
        rows = connection.execute(_FAILED, {"run_ids": list(run_ids)}).mappings()
        return [FailedSeries(**row) for row in rows]


def lacking_symbols(engine: sa.Engine, run_ids: Sequence[str]) -> list[str]:
    """Return the symbols of which the vendor did not give bars that were due."""
    with engine.connect() as connection:
        return list(connection.execute(_LACKING, {"run_ids": list(run_ids)}).scalars())


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a tier: its series, their bars and their feature rows."""

    tier: str
    series: int
    bars: int
    features: int


def held(engine: sa.Engine) -> dict[str, Held]:
    """Return what is held of each tier's active symbols."""
    with engine.connect() as connection:
        return {row["tier"]: Held(**row) for row in connection.execute(_HELD).mappings()}
