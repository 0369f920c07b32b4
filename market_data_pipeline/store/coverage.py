"""Coverage in PostgreSQL: how far each session day of a fetched series is stored and settled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.store.copy import StoreConnection

_V = TypeVar("_V")


class CoverageStatus(StrEnum):
    """How far a session day is stored and settled."""

    COMPLETE = "complete"  # settled and stored
    PROVISIONAL = "provisional"  # stored as far as published, fetched again until settled
    EMPTY_CONFIRMED = "empty_confirmed"  # two answers after settling had no bar
    CLAMPED = "clamped"  # before the plan's history
    FAILED = "failed"  # the last attempt failed, or its answer was refused

    @property
    def final(self) -> bool:
        """True when an ordinary refresh does not fetch the day again."""
        return self in (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.CLAMPED)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of one session day of a fetched series.

    Attributes:
        session_date: the exchange-local date.
        status: how far the day is stored and settled.
        rows: bars stored for it.
        fetched_at: when the vendor gave the answer that this row describes, aware UTC.
        reverified_at: when it was last reverified after it had settled, whatever the result.
        doubted_at: since when the vendor's answers about the day have not been believed; None for a day as it has it.
        reason: why its last answer was refused, with the row; None for a day whose answer could be read.
        answer_digest: of the bars that the last answer had for a doubted day, so that the next one can say the same.
        ticker: under which it was requested; None for the symbol, empty for a day that was not, see
            `domain.identity.NOBODY`.
        file_id: the version of the flat file that its bars came from; None for REST.
    """

    session_date: date
    status: CoverageStatus
    rows: int
    fetched_at: datetime
    reverified_at: datetime | None = None
    doubted_at: datetime | None = None
    reason: str | None = None
    answer_digest: str | None = None
    ticker: str | None = None
    file_id: int | None = None

    @property
    def refused(self) -> bool:
        """True when the last answer had a fault in this day, so that it is requested apart from the others."""
        return self.reason is not None


def read_coverage(connection: StoreConnection, series: Series) -> dict[date, Coverage]:
    """Return the coverage of a fetched series by session date; a day that was never fetched is absent."""
    rows = connection.rows(
        """
        select
            session_date, status, rows, fetched_at, rechecked_at as reverified_at, doubted_at, reason, answer_digest,
            ticker, file_id
        from market_data.coverage
        where symbol = %(symbol)s and timeframe = %(timeframe)s
        """,
        series._asdict(),
    )
    return {row["session_date"]: Coverage(**{**row, "status": CoverageStatus(row["status"])}) for row in rows}


def write_coverage(connection: StoreConnection, series: Series, days: Iterable[Coverage], run_id: str) -> None:
    """Insert or replace the coverage of the given session days."""
    write_coverage_of(connection, [(series, day) for day in days], run_id)


def write_coverage_of(connection: StoreConnection, days: Sequence[tuple[Series, Coverage]], run_id: str) -> None:
    """Insert or replace the coverage of session days of several series, each once."""
    import numpy as np

    if not days:
        return
    whose, said = [series for series, _ in days], [day for _, day in days]
    connection.execute(
        """
        insert into market_data.coverage (
            symbol, timeframe, session_date, status, rows, fetched_at, doubted_at, reason, answer_digest, ticker,
            file_id, run_id
        )
        select
            day.symbol, day.timeframe, day.session_date, day.status, day.rows, day.fetched_at, day.doubted_at,
            day.reason, day.answer_digest, day.ticker, day.file_id, %(run_id)s
        from unnest(
            %(symbol)s::text[], %(timeframe)s::text[], %(session_date)s::date[], %(status)s::text[],
            %(rows)s::bigint[], %(fetched_at)s::timestamptz[], %(doubted_at)s::timestamptz[], %(reason)s::text[],
            %(answer_digest)s::text[], %(ticker)s::text[], %(file_id)s::integer[]
        ) as day (
            symbol, timeframe, session_date, status, rows, fetched_at, doubted_at, reason, answer_digest, ticker,
            file_id
        )
        on conflict (symbol, timeframe, session_date) do update set
            status = excluded.status,
            rows = excluded.rows,
            fetched_at = excluded.fetched_at,
            doubted_at = excluded.doubted_at,
            reason = excluded.reason,
            answer_digest = excluded.answer_digest,
            ticker = excluded.ticker,
            file_id = excluded.file_id,
            run_id = excluded.run_id
        """,
        {
            "symbol": [series.symbol for series in whose],
            "timeframe": [str(series.timeframe) for series in whose],
            "session_date": [day.session_date for day in said],
            "status": [str(day.status) for day in said],
            "rows": np.array([day.rows for day in said], "int64"),
            "fetched_at": [day.fetched_at for day in said],
            "doubted_at": _sparse([day.doubted_at for day in said]),
            "reason": _sparse([day.reason for day in said]),
            "answer_digest": _sparse([day.answer_digest for day in said]),
            "ticker": _sparse([day.ticker for day in said]),
            "file_id": _sparse([day.file_id for day in said]),
            "run_id": run_id,
        },
    )


def _sparse(values: list[_V | None]) -> list[_V | None] | None:
    """Return None for a list of nothing but None, which it costs much to send: `unnest` fills up with nulls."""
    return None if all(value is None for value in values) else values


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
    """Mark days whose fetch failed; those that already have another status keep it."""
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


DAY_COLUMNS: Final = ("open", "high", "low", "close", "volume")

_SETTLED: Final = """
    select c.symbol, b.open, b.high, b.low, b.close, b.volume
    from market_data.coverage as c
    join market_data.symbols as s on s.symbol = c.symbol and s.active and s.asset_class = 'us_equity'
    left join market_data.bars as b on b.symbol = c.symbol and b.timeframe = '1d' and b.ts = %(ts)s
    where c.timeframe = '1d' and c.session_date = %(day)s and c.status in ('complete', 'empty_confirmed')
"""

_REOPEN: Final = """
    update market_data.coverage as c
    set status = 'provisional', fetched_at = %(settled_at)s, doubted_at = %(now)s, answer_digest = said.digest
    from unnest(%(symbols)s::text[], %(digests)s::text[]) as said (symbol, digest)
    where c.timeframe = '1d' and c.session_date = %(day)s and c.symbol = said.symbol
"""


def settled_day_bars(connection: sa.Connection, day: date, ts: datetime) -> dict[str, dict[str, float] | None]:
    """Return the day bar (`DAY_COLUMNS`) of each active US symbol whose day is settled; None where it is empty.

    Args:
        connection: to the market data.
        day: the session's date.
        ts: the start of its day bar, aware.
    """
    rows = connection.exec_driver_sql(_SETTLED, {"day": day, "ts": ts}).mappings()
    return {row["symbol"]: None if row["close"] is None else {name: row[name] for name in DAY_COLUMNS} for row in rows}


def reopen_day(
    connection: sa.Connection, day: date, said: Mapping[str, str], settled_at: datetime, now: datetime
) -> None:
    """Make a settled day of `1d` series provisional as of `settled_at`, so that the next refresh fetches it again.

    Args:
        connection: to the market data.
        day: the session's date.
        said: by symbol, the digest of what the vendor said about the day, which counts as a first look.
        settled_at: when the day settled, aware.
        now: when the vendor said it, aware.
    """
    values = {"day": day, "symbols": list(said), "digests": list(said.values())}
    connection.exec_driver_sql(_REOPEN, {**values, "settled_at": settled_at, "now": now})
