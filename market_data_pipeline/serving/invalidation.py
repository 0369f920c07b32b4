"""Hearing of commits: PostgreSQL notifies `market_data_series` with `AAPL|5m` whenever that series commits.

The notification is part of the writer's transaction, so it comes exactly when the new rows can be seen. While the
connection stands the shelf is open; when it is lost, or silent beyond a heartbeat, the shelf is closed and emptied.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import psycopg

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.serving.cache import Shelf, Stock

CHANNEL: Final = "market_data_series"
HEARTBEAT_SECONDS: Final = 5.0  # a server that vanished without a word is noticed after two of these at the most
FIRST_WAIT_SECONDS: Final = 0.25
LONGEST_WAIT_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


async def follow_changes(conninfo: str, shelf: Shelf, renew: Callable[[Sequence[Stock]], None]) -> None:
    """Keep `shelf` true to the database until cancelled; reconnects for ever.

    `renew` is given the stocks that were dropped and will be asked for again.
    """
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                conninfo, autocommit=True, application_name="market-data-api changes"
            )
            async with connection:
                await connection.execute(f"listen {CHANNEL}")
                shelf.open()
                log.info("following changes")
                wait = FIRST_WAIT_SECONDS
                await _listen(connection, shelf, renew)
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.warning("not hearing of changes, so nothing is cached: %s", type(error).__name__)
        finally:
            shelf.close()
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def _listen(
    connection: psycopg.AsyncConnection[tuple[object, ...]], shelf: Shelf, renew: Callable[[Sequence[Stock]], None]
) -> None:
    while True:
        async for notification in connection.notifies(timeout=HEARTBEAT_SECONDS):
            try:
                renew(shelf.drop(Series.from_partition_key(notification.payload)))
            except UsageError:
                log.warning("a change without a series: everything cached is thrown away")
                shelf.open()
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            await connection.execute("select 1")
