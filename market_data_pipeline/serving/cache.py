"""The response cache: answers, and the records that other answers are cut from, kept until a commit of their series.

The cache is open only while the API listens for commits (`follow_commits`); when that connection is lost, the cache is
emptied and every request reads the database. Two bounds do not depend on it: the bytes kept, and a lifetime.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import psycopg
from cachetools import TTLCache

from market_data_pipeline.domain.errors import PipelineError, UsageError
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.store.connection import Role, open_async_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from datetime import datetime

    from market_data_pipeline.domain.adjustments import Adjustment
    from market_data_pipeline.serving.answers import Answer
    from market_data_pipeline.serving.records import Records

Connection: TypeAlias = psycopg.AsyncConnection[tuple[object, ...]]
T = TypeVar("T")

# Together with 190 MB of code and what is being read they keep the process below 250 MB.
ANSWER_BYTES: Final = 24 * 2**20  # about 200 answers of 100 records, or 2 of the largest
RECORD_BYTES: Final = 16 * 2**20  # the newest 512 records, with features, of 220 series
# Most records kept of one series for cutting: larger windows are few, and would push the others out.
DEEPEST: Final = 2_048
# Of records, and again of the answers cut from them: a correction made by hand, which sends no notification, shows
# within a minute.
LIFETIME_SECONDS: Final = 30.0

CHANNEL: Final = "market_data_series"
HEARTBEAT_SECONDS: Final = 5.0  # a server that vanished silently is noticed after two of these at most
REPLAY_SECONDS: Final = 0.05  # between looks at how far a standby is
FIRST_WAIT_SECONDS: Final = 0.25
LONGEST_WAIT_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class RequestKey(NamedTuple):
    """What requests for the same bytes have in common."""

    path: str
    query: bytes
    accept: str


class Version(NamedTuple):
    """The state of a series as the cache knows it: how often the cache was emptied, and the series' commits since."""

    epoch: int
    commits: int


class RecordsKey(NamedTuple):
    """Which records are kept: those of one endpoint, with one adjustment."""

    series: Series
    records_key: str
    adjustment: Adjustment


class Cached(Protocol):
    """What can be kept until its series changes."""

    @property
    def series(self) -> Series:
        """The series whose next commit outdates it."""

    @property
    def size(self) -> int:
        """Bytes to reserve for it."""

    @property
    def valid_until(self) -> datetime | None:
        """When it is outdated without a commit, aware UTC; None for never."""


K = TypeVar("K")
V = TypeVar("V", bound=Cached)


class SeriesCache(Generic[K, V]):
    """Entries of at most `capacity` bytes in all; the least recently used are dropped first.

    Args:
        capacity: bytes.
        version: returns the version of a series, None while nothing is to be kept.
        clock: returns the pipeline's now, aware UTC.
    """

    def __init__(
        self, capacity: int, version: Callable[[Series], Version | None], clock: Callable[[], datetime]
    ) -> None:
        self._version = version
        self._clock = clock
        self._kept: TTLCache[K, tuple[V, Version]] = TTLCache(
            capacity, LIFETIME_SECONDS, getsizeof=lambda kept: kept[0].size
        )

    @property
    def size(self) -> int:
        """Bytes reserved for what is kept."""
        return int(self._kept.currsize)

    def get(self, key: K) -> V | None:
        """Return what is kept under `key`, unless a commit, a split, a dividend or its age has outdated it."""
        kept: tuple[V, Version] | None = self._kept.get(key)
        if kept is None:
            return None
        found, version = kept
        outdated = found.valid_until is not None and self._clock() >= found.valid_until
        if outdated or version != self._version(found.series):
            del self._kept[key]
            return None
        return found

    def put(self, key: K, new: V, version: Version | None) -> None:
        """Keep `new`, read at `version`, unless its series was committed since or it is larger than the cache."""
        if version is not None and version == self._version(new.series) and new.size <= self._kept.maxsize:
            self._kept[key] = (new, version)

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()


class ResponseCache:
    """Answers by request, and the records that other answers are cut from; used from the event loop only."""

    def __init__(
        self, clock: Callable[[], datetime], answer_bytes: int = ANSWER_BYTES, record_bytes: int = RECORD_BYTES
    ) -> None:
        self.answers: SeriesCache[RequestKey, Answer] = SeriesCache(answer_bytes, self.version, clock)
        self.records: SeriesCache[RecordsKey, Records] = SeriesCache(record_bytes, self.version, clock)
        self._commits: Counter[Series] = Counter()
        self._epoch = 0
        self.is_open = False

    @property
    def size(self) -> int:
        """Bytes reserved for what is kept."""
        return self.answers.size + self.records.size

    def open(self) -> None:
        """Start empty and keep answers; the caller now listens for commits."""
        self.close()
        self.is_open = True

    def close(self) -> None:
        """Drop everything and keep nothing further, not even what is being read now."""
        self.answers.clear()
        self.records.clear()
        self._commits.clear()
        self._epoch += 1
        self.is_open = False

    def version(self, series: Series) -> Version | None:
        """Return what `put` needs; take it before the read begins. None while nothing is kept."""
        return Version(self._epoch, self._commits[series]) if self.is_open else None

    def invalidate(self, series: Series) -> None:
        """Stop returning what was read of `series` before this call: the series has been committed.

        By the closes of day bars, dividends adjust all bars of their symbol.
        """
        for timeframe in Timeframe if series.timeframe is Timeframe.D1 else (series.timeframe,):
            self._commits[Series(series.symbol, timeframe)] += 1


class SingleFlight:
    """Does work once that several callers request at the same time; used from the event loop only."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns, or raise what it raises; callers with the same `key` share one execution."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(partial(self._done, key))
        # Shielded, because the first client may disconnect while the others still wait for the answer.
        found: T = await asyncio.shield(task)
        return found

    def _done(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # retrieved; otherwise asyncio logs it when every caller has disconnected


async def follow_commits(conninfo: str, cache: ResponseCache, standby: str | None = None) -> None:
    """Keep `cache` consistent with the database until cancelled; reconnect indefinitely.

    Args:
        conninfo: the server that is written to.
        cache: what was read from it, or from the standby.
        standby: the server that is read from, if that is another one; it shows a commit some time later.

    Whatever changes an answer notifies `market_data_series` by a trigger, with the partition key of the series, such as
    `AAPL|5m`: a commit of the series, a split, a dividend, a symbol that is followed or no more. It is part of the
    writer's transaction, so it arrives exactly when the new rows become visible.
    """
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            async with AsyncExitStack() as connections:
                writer = await connections.enter_async_context(await _opened(conninfo))
                reader = await connections.enter_async_context(await _opened(standby)) if standby else None
                await writer.execute(f"listen {CHANNEL}")
                cache.open()
                log.info("listening for commits")
                wait = FIRST_WAIT_SECONDS
                await _listen(writer, reader, cache)
        except (psycopg.Error, PipelineError, OSError, TimeoutError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("cannot listen for commits, so nothing is cached: %s", reason)
        finally:
            cache.close()
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def _opened(conninfo: str) -> Connection:
    return await open_async_connection(conninfo, Role.READER, application_name="market-data-api changes")


async def _listen(writer: Connection, reader: Connection | None, cache: ResponseCache) -> None:
    while True:
        if reader is None:
            async for notification in writer.notifies(timeout=HEARTBEAT_SECONDS):
                _outdate(cache, notification.payload)
        else:
            heard = [one async for one in writer.notifies(timeout=HEARTBEAT_SECONDS, stop_after=1)]
            if heard:
                await _replayed(writer, reader)
            for notification in heard:
                _outdate(cache, notification.payload)
        for connection in (writer, reader):
            if connection is not None:
                await _value(connection, "select 1")


def _outdate(cache: ResponseCache, payload: str) -> None:
    try:
        cache.invalidate(Series.from_partition_key(payload))
    except UsageError:
        log.warning("a notification names no series: the whole cache is dropped")
        cache.open()


async def _replayed(writer: Connection, standby: Connection) -> None:
    """Return when the standby shows what the writer's server has committed so far; until then what is kept is true."""
    position = await _value(writer, "select cast(pg_current_wal_insert_lsn() as text)")
    behind = "select pg_is_in_recovery() and pg_last_wal_replay_lsn() < cast(%s as pg_lsn)"
    while await _value(standby, behind, position):
        await asyncio.sleep(REPLAY_SECONDS)


async def _value(connection: Connection, statement: str, *values: object) -> object:
    async with asyncio.timeout(HEARTBEAT_SECONDS):
        row = await (await connection.execute(statement.encode(), values)).fetchone()
    return row and row[0]
