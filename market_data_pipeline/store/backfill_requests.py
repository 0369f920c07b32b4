"""Backfill requests: series that a client requested before they were computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.store.connection import unavailable_when_lost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.domain.series import Series

_OPEN: Final = """
    select id, status, requested_at from market_data.backfill_requests
    where symbol = %(symbol)s and timeframe = %(timeframe)s and status in ('queued', 'running')
"""

_QUEUE: Final = """
    insert into market_data.backfill_requests (symbol, timeframe, requested_at, requested_by)
    values (%(symbol)s, %(timeframe)s, %(now)s, %(by)s)
    on conflict (symbol, timeframe) where status in ('queued', 'running') do nothing
    returning id, status, requested_at
"""

_FOLLOWED: Final = """
    select r.id, r.symbol, r.timeframe, r.status, r.run_id, r.requested_by, s.tier
    from market_data.backfill_requests as r
    left join market_data.symbols as s on s.symbol = r.symbol and s.active
    where r.status in ('queued', 'running')
    order by r.id
    limit %(limit)s
"""

_MARK: Final = """
    update market_data.backfill_requests set status = %(status)s, run_id = coalesce(%(run_id)s, run_id)
    where id = any(%(ids)s)
"""


class BackfillRequest(NamedTuple):
    """An open row of `backfill_requests`."""

    id: int
    status: str
    requested_at: datetime
    is_new: bool


def request_backfill(source: sa.Engine, series: Series, now: datetime, requested_by: str) -> BackfillRequest:
    """Queue a backfill of `series` unless one is queued or running, and return the open request.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    named: dict[str, Any] = series._asdict()
    writing = source.execution_options(postgresql_readonly=False)  # the read API's connections are read-only
    with unavailable_when_lost(), writing.begin() as connection:
        row = connection.exec_driver_sql(_OPEN, named).one_or_none()
        if row is None:
            queued = connection.exec_driver_sql(_QUEUE, named | {"now": now, "by": requested_by}).one_or_none()
            if queued is not None:
                return BackfillRequest(queued.id, queued.status, queued.requested_at, is_new=True)
            row = connection.exec_driver_sql(_OPEN, named).one()  # another request was queued in between
    return BackfillRequest(row.id, row.status, row.requested_at, is_new=False)


class OpenRequest(NamedTuple):
    """A request that is queued or running; without a tier when its symbol is not tracked."""

    id: int
    symbol: str
    timeframe: str
    status: str
    run_id: str | None
    requested_by: str
    tier: str | None


def open_requests(connection: sa.Connection, limit: int) -> list[OpenRequest]:
    """Return the oldest `limit` requests that are queued or running."""
    return [OpenRequest(*row) for row in connection.exec_driver_sql(_FOLLOWED, {"limit": limit})]


def mark_requests(connection: sa.Connection, ids: Sequence[int], status: str, run_id: str | None = None) -> None:
    """Set the status of requests, and the run that serves them if it is known."""
    if ids:
        connection.exec_driver_sql(_MARK, {"ids": list(ids), "status": status, "run_id": run_id})
