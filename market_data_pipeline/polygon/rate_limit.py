"""The vendor's rate limit, shared by every thread, process and machine that uses the key.

A plan's calls are spread evenly, never sent in a burst: one every `spacing_seconds`, so that no 60 seconds hold more
than the plan allows. On an unlimited plan all processes together send at most 99 calls in any second, and one alone
`UNLIMITED_CALLS_PER_SECOND`. A 429 answer pauses all senders.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID, uuid4

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier

# The vendor asks unlimited plans to stay under 100 calls a second. The pool `polygon` of one machine admits three runs,
# each of which has a third; more of them, on several hosts, have equal parts.
UNLIMITED_CALLS_PER_SECOND: Final = 33
_AT_FULL_RATE: Final = 3
MAX_PAUSE_SECONDS: Final = 300.0
PRIORITIES: Final = {tier: priority for priority, tier in enumerate(Tier)}  # the lowest goes first

# A call granted now reaches the vendor a little later, by a varying amount: a new connection takes half a
# second, a pooled one a millisecond. The window is stretched by this much so that the calls still fit on arrival.
_MARGIN: Final = 1 / 60
# Reading the shared pause takes 0.7 ms, 0.14 of them processor time. At this interval a process sends calls into
# another process's pause for at most a tenth of a second.
_PAUSE_CHECK_SECONDS: Final = 0.1
# A process that is one too many for full rates sends nothing until the others have read that it is there and the second
# in which they sent more than their new part is over.
_JOIN_SECONDS: Final = 2.0


class Limiter(Protocol):
    """Decides when a request may be sent."""

    def acquire(self, priority: int) -> None:
        """Block until one request may be sent; among waiting callers the lowest `priority` goes first.

        Raises:
            DatabaseUnavailableError: the shared state cannot be reached.
        """

    def pause(self, seconds: float) -> None:
        """Block all senders for `seconds`, at most `MAX_PAUSE_SECONDS`; a longer pause in progress is kept."""

    def close(self) -> None:
        """Close the connections; the object can be used again."""


class Queue(Protocol):
    """The shared state of one limit: `store.rate_limit_queue` keeps it in PostgreSQL.

    Attributes:
        spacing: seconds between two calls, None when only the pause is shared.
        lease_seconds: what has not called `request` or `send` for this long is considered dead.
    """

    spacing: float | None
    lease_seconds: float

    def request(self, waiter: UUID, priority: int) -> float:
        """Grant the next call and return 0, or return the seconds after which `waiter` should request again."""

    def leave(self, waiter: UUID) -> None:
        """Remove the waiter from the queue."""

    def pause(self, seconds: float) -> None:
        """Grant no call for `seconds`; a longer pause in progress is kept."""

    def paused(self) -> tuple[float, int]:
        """Return the seconds left of the pause, 0 without one, and how many processes are sending."""

    def send(self, sender: UUID) -> None:
        """Count the process as sending for the next `lease_seconds`."""

    def sent(self, sender: UUID) -> None:
        """Count it no longer; raises nothing."""

    def close(self) -> None:
        """Close the connections; the object can be used again."""


def spacing_seconds(calls: int, window_seconds: float = 60.0) -> float:
    """Return the seconds between two calls so that no window holds more than `calls`: 12.2 for 5 a minute."""
    return window_seconds * (1 + _MARGIN) / calls


class UnlimitedLimiter:
    """Limits this process alone, by calls in any second; for the sandbox and for unlimited plans.

    The first calls go at once: spread evenly, the 18 calls of three symbols' year would waste half a second.

    Args:
        per_second: calls in any second, None for no limit at all.
        sleep: waits for a number of seconds.
        monotonic: returns the seconds of a clock that never goes back.
    """

    def __init__(
        self,
        per_second: int | None = UNLIMITED_CALLS_PER_SECOND,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sent: deque[float] | None = deque(maxlen=per_second) if per_second else None
        self._per_second = per_second or 0
        self._sleep = sleep
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def acquire(self, priority: int) -> None:
        """Block until this process may send one request; the priority is ignored, because no caller waits long."""
        while (paused := self._paused_until - self._monotonic()) > 0:
            self._sleep(paused)
        if self._sent is None:
            return
        with self._lock:
            now = due = self._monotonic()
            if len(self._sent) >= self._per_second:
                due = max(now, self._sent[-self._per_second] + 1 + _MARGIN)
            self._sent.append(due)
        if due > now:
            self._sleep(due - now)

    def limit(self, per_second: int) -> None:
        """Send at most so many calls in any second from now on, and never more than at first."""
        with self._lock:
            if self._sent is not None and self._sent.maxlen is not None:
                self._per_second = max(1, min(per_second, self._sent.maxlen))

    def pause(self, seconds: float) -> None:
        """Block all threads of this process for `seconds`."""
        with self._lock:
            until = self._monotonic() + min(seconds, MAX_PAUSE_SECONDS)
            self._paused_until = max(self._paused_until, until)

    def close(self) -> None:
        """Do nothing: there are no connections."""


class SharedLimiter:
    """One limit for all threads, processes and machines that share a queue.

    An unlimited plan is not worth a round trip per call: each process then has its own limit, its part of what all may
    send; the pause and the number of processes are read ten times a second. It connects at its first use; threads may
    share the object.

    Args:
        queue: the shared state; its `spacing` is the plan's, None for an unlimited plan.
        sleep: waits for a number of seconds.
        monotonic: returns the seconds of a clock that never goes back.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._local = UnlimitedLimiter(sleep=sleep, monotonic=monotonic)
        self._sleep = sleep
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sender = uuid4()
        self._counted_until = float("-inf")
        self._pause_read_at = float("-inf")

    def acquire(self, priority: int) -> None:
        """Block until one request may be sent; see `Limiter`."""
        if self._queue.spacing is None:
            self._adopt()
            self._local.acquire(priority)
            return
        waiter = uuid4()
        try:
            while (wait := self._queue.request(waiter, priority)) > 0:
                self._sleep(min(wait, self._queue.lease_seconds / 2))
        except DatabaseUnavailableError:
            raise  # the queue cannot be reached; the lease runs out on its own
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)

    def pause(self, seconds: float) -> None:
        """Block all senders that share the queue for `seconds`; see `Limiter`."""
        seconds = min(seconds, MAX_PAUSE_SECONDS)
        self._local.pause(seconds)
        self._queue.pause(seconds)

    def close(self) -> None:
        """Close the queue's connections; see `Limiter`."""
        with self._lock:
            counted, self._counted_until = self._counted_until > float("-inf"), float("-inf")
        if counted:
            self._queue.sent(self._sender)
        self._queue.close()

    def _leave(self, waiter: UUID) -> None:
        with suppress(DatabaseUnavailableError):
            self._queue.leave(waiter)

    def _adopt(self) -> None:
        """Apply a pause that another process started, and the part of the calls that is this process's now."""
        with self._lock:  # no thread sends before the first one has read
            now = self._monotonic()
            if now - self._pause_read_at < _PAUSE_CHECK_SECONDS:
                return
            joins = now > self._counted_until
            if joins or self._counted_until - now < self._queue.lease_seconds / 2:
                self._queue.send(self._sender)
                self._counted_until = now + self._queue.lease_seconds
            paused, senders = self._queue.paused()
            self._local.limit(_AT_FULL_RATE * UNLIMITED_CALLS_PER_SECOND // max(senders, _AT_FULL_RATE))
            if joins and senders > _AT_FULL_RATE:
                self._sleep(_JOIN_SECONDS)
            self._pause_read_at = self._monotonic()
        if paused > 0:
            self._local.pause(paused)
