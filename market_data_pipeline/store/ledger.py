"""The ledger in PostgreSQL: coverage per session day, the state of a series, and the audit row of an execution.

Add here: statements on `coverage`, `series_state` and `ingest_log`. Keep out: deciding what is due (domain.due) or
what to ask for (ingest.demand).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date, datetime

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection


class CoverageStatus(StrEnum):
    """How well a session day is held."""

    COMPLETE = "complete"  # settled and stored
    PROVISIONAL = "provisional"  # stored as far as known, read again until settled
    EMPTY_CONFIRMED = "empty_confirmed"  # the vendor gave nothing, twice, after settling
    CLAMPED = "clamped"  # before the plan's history
    FAILED = "failed"  # the last attempt failed

    @property
    def final(self) -> bool:
        """True when the day is not asked for again by an ordinary refresh."""
        return self in (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.CLAMPED)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is known of one session day of a fetched series.

    Attributes:
        session_date: the exchange-local date.
        status: how well it is held.
        rows: bars stored for it.
        fetched_at: when the vendor gave the answer that this speaks of, aware UTC.
        rechecked_at: when it was last asked for again after it had settled, whatever came of it.
        doubted_at: when the answer that this speaks of had no bar of the day, though `rows` are stored.
    """

    session_date: date
    status: CoverageStatus
    rows: int
    fetched_at: datetime
    rechecked_at: datetime | None = None
    doubted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SeriesState:
    """A series' row in `series_state`; the instants are aware UTC, None where there is none yet."""

    tier: str
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    bar_count: int = 0
    feature_count: int = 0
    feature_version: int = 0
    splits_digest: str = ""
    revision: int = 0
    base_revision: int = 0
    quiet_slots: int = 0
    verified_at: datetime | None = None
    next_due_at: datetime | None = None
    features_computed_at: datetime | None = None
    audited_splits: str | None = None
    own_features: str = ""
    settled_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogRow:
    """One execution of one series, as `ingest_log` keeps it; times in seconds.

    `due_at` is when the first bar that the series lacked until this execution fell, or falls, due: what `next_due_at`
    was before it. `rpo` is its tier's promise; the row keeps for how long it was not kept.
    """

    run_id: str
    started_at: datetime
    finished_at: datetime
    status: str
    requests: int = 0
    rate_limited: int = 0
    bytes: int = 0
    pages: int = 0
    rows_fetched: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    features_written: int = 0
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0
    error_class: str | None = None
    error: str | None = None
    warning: str | None = None
    due_at: datetime | None = None
    rpo: timedelta = timedelta(0)


def read_states(connection: StoreConnection, symbol: str) -> dict[Timeframe, SeriesState]:
    """Return the states of a symbol's series."""
    rows = connection.rows(
        """
        select
            timeframe, tier, first_ts, last_ts, bar_count, feature_count, feature_version, splits_digest,
            revision, base_revision, quiet_slots, verified_at, next_due_at, features_computed_at, audited_splits,
            own_features, settled_until
        from market_data.series_state
        where symbol = $1
        """,
        symbol,
    )
    return {Timeframe(row.pop("timeframe")): SeriesState(**row) for row in rows}


def write_state(connection: StoreConnection, series: Series, state: SeriesState) -> None:
    """Store the state of a series after a good execution: its errors are over."""
    connection.execute(
        """
        insert into market_data.series_state (
            symbol, timeframe, tier, first_ts, last_ts, bar_count, feature_count, feature_version, splits_digest,
            revision, base_revision, quiet_slots, verified_at, next_due_at, features_computed_at, audited_splits,
            own_features, settled_until
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
        on conflict (symbol, timeframe) do update set
            first_ts = excluded.first_ts,
            last_ts = excluded.last_ts,
            bar_count = excluded.bar_count,
            feature_count = excluded.feature_count,
            feature_version = excluded.feature_version,
            splits_digest = excluded.splits_digest,
            revision = excluded.revision,
            base_revision = excluded.base_revision,
            quiet_slots = excluded.quiet_slots,
            verified_at = excluded.verified_at,
            next_due_at = excluded.next_due_at,
            features_computed_at = excluded.features_computed_at,
            audited_splits = excluded.audited_splits,
            own_features = excluded.own_features,
            settled_until = excluded.settled_until,
            last_error_class = null,
            last_error = null,
            consecutive_failures = 0
        """,
        *(series.symbol, str(series.timeframe), state.tier, state.first_ts, state.last_ts, state.bar_count),
        *(state.feature_count, state.feature_version, state.splits_digest, state.revision, state.base_revision),
        *(state.quiet_slots, state.verified_at, state.next_due_at, state.features_computed_at),
        *(state.audited_splits, state.own_features, state.settled_until),
    )


def write_failure(connection: StoreConnection, series: Series, tier: str, row: LogRow) -> None:
    """Store that a series failed: its data and what was known of it stay as they are."""
    connection.execute(
        """
        insert into market_data.series_state (
            symbol, timeframe, tier, last_error_class, last_error, consecutive_failures
        )
        values ($1, $2, $3, $4, $5, 1)
        on conflict (symbol, timeframe) do update set
            last_error_class = excluded.last_error_class,
            last_error = excluded.last_error,
            consecutive_failures = series_state.consecutive_failures + 1
        """,
        *(series.symbol, str(series.timeframe), tier, row.error_class, row.error),
    )
    append_log(connection, series, row)


def append_log(connection: StoreConnection, series: Series, row: LogRow) -> None:
    """Add the audit row of one execution, and tell listeners (the read API's cache) which series it was."""
    connection.execute(
        """
        with logged as (
            insert into market_data.ingest_log (
                run_id, symbol, timeframe, started_at, finished_at, status, requests, rate_limited, bytes,
                rows_fetched, rows_inserted, rows_updated, features_written,
                fetch_seconds, store_seconds, compute_seconds, error_class, error, warning, pages,
                outside_rpo_since
            )
            values (
                $1, $2, $3, $4, $5::timestamptz, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $23,
                case when coalesce($20::timestamptz + $21 * interval '1 second', '-infinity') < $5::timestamptz then
                    market_data.outside_rpo_since($2, $3, $20::timestamptz, $21 * interval '1 second', $5::timestamptz)
                end
            )
        )

        select pg_notify('market_data_series', $22)::text
        """,
        *(row.run_id, series.symbol, str(series.timeframe), row.started_at, row.finished_at, row.status),
        *(row.requests, row.rate_limited, row.bytes, row.rows_fetched, row.rows_inserted, row.rows_updated),
        *(row.features_written, row.fetch_seconds, row.store_seconds, row.compute_seconds),
        *(row.error_class, row.error, row.warning, row.due_at, row.rpo.total_seconds(), series.partition_key),
        row.pages,
    )


def read_coverage(connection: StoreConnection, series: Series) -> dict[date, Coverage]:
    """Return what is known of each session day of a fetched series."""
    rows = connection.rows(
        """
        select session_date, status, rows, fetched_at, rechecked_at, doubted_at
        from market_data.coverage
        where symbol = $1 and timeframe = $2
        """,
        *(series.symbol, str(series.timeframe)),
    )
    return {row["session_date"]: Coverage(**{**row, "status": CoverageStatus(row["status"])}) for row in rows}


def write_coverage(connection: StoreConnection, series: Series, days: Iterable[Coverage], run_id: str) -> None:
    """Store what is now known of the given session days."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        insert into market_data.coverage (
            symbol, timeframe, session_date, status, rows, fetched_at, doubted_at, run_id
        )
        select $1, $2, day.session_date, day.status, day.rows, day.fetched_at, day.doubted_at, $8
        from unnest($3::date[], $4::text[], $5::bigint[], $6::timestamptz[], $7::timestamptz[])
            as day (session_date, status, rows, fetched_at, doubted_at)
        on conflict (symbol, timeframe, session_date) do update set
            status = excluded.status,
            rows = excluded.rows,
            fetched_at = excluded.fetched_at,
            doubted_at = excluded.doubted_at,
            run_id = excluded.run_id
        """,
        *(series.symbol, str(series.timeframe)),
        *([day.session_date for day in days], [str(day.status) for day in days], [day.rows for day in days]),
        *([day.fetched_at for day in days], [day.doubted_at for day in days], run_id),
    )


def write_rechecked(connection: StoreConnection, series: Series, days: Iterable[date], now: datetime) -> None:
    """Store that settled days are being asked for again now, so that the next such choice falls on others."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        update market_data.coverage set rechecked_at = $4
        where symbol = $1 and timeframe = $2 and session_date = any($3)
        """,
        *(series.symbol, str(series.timeframe), days, now),
    )


def write_failed_days(
    connection: StoreConnection, series: Series, days: Iterable[date], now: datetime, run_id: str
) -> None:
    """Mark days that were asked for in vain as failed, unless something is held of them."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        insert into market_data.coverage (symbol, timeframe, session_date, status, rows, fetched_at, run_id)
        select $1, $2, day, 'failed', 0, $4, $5
        from unnest($3::date[]) as day
        on conflict (symbol, timeframe, session_date) do update set
            status = 'failed', fetched_at = excluded.fetched_at, run_id = excluded.run_id
        where coverage.status = 'failed'
        """,
        *(series.symbol, str(series.timeframe), days, now, run_id),
    )


def states_of(states: Mapping[Timeframe, SeriesState], timeframe: Timeframe, tier: str) -> SeriesState:
    """Return the state of a series, or that of one never seen."""
    return states.get(timeframe) or SeriesState(tier=tier)
