"""The API's access to PostgreSQL: few connections, short statements, in threads that the event loop never waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread

from market_data_pipeline.domain.errors import DatabaseBusyError
from market_data_pipeline.store.connection import Role, conninfo, engine, open_connection
from market_data_pipeline.store.prepared import ReaderPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import sqlalchemy as sa

    from market_data_pipeline.store.prepared import PreparedReader

T = TypeVar("T")

# There is a connection for each place in the lanes: a slow report never keeps a series from being read, and neither
# delays the answers to a monitor. Answers of 10,000 records keep Python busy, not
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


def connection_to(url: str) -> str:
    """Return how the API connects to a server: one that has vanished is noticed within seconds."""
    return conninfo(
        url,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,  # ms
    )


class Database:
    """Reads from PostgreSQL in threads, so that the event loop never waits for it.

    Args:
        url: where it reads, which may be a standby.
        as_of: see `connection.engine`.
        writer_url: the server that takes the one statement that writes; None when that is the same.
    """

    def __init__(self, url: str, as_of: datetime | None, writer_url: str | None = None) -> None:
        self.conninfo = connection_to(url)
        self.engine = self._engine(self.conninfo, as_of, REPORT_LANE + HEALTH_LANE)
        self.writer = self.engine if writer_url is None else self._engine(connection_to(writer_url), as_of, REPORT_LANE)
        self.readers = ReaderPool(
            lambda: open_connection(
                self.conninfo,
                Role.READER,
                autocommit=True,
                as_of=as_of,
                settings=_SETTINGS,
                application_name="market-data-api",
            )
        )
        self._series_lane = anyio.CapacityLimiter(SERIES_LANE)
        self._report_lane = anyio.CapacityLimiter(REPORT_LANE)
        self._health_lane = anyio.CapacityLimiter(HEALTH_LANE)

    @staticmethod
    def _engine(conninfo: str, as_of: datetime | None, connections: int) -> sa.Engine:
        return engine(
            conninfo,
            as_of=as_of,
            role=Role.READER,
            application_name="market-data-api",
            pool_size=connections,
            max_overflow=0,
            settings=_SETTINGS,
        )

    async def series(self, work: Callable[[PreparedReader], T]) -> T:
        """Return `work(reader)`, run in a thread of the lane for series.

        Raises:
            DatabaseUnavailableError: the database cannot be reached.
            DatabaseBusyError: no connection is free, a statement took too long, or too many requests are waiting.
        """
        return await _in_lane(self._series_lane, lambda: self.readers.run(work))

    async def report(self, work: Callable[[sa.Engine], T]) -> T:
        """Return `work(engine)`, run in a thread of the lane for reports; raises as `series` does."""
        return await _in_lane(self._report_lane, lambda: work(self.engine))

    async def health(self, work: Callable[[sa.Engine], T]) -> T:
        """Return `work(engine)`, run in a thread of the lane for monitors; raises as `series` does."""
        return await _in_lane(self._health_lane, lambda: work(self.engine))

    def close(self) -> None:
        """Close the connections."""
        self.readers.close()
        self.engine.dispose()
        self.writer.dispose()


async def _in_lane(lane: anyio.CapacityLimiter, work: Callable[[], T]) -> T:
    try:
        with anyio.fail_after(LANE_TIMEOUT_SECONDS):
            await lane.acquire_on_behalf_of(borrower := object())
    except TimeoutError:
        raise DatabaseBusyError("Too many requests are waiting for the database.") from None
    try:
        # The lane is the limit: together they never reach anyio's own limit of 40 threads.
        return await anyio.to_thread.run_sync(work)
    finally:
        lane.release_on_behalf_of(borrower)
