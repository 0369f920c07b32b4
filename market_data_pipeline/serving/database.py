"""The API's access to PostgreSQL: few connections, short statements, in threads that the event loop never waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy as sa
from psycopg.pq import Format

from market_data_pipeline.domain.errors import DatabaseBusyError
from market_data_pipeline.reports.series_records import BINARY_RESULT
from market_data_pipeline.store.connection import Role, conninfo, engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

T = TypeVar("T")

# The lanes share the pool, which has a connection for each place in them: a slow report never keeps a series from being
# read, and neither delays the answers to a monitor. Answers of 10,000 records keep Python busy, not
# PostgreSQL: a wider lane would not be faster on 2 cores.
SERIES_LANE: Final = 4
REPORT_LANE: Final = 2
HEALTH_LANE: Final = 2  # `/health` and `/metrics`, a few milliseconds each
CONNECT_TIMEOUT_SECONDS: Final = 2
LANE_TIMEOUT_SECONDS: Final = 5.0  # a client is asked to retry rather than left in a growing queue
STATEMENT_TIMEOUT_MS: Final = 5_000  # the largest answer takes 70 ms; a statement that takes this long is stuck
_SETTINGS: Final = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(STATEMENT_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(2 * STATEMENT_TIMEOUT_MS),
    "default_transaction_read_only": "on",  # the one statement that writes overrides it
    "jit": "off",  # compiling costs more than any of these statements
}


class Database:
    """Reads from PostgreSQL in threads, so that the event loop never waits for it."""

    def __init__(self, url: str, as_of: datetime | None) -> None:
        # The keepalives detect a vanished server within seconds.
        self.conninfo = conninfo(
            url,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10_000,  # ms
        )
        self.engine = engine(
            self.conninfo,
            as_of=as_of,
            role=Role.READER,
            application_name="market-data-api",
            pool_size=SERIES_LANE + REPORT_LANE + HEALTH_LANE,
            max_overflow=0,
            settings=_SETTINGS,
        )
        sa.event.listen(self.engine, "before_cursor_execute", _choose_format)
        self._series_lane = anyio.CapacityLimiter(SERIES_LANE)
        self._report_lane = anyio.CapacityLimiter(REPORT_LANE)
        self._health_lane = anyio.CapacityLimiter(HEALTH_LANE)

    async def series(self, work: Callable[[sa.Engine], T]) -> T:
        """Return `work(engine)`, run in a thread of the lane for series.

        Raises:
            DatabaseUnavailableError: the database cannot be reached.
            DatabaseBusyError: no connection is free, a statement took too long, or too many requests are waiting.
        """
        return await _in_lane(self._series_lane, self.engine, work)

    async def report(self, work: Callable[[sa.Engine], T]) -> T:
        """Return `work(engine)`, run in a thread of the lane for reports; raises as `series` does."""
        return await _in_lane(self._report_lane, self.engine, work)

    async def health(self, work: Callable[[sa.Engine], T]) -> T:
        """Return `work(engine)`, run in a thread of the lane for monitors; raises as `series` does."""
        return await _in_lane(self._health_lane, self.engine, work)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


async def _in_lane(lane: anyio.CapacityLimiter, source: sa.Engine, work: Callable[[sa.Engine], T]) -> T:
    try:
        with anyio.fail_after(LANE_TIMEOUT_SECONDS):
            await lane.acquire_on_behalf_of(borrower := object())
    except TimeoutError:
        raise DatabaseBusyError("Too many requests are waiting for the database.") from None
    try:
        # The lane is the limit: both together never reach anyio's own limit of 40 threads.
        return await anyio.to_thread.run_sync(work, source)
    finally:
        lane.release_on_behalf_of(borrower)


def _choose_format(
    _connection: object, cursor: Any, _statement: str, _values: object, context: Any, _many: bool
) -> None:
    if context.execution_options.get(BINARY_RESULT):
        cursor.format = Format.BINARY
