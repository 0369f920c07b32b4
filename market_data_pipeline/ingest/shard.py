"""What a run asks once for all its symbols: the market's splits, and its newest day bars.

Add here: another answer that every symbol of a run shares. Keep out: what a symbol asks for itself (asking).

Many symbols side by side; one failing never stops the others, and is never silent.

Add here: how work is spread over threads and how a failure is isolated. Keep out: what is done for one symbol
(refresh) and what Dagster makes of the outcomes.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from queue import SimpleQueue
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.ingest.market_days import read_market
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest, failed_outcome
from market_data_pipeline.ingest.reference import ensure_splits
from market_data_pipeline.ingest.refresh import SymbolRefresh
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.reference import unreadable_splits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.ingest.market_days import MarketDay
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection


log = logging.getLogger(__name__)


class MarketWide:
    """Answers about the whole market; threads may share it once it was read.

    Args:
        spent: what the run has asked of the vendor before, to be counted with its first series.

    Attributes:
        days: whole-market answers at hand, by session date.
        unreadable: what is wrong with the vendor's splits of a symbol, which fails with that.
    """

    def __init__(self, spent: Counters) -> None:
        self.days: Mapping[date, MarketDay] = {}
        self.unreadable: Mapping[str, str] = {}
        self._lock = Lock()
        self._spent = spent
        self._notice: str | None = None

    def read(
        self, pipeline: Pipeline, connection: StoreConnection, requests: Collection[SymbolRequest], *, full: bool
    ) -> None:
        """Ask for what the run lacks; what it costs is counted whatever comes of it.

        Args:
            pipeline: vendor, clock and plan; no other thread asks yet.
            connection: a connection without an open transaction.
            requests: the run's symbols.
            full: everything is asked for again, symbol by symbol.

        Raises:
            PipelineError: one that every symbol would fail with, as without any list of splits.
        """
        before = pipeline.client.usage
        try:
            late = ensure_splits(pipeline, connection)
            if late is not None:
                log.warning("The market's splits could not be read today, the last list is used: %s", late)
            self.unreadable = unreadable_splits(connection)
            if anonymous := self.unreadable.get(NO_TICKER):
                self._notice = (
                    f"The vendor lists a split without a readable ticker ({anonymous.rstrip('.')}). "
                    "It is left out: whose it is lacks a split until the list is mended."
                )
            daily = [request for request in requests if Timeframe.D1 in request.timeframes]
            if daily and not full:
                self._read_days(pipeline, connection, daily)
            connection.commit()
        finally:
            self._spent += pipeline.client.usage - before

    def _read_days(self, pipeline: Pipeline, connection: StoreConnection, daily: Collection[SymbolRequest]) -> None:
        priority = min(PRIORITIES[request.tier] for request in daily)
        try:
            self.days = read_market(pipeline, connection, [request.symbol for request in daily], priority)
        except PipelineError as error:
            if error.stops_run:
                raise
            log.warning("Day bars are asked for symbol by symbol, the market's cannot be had: %s", error)

    def take_usage(self) -> Counters:
        """Return, once, what the requests for the whole market cost: the first series of the run counts them."""
        with self._lock:
            usage, self._spent = self._spent, Counters()
        return usage

    def take_notice(self) -> str | None:
        """Return, once, what people should know of the market's answers: the first series that commits says it."""
        with self._lock:
            notice, self._notice = self._notice, None
        return notice


# An abandoned run's threads get this long to finish the statement they are in; the database rolls back the rest.
_LEAVE_SECONDS: Final = 5.0

# Threads beyond the symbols that the vendor is asked for at once: while one stores what it has, another asks. Where
# symbols are to be done one at a time there is none.
_STORING: Final = 1


def refresh_shard(
    requests: Sequence[SymbolRequest],
    *,
    pipeline: Pipeline,
    run_id: str,
    full: bool = False,
    spent: Counters | None = None,
) -> Iterator[SeriesOutcome]:
    """Refresh the symbols and yield each series' outcome as it commits.

    The vendor is asked for `max_concurrent_symbols` at a time; what came in is stored while others are asked for.

    Every requested series has exactly one outcome, and one audit row unless the database itself is lost; one that takes
    in years of history has one for each part (`windows.PART_BASE_BARS`). A failure that stops the run (a refused
    key, a lost database) fails the symbols that were not begun without asking for them.

    Args:
        requests: the symbols, each once; they are begun in this order.
        pipeline: vendor, database, clock and plan.
        run_id: what the audit rows name.
        full: ask for and compare everything again.
        spent: what the run has asked of the vendor before, to be counted with its first series.
    """
    shard = _Shard(requests, pipeline, run_id, full=full, spent=spent or Counters())
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
    """The symbols still to do, and where their outcomes go."""

    def __init__(
        self, requests: Sequence[SymbolRequest], pipeline: Pipeline, run_id: str, *, full: bool, spent: Counters
    ) -> None:
        self.waiting = deque(requests)
        self.outcomes: SimpleQueue[SeriesOutcome | None] = SimpleQueue()
        self.stop = Event()
        self.pipeline = pipeline
        self.run_id = run_id
        self.full = full
        self.stopped_by: PipelineError | None = None
        self.unreachable: DatabaseUnavailableError | None = None
        self.market = MarketWide(spent)
        most = pipeline.max_concurrent_symbols
        self.workers = most + _STORING if most > 1 else 1
        self._turns = BoundedSemaphore(most)
        self._lock = Lock()
        self._first: StoreConnection | None = None  # opened by `prepare`: one thread goes on with it
        self._taken = True

    def prepare(self) -> None:
        """Read what the whole market shares; a failure of the splits is every symbol's failure."""
        if not self.waiting:
            return
        try:
            connection = self.pipeline.connect()
            with ExitStack() as unless_kept:
                unless_kept.callback(connection.close)
                self.market.read(self.pipeline, connection, self.waiting, full=self.full)
                unless_kept.pop_all()
            self._first, self._taken = connection, False
        except PipelineError as error:
            self.stopped_by = error

    def leave(self) -> None:
        """Close the connection that no thread came to take."""
        if not self._taken and self._first is not None:
            self._first.close()

    def work(self) -> None:
        """Refresh symbols until none waits: the body of one thread."""
        connection: StoreConnection | None = None
        try:
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
                self.outcomes.put(None)  # whatever happens: somebody waits for it

    def _symbol(self, request: SymbolRequest, connection: StoreConnection | None) -> StoreConnection | None:
        """Refresh one symbol and return the connection, or None when it is of no more use."""
        done: set[Series] = set()
        refresh: SymbolRefresh | None = None
        with ExitStack() as turn:  # ends when nothing more is asked, at the latest here
            try:
                connection = self._connected(connection)
                self._turns.acquire()
                turn.callback(self._turns.release)
                if self.stop.is_set():
                    return connection
                refresh = SymbolRefresh(
                    self.pipeline,
                    connection,
                    request,
                    self.run_id,
                    full=self.full,
                    market=self.market,
                    asked=turn.close,
                )
                if self.stopped_by is not None:
                    raise self.stopped_by
                for outcome in refresh.outcomes():
                    done.add(outcome.series)
                    self.outcomes.put(outcome)
            except BaseException as error:  # noqa: BLE001  one symbol is isolated here; interrupts reach the main thread only
                failure = error if isinstance(error, PipelineError) else _unexpected(request, error)
                if failure.stops_run or self.stopped_by is not None:
                    self.stopped_by = self.stopped_by or failure
                self._fail_rest(request, refresh, failure, done)
                if not isinstance(error, PipelineError) or isinstance(error, DatabaseUnavailableError):
                    if connection is not None:
                        connection.close()
                    return None
        return connection

    def _connected(self, connection: StoreConnection | None) -> StoreConnection:
        """Return the thread's connection, or a new one; once none could be had, nobody waits for one again."""
        if connection is not None and not connection.closed:
            return connection
        if self.unreachable is not None:
            raise self.unreachable
        with self._lock:
            taken, self._taken = self._taken, True
        if not taken and self._first is not None:
            return self._first
        try:
            return self.pipeline.connect()
        except DatabaseUnavailableError as error:
            self.unreachable = error
            raise

    def _fail_rest(
        self, request: SymbolRequest, refresh: SymbolRefresh | None, failure: PipelineError, done: set[Series]
    ) -> None:
        for timeframe in request.timeframes:
            series = Series(request.symbol, timeframe)
            if series in done:
                continue
            outcome = None
            if refresh is not None and not refresh.connection.closed:
                try:
                    outcome = refresh.fail(series, failure)
                except PipelineError as lost:
                    failure = lost
            self.outcomes.put(outcome or failed_outcome(series, request.tier, failure))


def _unexpected(request: SymbolRequest, error: BaseException) -> PipelineError:
    log.exception("Refreshing %s failed in a way nobody foresaw", request.symbol)
    return PipelineError(
        f"Refreshing {request.symbol} failed in a way nobody foresaw ({type(error).__name__}: {error}); "
        "the run's log has the traceback."
    )
