"""What happens when somebody asks for a series that was never computed: the wish is noted, once.

The one place where the API writes. A sensor turns each queued request into a run.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.serving.formats import instant
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.store.connection import unavailable_when_lost

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.domain.series import Series

REQUESTED_BY: Final = "api"
ASK_AGAIN_AFTER: Final = 60  # seconds; the sensor looks twice a minute and a series takes a few seconds

_OPEN: Final = sa.text("""
    select id, status, requested_at from market_data.backfill_requests
    where symbol = :symbol and timeframe = :timeframe and status in ('queued', 'running')
""")

_QUEUE: Final = sa.text("""
    insert into market_data.backfill_requests (symbol, timeframe, requested_at, requested_by)
    values (:symbol, :timeframe, :now, :by)
    on conflict (symbol, timeframe) where status in ('queued', 'running') do nothing
    returning id, status, requested_at
""")


class BackfillRequest(NamedTuple):
    """An open row of `backfill_requests`."""

    id: int
    status: str
    requested_at: datetime
    is_new: bool


def request_backfill(source: sa.Engine, series: Series, now: datetime) -> BackfillRequest:
    """Queue a backfill of `series` unless one is queued or running, and return it.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    named: dict[str, Any] = {"symbol": series.symbol, "timeframe": str(series.timeframe)}
    writing = source.execution_options(postgresql_readonly=False)  # the sessions read only
    with unavailable_when_lost(), writing.begin() as connection:
        row = connection.execute(_OPEN, named).one_or_none()
        if row is None:
            queued = connection.execute(_QUEUE, named | {"now": now, "by": REQUESTED_BY}).one_or_none()
            if queued is not None:
                return BackfillRequest(queued.id, queued.status, queued.requested_at, is_new=True)
            row = connection.execute(_OPEN, named).one()  # somebody else was quicker
    return BackfillRequest(row.id, row.status, row.requested_at, is_new=False)


def missing_problem(series: Series, request: BackfillRequest, what: str) -> Problem:
    """Return the 404 for a series without data; `what` it lacks, for example `features`."""
    asked = instant(request.requested_at)
    state = (
        f"A backfill was queued just now, at {asked}"
        if request.is_new
        else f"A backfill was already asked for at {asked} and is {request.status}"
    )
    return Problem(
        HTTPStatus.NOT_FOUND,
        f"{series.symbol} is tracked, but its {series.timeframe} {what} have never been computed. {state}: "
        f"ask again in a minute.",
        headers={"retry-after": str(ASK_AGAIN_AFTER)},
        symbol=series.symbol,
        timeframe=str(series.timeframe),
        freshness={"status": "MISSING"},
        backfill_request={
            "id": request.id,
            "status": request.status,
            "requested_at": asked,
            "already_requested": not request.is_new,
        },
    )
