"""All that is known of one series besides its bars: freshness, coverage, gaps, corrections and executions.

For the page of a series. Keep out: bars and features themselves (series_records), and wording for a screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.attainment import rpo_attainment
from market_data_pipeline.reports.freshness import series_freshness
from market_data_pipeline.reports.gaps import History, read_history, series_gaps
from market_data_pipeline.reports.securities import SecurityFacts, security_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.reports.models import Attainment, SeriesFreshness, SeriesGaps
    from market_data_pipeline.store.coverage import CoverageStatus

CORRECTIONS: Final = 50  # the newest, as many as a reader looks through; the count beside them is exact
EXECUTIONS: Final = 20
SUGGESTED: Final = 500  # symbols, 15 kB of a page
BAR_VALUES: Final = ("open", "high", "low", "close", "volume", "vwap", "trades")


class Day(NamedTuple):
    """A session day of the history, its coverage (None: never requested), and whether it has bars that are due."""

    session_date: date
    status: CoverageStatus | None
    rows: int
    is_due: bool


class Correction(NamedTuple):
    """A version of a bar that was replaced, as traded and not adjusted, with the values that changed."""

    ts: datetime
    superseded_at: datetime
    run_id: str
    changes: tuple[tuple[str, float | None, float | None], ...]  # name, old, new
    withdrawn: bool  # the vendor no longer has such a bar


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """What is known of one series; instants are aware UTC.

    Attributes:
        series: the series.
        freshness: of the symbol's series, in the order of the timeframes.
        held: `bar_count`, `feature_count`, `first_ts`, `last_ts` of the series; empty before it is first loaded.
        attainment: of its RPO, by window.
        days: its history's session days, ascending; of its base where it is resampled.
        gaps: of its base where it is resampled.
        corrections: the newest `CORRECTIONS`, newest first.
        correction_count: how many there are in all.
        executions: rows of the audit log, newest first.
        splits: known ones, newest first.
        dividends: the latest three, coming ones included, newest first.
        request: `requested_at` and `status` of the open backfill request; None without one.
        previous: the followed symbol before this one in its tier, in alphabetical order; None for the first.
        following: the one after it.
        symbols: all that are followed, in alphabetical order, as far as they are no more than `SUGGESTED`; else empty.
        security: which security the symbol is; None when that is not known.
    """

    series: Series
    freshness: list[SeriesFreshness]
    held: dict[str, Any]
    attainment: list[Attainment]
    days: list[Day]
    gaps: SeriesGaps
    corrections: list[Correction]
    correction_count: int
    executions: list[dict[str, Any]]
    splits: list[dict[str, Any]]
    dividends: list[dict[str, Any]]
    request: dict[str, Any] | None
    previous: str | None
    following: str | None
    symbols: list[str]
    security: SecurityFacts | None = None


_SYMBOLS: Final = sa.text("select symbol from market_data.symbols where active order by symbol limit :limit")

_NEIGHBOURS: Final = sa.text("""
    select max(symbol) filter (where symbol < :symbol), min(symbol) filter (where symbol > :symbol)
    from market_data.symbols
    where active and tier = :tier
""")

_HELD: Final = sa.text("""
    select bar_count, feature_count, first_ts, last_ts from market_data.series_state
    where symbol = :symbol and timeframe = :timeframe
""")

# Each version was replaced by the next one of the same bar, the last of them by what is stored now.
_CORRECTIONS: Final = sa.text(f"""
    with newest as (
        select r.* from market_data.bar_revisions as r
        where r.symbol = :symbol and r.timeframe = :timeframe
        order by r.id desc
        limit :limit
    )

    select
        o.ts, o.superseded_at, o.run_id, n.ts is null as withdrawn,
        {", ".join(f"o.{name}, n.{name} as new_{name}" for name in BAR_VALUES)}
    from newest as o
    left join lateral (
        select v.* from (
            select r.id, r.ts, {", ".join(f"r.{name}" for name in BAR_VALUES)}
            from market_data.bar_revisions as r
            where r.symbol = o.symbol and r.timeframe = o.timeframe and r.ts = o.ts and r.id > o.id
            union all
            select null, b.ts, {", ".join(f"b.{name}" for name in BAR_VALUES)}
            from market_data.bars as b
            where b.symbol = o.symbol and b.timeframe = o.timeframe and b.ts = o.ts
        ) as v
        order by v.id nulls last
        limit 1
    ) as n on true
    order by o.id desc
""")  # noqa: S608 - the names are constants of this module

_CORRECTION_COUNT: Final = sa.text(
    "select count(*) from market_data.bar_revisions where symbol = :symbol and timeframe = :timeframe"
)

_EXECUTIONS: Final = sa.text("""
    select
        run_id, started_at, finished_at, status, requests, rate_limited, rows_fetched, rows_inserted, rows_updated,
        features_written, fetch_seconds, store_seconds, compute_seconds, error_class, error, warning
    from market_data.ingest_log
    where symbol = :symbol and timeframe = :timeframe
    order by id desc
    limit :limit
""")

_SPLITS: Final = sa.text("""
    select execution_date, split_from, split_to from market_data.splits
    where symbol = :symbol and counts order by 1 desc, factor
""")

_DIVIDENDS: Final = sa.text("""
    select ex_date, amount, currency, type from market_data.dividends
    where symbol = :symbol order by ex_date desc, amount limit 3
""")

_REQUEST: Final = sa.text("""
    select requested_at, status from market_data.backfill_requests
    where symbol = :symbol and timeframe = :timeframe and status in ('queued', 'running')
""")


def series_report(
    connection: sa.Connection, series: Series, timing: Timing, plan: Plan, history_days: int
) -> SeriesReport | None:
    """Return what is known of `series`; None when its symbol is not followed.

    Args:
        connection: inside a snapshot.
        series: any timeframe of any symbol.
        timing: calendar, plan and the instant it is now.
        plan: the vendor's subscription, which limits the history.
        history_days: calendar days of history that the series should hold.
    """
    freshness = series_freshness(connection, series.symbol)
    if not freshness:
        return None
    named = {"symbol": series.symbol, "timeframe": str(series.timeframe)}
    held = connection.execute(_HELD, named).mappings().one_or_none()
    base = Series(series.symbol, series.timeframe.base)
    history = read_history(connection, base, timing, plan, history_days)
    found = connection.execute(_CORRECTIONS, {**named, "limit": CORRECTIONS}).mappings()
    request = connection.execute(_REQUEST, named).mappings().one_or_none()
    order = list(Timeframe)
    tier = freshness[0].tier
    previous, following = connection.execute(_NEIGHBOURS, {"symbol": series.symbol, "tier": tier}).one()
    symbols = list(connection.execute(_SYMBOLS, {"limit": SUGGESTED + 1}).scalars())
    return SeriesReport(
        series=series,
        freshness=sorted(freshness, key=lambda one: order.index(Timeframe(one.timeframe))),
        held=dict(held) if held else {},
        attainment=rpo_attainment(connection, series),
        days=_days(history),
        gaps=series_gaps(history),
        corrections=[_correction(row) for row in found],
        correction_count=connection.execute(_CORRECTION_COUNT, named).scalar_one(),
        executions=[dict(row) for row in connection.execute(_EXECUTIONS, {**named, "limit": EXECUTIONS}).mappings()],
        dividends=[dict(row) for row in connection.execute(_DIVIDENDS, {"symbol": series.symbol}).mappings()],
        splits=[dict(row) for row in connection.execute(_SPLITS, {"symbol": series.symbol}).mappings()],
        request=dict(request) if request else None,
        previous=previous,
        following=following,
        symbols=symbols if len(symbols) <= SUGGESTED else [],
        security=security_of(connection, series.symbol),
    )


def _days(history: History) -> list[Day]:
    days = []
    for session in history.sessions:
        known = history.coverage.get(session.date)
        is_due = history.timing.served_until(session, history.series.timeframe) is not None
        days.append(Day(session.date, known.status if known else None, known.rows if known else 0, is_due))
    return days


def _correction(row: Any) -> Correction:
    changes: Sequence[tuple[str, float | None, float | None]] = [
        (name, row[name], row[f"new_{name}"]) for name in BAR_VALUES
    ]
    return Correction(
        row["ts"],
        row["superseded_at"],
        row["run_id"],
        tuple(change for change in changes if row["withdrawn"] or change[1] != change[2]),
        row["withdrawn"],
    )
