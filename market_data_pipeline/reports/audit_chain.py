"""Whether the audit log and the history of corrections are unbroken: nothing can have been changed or left out unseen.

Add here: what must hold of records that are only ever appended. Keep out: the values of bars and features (quality).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator

APPEND_ONLY: Final = (
    "bar_revisions",
    "dividend_changes",
    "dividend_revisions",
    "ingest_log",
    "ingest_log_days",
    "ingest_log_runs",
    "run_log",
    "securities",
    "split_changes",
    "split_revisions",
    "symbol_history",
    "universe_membership",
)

# `A` is a trigger that also fires where triggers are switched off for a session.
_UNPROTECTED: Final = sa.text("""
    select name from unnest(cast(:tables as text[])) as name
    where not exists (
        select from pg_catalog.pg_trigger as t
        where
            t.tgrelid = to_regclass('market_data.' || name) and t.tgname = name || '_append_only' and t.tgenabled = 'A'
    )
    order by name
""")
# A version ends when its correction is stored, so the next one must not have been stored before.
_BROKEN: Final = sa.text("""
    select count(*), min(symbol || '|' || timeframe || ' ' || ts)
    from (
        select
            v.symbol, v.timeframe, v.ts, v.superseded_at,
            lead(v.ingested_at) over (partition by v.symbol, v.timeframe, v.ts order by v.id nulls last) as next_at
        from (
            select r.symbol, r.timeframe, r.ts, r.ingested_at, r.superseded_at, r.id
            from market_data.bar_revisions as r
            union all
            select b.symbol, b.timeframe, b.ts, b.ingested_at, null, null
            from market_data.bars as b
            inner join (select distinct symbol, timeframe, ts from market_data.bar_revisions) as r
                on b.symbol = r.symbol and b.timeframe = r.timeframe and b.ts = r.ts
        ) as v
    ) as chain
    where next_at < superseded_at
""")
# Runs are recorded before their first series, since migration 0011.
_UNRECORDED: Final = sa.text("""
    select count(distinct l.run_id), min(l.run_id)
    from (
        select run_id, recorded_at as at from market_data.ingest_log
        union all
        select run_id, first_recorded_at from market_data.ingest_log_runs
    ) as l
    where
        l.at > (select min(recorded_at) from market_data.run_log)
        and not exists (select from market_data.run_log as r where r.run_id = l.run_id)
""")
# What leaves the log is added up by day and by run in the same transaction, so both have as many rows of each instant.
_SUMS_DIFFER: Final = sa.text("""
    with days as (select sum(refreshes) as rows, sum(requests) as requests from market_data.ingest_log_days),
    runs as (select sum(cardinality(series)) as rows, sum(requests) as requests from market_data.ingest_log_runs)
    select coalesce(days.rows, 0), coalesce(runs.rows, 0) from days cross join runs
    where (days.rows, days.requests) is distinct from (runs.rows, runs.requests)
""")
_KEEPS_NEWS: Final = sa.text("""
    select exists (
        select from pg_catalog.pg_trigger as t
        where
            t.tgrelid = to_regclass('market_data.ingest_log') and t.tgname = 'ingest_log_keeps_news'
            and t.tgenabled = 'A'
    )
""")


def audit_problems(connection: sa.Connection) -> Iterator[str]:
    """Yield a sentence for each way in which the append-only records are broken."""
    for (name,) in connection.execute(_UNPROTECTED, {"tables": list(APPEND_ONLY)}):
        yield f"market_data.{name} has lost the trigger that keeps it append-only: its rows may have been changed."
    if not connection.execute(_KEEPS_NEWS).scalar_one():
        yield (
            "market_data.ingest_log has lost the trigger that keeps what changed or failed: such rows may have been "
            "summed up as unchanged."
        )
    if differing := connection.execute(_SUMS_DIFFER).one_or_none():
        yield (
            f"market_data.ingest_log_days adds up {differing[0]} rows and market_data.ingest_log_runs {differing[1]}, "
            "or their requests differ: rows of one of them are lost or were changed."
        )
    broken, example = connection.execute(_BROKEN).one()
    if broken:
        yield (
            f"{broken} values in market_data.bar_revisions end after the next one was stored, for example of "
            f"{example}: a clock was set back, or instants were changed."
        )
    runs, run = connection.execute(_UNRECORDED).one()
    if runs:
        yield f"{runs} runs of market_data.ingest_log are not in market_data.run_log, for example {run}: rows are lost."
