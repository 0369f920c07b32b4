"""Waiting for a turn: the vendor's rate limit, shared by every thread, process and machine that uses the key.

A plan's calls are spread evenly, never in a burst: one every `spacing_seconds`, so that no 60 seconds hold more than
they may. Where they are unlimited, no second holds more than `UNLIMITED_CALLS_PER_SECOND`. An answer 429 pauses
everybody.

Add here: ways of waiting. Keep out: what a plan allows (plans), the shared queue's statements (turns) and retrying
(client).
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID, uuid4

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.store.rate_limit_queue import LEASE_SECONDS, Turns

# The vendor asks unlimited plans to stay under 100 calls a second, and the pool `polygon` admits three runs at a time.
UNLIMITED_CALLS_PER_SECOND: Final = 33
MAX_PAUSE_SECONDS: Final = 300.0
PRIORITIES: Final = {Tier.CRITICAL: 0, Tier.STANDARD: 1, Tier.LOW_PRIORITY: 2}  # the lower goes first

# A call granted now reaches the vendor a little later, by another amount each time: a new connection takes half a
# second, a pooled one a millisecond. The window is stretched by this much so that the calls still fit on arrival.
_MARGIN: Final = 1 / 60
_LONGEST_SLEEP_SECONDS: Final = LEASE_SECONDS / 2
# A look at the shared pause takes 0.7 ms, 0.14 of them of the processor. This often, a process sends calls into another
# one's pause for a tenth of a second at most.
_PAUSE_CHECK_SECONDS: Final = 0.1


class Limiter(Protocol):
    """Says when a request may be sent."""

    def acquire(self, priority: int) -> None:
        """Block until one request may be sent; of those who wait, the lowest `priority` goes first.

        Raises:
            DatabaseUnavailableError: the shared state cannot be reached.
        """

    def pause(self, seconds: float) -> None:
        """Let nobody send for `seconds`, at most `MAX_PAUSE_SECONDS`; a longer pause under way stands."""

    def close(self) -> None:
        """Let go of connections; the object can be used again."""


def spacing_seconds(calls: int, window_seconds: float = 60.0) -> float:
    """Return the seconds between two calls so that no window holds more than `calls`: 12.2 for 5 a minute."""
    return window_seconds * (1 + _MARGIN) / calls


class UnlimitedLimiter:
    """Lets this process send so many calls in any second, and knows no other; for the sandbox and for unlimited plans.

    The first ones go at once: spread evenly, three symbols' year of 18 calls would take half a second for nothing.

    Args:
        per_second: calls in any second, None for no limit at all.
        sleep: waits.
        monotonic: seconds on a clock that only rises.
    """

    def __init__(
        self,
        per_second: int | None = UNLIMITED_CALLS_PER_SECOND,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._turns: deque[float] | None = deque(maxlen=per_second) if per_second else None
        self._sleep = sleep
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def acquire(self, priority: int) -> None:
        """Block until this process may send one request; at this pace everybody's turn comes, whatever the priority."""
        while (paused := self._paused_until - self._monotonic()) > 0:
            self._sleep(paused)
        if self._turns is None:
            return
        with self._lock:
            now = turn = self._monotonic()
            if len(self._turns) == self._turns.maxlen:
                turn = max(now, self._turns[0] + 1 + _MARGIN)
            self._turns.append(turn)
        if turn > now:
            self._sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Let no thread of this process send for `seconds`."""
        with self._lock:
            until = self._monotonic() + min(seconds, MAX_PAUSE_SECONDS)
            self._paused_until = max(self._paused_until, until)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class SharedLimiter:
    """One limit for all threads, processes and machines that share a database and a bucket's name.

    An unlimited plan is not worth a round trip per call: then each process has its own limit, and only the pause is
    shared, read ten times a second. Nothing is connected before the first use; threads may share the object.

    Args:
        database_url: `postgresql://…`, with or without an SQLAlchemy driver; migration 0012 has run.
        calls_per_minute: the plan's limit, None for an unlimited plan.
        bucket: what the sharers call the limit; a migration makes its table.
        window_seconds: the window that `calls_per_minute` is counted in, should it not be a minute.
        sleep: waits.
    """

    def __init__(
        self,
        database_url: str,
        calls_per_minute: int | None,
        *,
        bucket: str = "polygon",
        window_seconds: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        url = re.sub(r"^postgres(?:ql)?(?:\+\w+)?://", "postgresql://", database_url)
        spacing = spacing_seconds(calls_per_minute, window_seconds) if calls_per_minute else None
        self._turns = Turns(url, bucket, spacing)
        self._limited = spacing is not None
        self._local = UnlimitedLimiter(sleep=sleep)
        self._sleep = sleep
        self._lock = threading.Lock()
        self._pause_read_at = float("-inf")

    def acquire(self, priority: int) -> None:
        """Block until one request may be sent; see `Limiter`."""
        if not self._limited:
            self._adopt_pause()
            self._local.acquire(priority)
            return
        waiter = uuid4()
        try:
            while (wait := self._turns.take(waiter, priority)) > 0:
                self._sleep(min(wait, _LONGEST_SLEEP_SECONDS))
        except DatabaseUnavailableError:
            raise  # nobody is there to say goodbye to; the lease ends by itself
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)

    def pause(self, seconds: float) -> None:
        """Let nobody who shares the bucket send for `seconds`; see `Limiter`."""
        seconds = min(seconds, MAX_PAUSE_SECONDS)
        self._local.pause(seconds)
        self._turns.pause(seconds)

    def close(self) -> None:
        """Close the database connections; see `Limiter`."""
        self._turns.close()

    def _leave(self, waiter: UUID) -> None:
        with suppress(DatabaseUnavailableError):
            self._turns.leave(waiter)

    def _adopt_pause(self) -> None:
        """Take over a pause that another process called for."""
        now = time.monotonic()
        with self._lock:
            due = now - self._pause_read_at >= _PAUSE_CHECK_SECONDS
            if due:
                self._pause_read_at = now
        if due and (seconds := self._turns.paused()) > 0:
            self._local.pause(seconds)
