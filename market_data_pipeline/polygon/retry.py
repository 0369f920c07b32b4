"""One request to the vendor, sent until it is answered or finally refused.

Each attempt waits for the rate limit and is counted. Transient failures are retried, up to `max_attempts` attempts with
exponential backoff and full jitter: before attempt n + 1 a uniformly random time of up to 2**(n-1) seconds, at most
300, and at least what Retry-After says. A 429 answer pauses all senders for that time; without a Retry-After, for a
time that grows until the vendor's minute has passed (`RATE_FLOORS_SECONDS`).

While no connection to the vendor can be made, attempts only connect, which uses no call of the rate limit, and once
`CUT_OFF_AFTER` requests in a row have failed this way, the run stops.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt

from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.errors import (
    PipelineError,
    RateLimitedError,
    TransientError,
    VendorUnreachableError,
)
from market_data_pipeline.polygon import refusals
from market_data_pipeline.polygon.rate_limit import MAX_PAUSE_SECONDS
from market_data_pipeline.polygon.transport import OK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenacity import RetryCallState

    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.polygon.rate_limit import Limiter
    from market_data_pipeline.polygon.transport import Answer, Transport

_log = logging.getLogger(__name__)
MAX_ATTEMPTS: Final = 5
_FIRST_BACKOFF_SECONDS: Final = 1.0

# The shortest pause after the first, second, third and fourth 429 answer without a Retry-After. The vendor counts calls
# by the minute, so the last of five attempts must come more than a minute after the first: then a key with five calls a
# minute gets through even where the plan is configured as unlimited.
RATE_FLOORS_SECONDS: Final = (0.0, 8.0, 20.0, 36.0)

# Five attempts at a request last 7 s on average, and a run sends three at a time: a shorter outage does not stop it; a
# wrong address or a dead line stops it within half a minute, whatever the number of symbols.
CUT_OFF_AFTER: Final = 6

_T = TypeVar("_T")


class Request(NamedTuple):
    """A GET request.

    Attributes:
        target: path and query.
        what: names it in messages.
        priority: its place in the rate limit queue.
        beyond_history: see `refusals.failure`.
        most_attempts: fewer attempts than the sender makes, if given.
        subscription: see `refusals.failure`.
    """

    target: str
    what: str
    priority: int
    beyond_history: bool = False
    most_attempts: int | None = None
    subscription: str | None = None


class Sender:
    """Sends requests over one transport.

    Args:
        transport: makes the exchanges.
        limiter: decides when a request may be sent.
        max_attempts: attempts per request, the first included.
        sleep: waits between attempts, for a number of seconds.
        uniform: returns a random number between its two arguments.
    """

    def __init__(
        self,
        transport: Transport,
        limiter: Limiter,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.transport = transport
        self.limiter = limiter
        self.uniform = uniform
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._lock = threading.Lock()
        self._unreachable = 0  # requests in a row that made no connection

    @property
    def is_cut_off(self) -> bool:
        """True when the last request made no connection."""
        return self._unreachable > 0

    def connected(self) -> None:
        """Note that a request made a connection."""
        self._unreachable = 0

    def send(self, request: Request, read: Callable[[bytes], _T], tally: Tally) -> _T:
        """Return what `read` returns for the answer's body.

        Args:
            request: what to send.
            read: decodes and checks the body; its TransientError is retried.
            tally: every attempt is counted here.

        Raises:
            TransientError: the last attempt failed too; RateLimitedError when it was rate limited,
                VendorUnreachableError when no connection could be made, UnansweredError when it was this request that
                was not answered.
            PipelineError: at once, of the class that `refusals` or `read` decides.
        """
        most = min(self._max_attempts, request.most_attempts or self._max_attempts)
        attempts = _Attempts(self, request, tally)

        def announce(state: RetryCallState) -> None:
            outcome = state.outcome.exception() if state.outcome else None
            log = "%s Attempt %d of %d follows in %.1f s."
            _log.warning(log, outcome, state.attempt_number + 1, most, attempts.delay)

        retrying = Retrying(
            stop=stop_after_attempt(most),
            retry=retry_if_exception(_is_retried),
            wait=lambda _: attempts.delay,
            sleep=self._sleep,
            before_sleep=announce,
            reraise=True,
        )
        try:
            for trial in retrying:
                with trial:
                    return attempts.make(trial.retry_state.attempt_number, read)
        except PipelineError as error:
            if _is_retried(error) and most > 1:
                error.args = (f"{error} Gave up after {most} attempts.",)
            if isinstance(error, VendorUnreachableError):
                self._count_unreachable(error)
            raise
        raise AssertionError("tenacity ends with an answer or an error")  # pragma: no cover

    def _count_unreachable(self, error: VendorUnreachableError) -> None:
        """Let the failure stop the run once too many requests in a row have ended like it."""
        with self._lock:
            self._unreachable += 1
            error.stops_run = self._unreachable >= CUT_OFF_AFTER


class _Attempts:
    """The attempts at one request; `delay` is how many seconds to wait after the latest."""

    def __init__(self, sender: Sender, request: Request, tally: Tally) -> None:
        self.delay = 0.0
        self._sender = sender
        self._request = request
        self._tally = tally
        self._unexplained = 0  # 429 answers without a Retry-After
        self._reached = not sender.is_cut_off

    def make(self, number: int, read: Callable[[bytes], _T]) -> _T:
        """Make attempt `number`, counted from 1, and return what `read` returns; raises what `Sender.send` does."""
        backoff = min(MAX_PAUSE_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (number - 1))
        self.delay = self._sender.uniform(0.0, backoff)
        answer = self._exchange()
        if answer.status != OK:
            raise self._refusal(answer, answer.status, refusals.text_of(answer))
        try:
            return read(answer.body)
        except refusals.RefusedInBodyError as refused:
            failure = self._refusal(answer, refused.code, refused.text)
        raise failure

    def _exchange(self) -> Answer:
        """Return the vendor's answer, once the rate limit allows the request."""
        transport, request = self._sender.transport, self._request
        if not self._reached:
            transport.connect(request.what)
            self._reached = True
        self._sender.limiter.acquire(request.priority)
        self._tally.counters += Counters(requests=1)
        try:
            answer = transport.get(request.target, request.what)
        except VendorUnreachableError:
            self._reached = False
            raise
        self._sender.connected()
        self._tally.counters += Counters(bytes=answer.size)
        return answer

    def _refusal(self, answer: Answer, code: int, text: str) -> PipelineError:
        """Return the failure that a refusal means, and note how long to wait before the next attempt."""
        request, text = self._request, self._sender.transport.redacted(text)
        failure = refusals.failure(
            code, text, request.what, beyond_history=request.beyond_history, subscription=request.subscription
        )
        requested = retry_after(answer.headers)
        if isinstance(failure, TransientError):
            self.delay = max(self.delay, requested)
        if isinstance(failure, RateLimitedError):
            self._tally.counters += Counters(rate_limited=1)
            if not requested:
                floor = RATE_FLOORS_SECONDS[min(self._unexplained, len(RATE_FLOORS_SECONDS) - 1)]
                self.delay = max(self.delay, floor)
                self._unexplained += 1
            self._sender.limiter.pause(self.delay)
        return failure


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a Retry-After header requests, from 0 to `MAX_PAUSE_SECONDS`; 0 without a readable one.

    A date is compared with the answer's own Date header, so that a wrong clock on this machine does no harm.
    """
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.replace(".", "", 1).isdigit():
        return min(float(given), MAX_PAUSE_SECONDS)
    until = _instant(given)
    if until is None:
        return 0.0
    since = _instant(headers.get("Date", "")) or datetime.now(UTC)
    return min(max(0.0, (until - since).total_seconds()), MAX_PAUSE_SECONDS)


def _instant(text: str) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _is_retried(error: BaseException) -> bool:
    """Return whether to retry: not when our own database failed."""
    return isinstance(error, TransientError) and not error.stops_run
