"""Coverage in PostgreSQL: how well each session day of a fetched series is held."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection


class CoverageStatus(StrEnum):
    """How well a session day is held."""

    COMPLETE = "complete"  # settled and stored
    PROVISIONAL = "provisional"  # stored as far as published, fetched again until settled
    EMPTY_CONFIRMED = "empty_confirmed"  # two answers after settling had no bar
    CLAMPED = "clamped"  # before the plan's history
    FAILED = "failed"  # the last attempt failed

    @property
    def final(self) -> bool:
        """True when an ordinary refresh does not fetch the day again."""
        return self in (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.CLAMPED)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of one session day of a fetched series.

    Attributes:
        session_date: the exchange-local date.
        status: how well it is held.
        rows: bars stored for it.
        fetched_at: when the vendor gave the answer that this row describes, aware UTC.
        reverified_at: when it was last reverified after it had settled, whatever the result.
        doubted_at: when the vendor's answer had no bar of the day, although `rows` are stored; None otherwise.
    """

    session_date: date
    status: CoverageStatus
    rows: int
    fetched_at: datetime
    reverified_at: datetime | None = None
    doubted_at: datetime | None = None


def read_coverage(connection: StoreConnection, series: Series) -> dict[date, Coverage]:
    """Return the coverage of a fetched series by session date; a day that was never fetched is absent."""
    rows = connection.rows(
        """
        select session_date, status, rows, fetched_at, rechecked_at as reverified_at, doubted_at
        from market_data.coverage
        where symbol = %(symbol)s and timeframe = %(timeframe)s
        """,
        series._asdict(),
    )
    return {row["session_date"]: Coverage(**{**row, "status": CoverageStatus(row["status"])}) for row in rows}


def write_coverage(connection: StoreConnection, series: Series, days: Iterable[Coverage], run_id: str) -> None:
    """Insert or replace the coverage of the given session days."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        insert into market_data.coverage (
            symbol, timeframe, session_date, status, rows, fetched_at, doubted_at, run_id
        )
        select
            %(symbol)s, %(timeframe)s, day.session_date, day.status, day.rows, day.fetched_at, day.doubted_at,
            %(run_id)s
        from unnest(
            %(session_date)s::date[], %(status)s::text[], %(rows)s::bigint[], %(fetched_at)s::timestamptz[],
            %(doubted_at)s::timestamptz[]
        ) as day (session_date, status, rows, fetched_at, doubted_at)
        on conflict (symbol, timeframe, session_date) do update set
            status = excluded.status,
            rows = excluded.rows,
            fetched_at = excluded.fetched_at,
            doubted_at = excluded.doubted_at,
            run_id = excluded.run_id
        """,
        {
            **series._asdict(),
            "session_date": [day.session_date for day in days],
            "status": [str(day.status) for day in days],
            "rows": [day.rows for day in days],
            "fetched_at": [day.fetched_at for day in days],
            "doubted_at": [day.doubted_at for day in days],
            "run_id": run_id,
        },
    )


def write_reverified(connection: StoreConnection, series: Series, days: Iterable[date], now: datetime) -> None:
    """Store that settled days are being reverified now, so that the next run chooses others."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        update market_data.coverage set rechecked_at = %(now)s
        where symbol = %(symbol)s and timeframe = %(timeframe)s and session_date = any(%(days)s)
        """,
        {**series._asdict(), "days": days, "now": now},
    )


def write_failed_days(
    connection: StoreConnection, series: Series, days: Iterable[date], now: datetime, run_id: str
) -> None:
    """Mark days whose fetch failed, unless something is held of them."""
    days = list(days)
    if not days:
        return
    connection.execute(
        """
        insert into market_data.coverage (symbol, timeframe, session_date, status, rows, fetched_at, run_id)
        select %(symbol)s, %(timeframe)s, day, 'failed', 0, %(now)s, %(run_id)s
        from unnest(%(days)s::date[]) as day
        on conflict (symbol, timeframe, session_date) do update set
            status = 'failed', fetched_at = excluded.fetched_at, run_id = excluded.run_id
        where coverage.status = 'failed'
        """,
        {**series._asdict(), "days": days, "now": now, "run_id": run_id},
    )
