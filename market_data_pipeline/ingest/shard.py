"""Refresh many symbols concurrently: one that fails never stops the others, and never goes unreported.

Add here: how work is spread over threads and how a failure is isolated. Keep out: what is done for one symbol
(refresh) and what Dagster makes of the outcomes.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError
from market_data_pipeline.domain.series import Series
from market_data_pipeline.ingest.first_load import batches, first_load
from market_data_pipeline.ingest.market import Market, read_market
from market_data_pipeline.ingest.outcome import Pending, SeriesOutcome, SymbolRequest, failed_outcome
from market_data_pipeline.ingest.refresh import Run, fail_series, refresh_symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection


log = logging.getLogger(__name__)

# An abandoned run's threads get this long to finish the statement they are in; the database rolls back the rest.
_LEAVE_SECONDS: Final = 5.0

# Threads in addition to one per symbol fetched at once: while one stores its symbol, another fetches. Where symbols are
# refreshed one at a time, there is none.
_STORING: Final = 1


def refresh_shard(
    requests: Sequence[SymbolRequest],
    *,
    pipeline: Pipeline,
    run_id: str,
    full: bool = False,
    spent: Counters = NOTHING,
) -> Iterator[SeriesOutcome]:
    """Refresh the symbols and yield each series' outcome as it commits.

    `max_concurrent_symbols` are fetched at a time; what has arrived is stored while others are fetched.

    Every requested series has exactly one outcome, and one audit log row unless the database itself is lost; a series
    that fetches years of history has a row for each part (`request_windows.PART_BASE_BARS`). A failure that stops the
    run (a refused key, a lost database) fails the symbols that were not started, without fetching them.

    Args:
        requests: the symbols, each once; they are started in this order.
        pipeline: vendor, database, clock and plan.
        run_id: the run, as the audit log names it.
        full: fetch and compare everything again.
        spent: what the run has already counted, reported with its first series.
    """
    shard = _Shard(requests, Run(pipeline, run_id, Market(), Pending(spent), full))
    threads = [
        Thread(target=shard.work, name=f"refresh-{number}", daemon=True)
        for number in range(min(shard.workers, len(requests)))
    ]
    shard.prepare()
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            outcome = shard.outcomes.get()
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        shard.stop.set()
        for thread in threads:
            thread.join(_LEAVE_SECONDS)
        shard.leave()


class _Shard:
    """The symbols still to refresh, and where their outcomes go."""

    def __init__(self, requests: Sequence[SymbolRequest], run: Run) -> None:
        self.waiting = deque(requests)
        self.together: deque[list[SymbolRequest]] = deque()  # loaded for the first time by file (first_load)
        self.earlier: dict[Series, SeriesOutcome] = {}  # of those of which the days after their files are still due
        self.run = run
        self.outcomes: SimpleQueue[SeriesOutcome | None] = SimpleQueue()
        self.stop = Event()
        self.stopped_by: PipelineError | None = None
        self.unreachable: DatabaseUnavailableError | None = None
        most = run.pipeline.max_concurrent_symbols
        self.workers = most + _STORING if most > 1 else 1
        self._fetching = BoundedSemaphore(most)
        self._lock = Lock()
        self._first: StoreConnection | None = None  # opened by `prepare`; one thread takes it over
        self._taken = True

    def prepare(self) -> None:
        """Read what all symbols share; a failure to read the splits fails every symbol."""
        if not self.waiting:
            return
        pipeline = self.run.pipeline
        try:
            connection = pipeline.connect()
            before = pipeline.client.usage
            with ExitStack() as unless_kept:
                unless_kept.callback(connection.close)
                try:
                    bulk = pipeline.bulk_load(connection)
                    market = read_market(
                        pipeline,
                        connection,
                        self.waiting,
                        full=self.run.full,
                        by_day=not self.run.full and bulk is None,
                    )
                finally:
                    self.run.pending.add(pipeline.client.usage - before)
                unless_kept.pop_all()
            self.run.pending.add(NOTHING, market.warning)
            self.run = replace(self.run, market=market, bulk=bulk)
            together, alone = batches(self.run, self.waiting)
            self.together, self.waiting = deque(together), deque(alone)
            self._first, self._taken = connection, False
        except PipelineError as error:
            self.stopped_by = error

    def leave(self) -> None:
        """Close the connection that no thread took."""
        if not self._taken and self._first is not None:
            self._first.close()

    def work(self) -> None:
        """Refresh symbols until none is left: the body of one thread."""
        connection: StoreConnection | None = None
        try:
            while self.together and not self.stop.is_set():
                connection = self._batch(connection)
            while not self.stop.is_set():
                try:
                    request = self.waiting.popleft()
                except IndexError:
                    return
                connection = self._symbol(request, connection)
        finally:
            try:
                if connection is not None:
                    connection.close()
            finally:
                self.outcomes.put(None)  # whatever happens: `refresh_shard` waits for it

    def _batch(self, connection: StoreConnection | None) -> StoreConnection | None:
        """Load some symbols at once; those that cannot be, and all if it fails, wait to be refreshed one by one."""
        try:
            requests = self.together.popleft()
        except IndexError:
            return connection
        if self.stopped_by is not None:
            self.waiting.extend(requests)
            return connection
        try:
            connection = self._connected(connection)
            loaded = first_load(self.run, connection, requests)
        except BaseException as error:  # noqa: BLE001  as for one symbol
            failure = error if isinstance(error, PipelineError) else _unexpected(requests[0], error)
            if failure.stops_run and not isinstance(failure, DatabaseUnavailableError):
                self.stopped_by = self.stopped_by or failure
            self.waiting.extend(requests)
            if connection is not None:
                connection.close()
            return None
        self.earlier |= loaded.earlier
        self.waiting.extend(loaded.rest)
        for outcome in loaded.outcomes:
            self.outcomes.put(outcome)
        return connection

    def _symbol(self, request: SymbolRequest, connection: StoreConnection | None) -> StoreConnection | None:
        """Refresh one symbol and return the connection, or None when it is no longer usable."""
        done: set[Series] = set()
        with ExitStack() as fetching:  # ends when nothing more is fetched, at the latest with this block
            try:
                connection = self._connected(connection)
                self._fetching.acquire()
                fetching.callback(self._fetching.release)
                if self.stop.is_set():
                    return connection
                if self.stopped_by is not None:
                    raise self.stopped_by
                try:
                    self._refresh(request, connection, done, fetching.close)
                except DatabaseUnavailableError:
                    if not connection.closed:
                        raise
                    # One connection was ended; whether the database is lost shows when another one is opened.
                    connection = self._connected(None)
                    log.warning("%s is refreshed again: its connection to PostgreSQL was lost.", request.symbol)
                    rest = [each for each in request.timeframes if Series(request.symbol, each) not in done]
                    self._refresh(replace(request, timeframes=tuple(rest)), connection, done, fetching.close)
            except BaseException as error:  # noqa: BLE001  one symbol is isolated here; interrupts reach the main thread only
                failure = error if isinstance(error, PipelineError) else _unexpected(request, error)
                if failure.stops_run or self.stopped_by is not None:
                    self.stopped_by = self.stopped_by or failure
                self._fail_rest(request, connection, failure, done)
                if not isinstance(error, PipelineError) or isinstance(error, DatabaseUnavailableError):
                    if connection is not None:
                        connection.close()
                    return None
        return connection

    def _refresh(
        self, request: SymbolRequest, connection: StoreConnection, done: set[Series], on_fetched: Callable[[], None]
    ) -> None:
        """Report the symbol's series as they commit, and add them to `done`."""
        for outcome in refresh_symbol(self.run, connection, request, on_fetched=on_fetched):
            done.add(outcome.series)
            self.outcomes.put(outcome.after(self.earlier.get(outcome.series)))

    def _connected(self, connection: StoreConnection | None) -> StoreConnection:
        """Return the thread's connection, or a new one; once opening one has failed, no thread tries again."""
        if connection is not None and not connection.closed:
            return connection
        if self.unreachable is not None:
            raise self.unreachable
        with self._lock:
            taken, self._taken = self._taken, True
        if not taken and self._first is not None:
            return self._first
        try:
            return self.run.pipeline.connect()
        except DatabaseUnavailableError as error:
            self.unreachable = error
            raise

    def _fail_rest(
        self, request: SymbolRequest, connection: StoreConnection | None, failure: PipelineError, done: set[Series]
    ) -> None:
        """Report the symbol's series that have no outcome yet as failed, recorded where the database allows it."""
        rest = [each for each in request.timeframes if Series(request.symbol, each) not in done]
        recorded = 0
        if connection is not None and not connection.closed:
            try:
                for outcome in fail_series(self.run, connection, request, rest, failure):
                    self.outcomes.put(outcome)
                    recorded += 1
            except PipelineError as lost:
                failure = lost
        for timeframe in rest[recorded:]:
            self.outcomes.put(failed_outcome(Series(request.symbol, timeframe), request.tier, failure))


def _unexpected(request: SymbolRequest, error: BaseException) -> PipelineError:
    log.exception("Refreshing %s failed unexpectedly", request.symbol)
    return PipelineError(
        f"Refreshing {request.symbol} failed unexpectedly ({type(error).__name__}: {error}); "
        "the run's log has the traceback."
    )
