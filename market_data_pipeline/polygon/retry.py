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
    from market_data_pipeline.polygon.transport import Transport

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
    """A GET request: `target` is path and query, `what` names it in messages; for the rest see `refusals.failure`."""

    target: str
    what: str
    priority: int
    beyond_history: bool = False


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
        self._transport = transport
        self._limiter = limiter
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._uniform = uniform
        self._lock = threading.Lock()
        self._unreachable = 0  # requests in a row that made no connection

    def send(self, request: Request, read: Callable[[bytes], _T], tally: Tally) -> _T:
        """Return what `read` returns for the answer's body.

        Args:
            request: what to send.
            read: decodes and checks the body; its TransientError is retried.
            tally: every attempt is counted here.

        Raises:
            TransientError: the last attempt failed too; RateLimitedError when it was rate limited,
                VendorUnreachableError when no connection could be made.
            PipelineError: at once, of the class that `refusals` or `read` decides.
        """
        delay = 0.0
        unexplained = 0  # 429 answers without a Retry-After
        reached = not self._unreachable

        def attempt(number: int) -> _T:
            nonlocal delay, reached, unexplained
            delay = self._uniform(0.0, min(MAX_PAUSE_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (number - 1)))
            if not reached:
                self._transport.connect(request.what)
                reached = True
            self._limiter.acquire(request.priority)
            tally.counters += Counters(requests=1)
            try:
                answer = self._transport.get(request.target, request.what)
            except VendorUnreachableError:
                reached = False
                raise
            self._unreachable = 0
            tally.counters += Counters(bytes=answer.size)
            code, text = answer.status, ""
            if code == OK:
                try:
                    return read(answer.body)
                except refusals.RefusedInBodyError as refused:
                    code, text = refused.code, refused.text
            else:
                text = refusals.text_of(answer)
            text = self._transport.redacted(text)
            failure = refusals.failure(code, text, request.what, beyond_history=request.beyond_history)
            requested = retry_after(answer.headers)
            if isinstance(failure, TransientError):
                delay = max(delay, requested)
            if isinstance(failure, RateLimitedError):
                tally.counters += Counters(rate_limited=1)
                if not requested:
                    delay = max(delay, RATE_FLOORS_SECONDS[min(unexplained, len(RATE_FLOORS_SECONDS) - 1)])
                    unexplained += 1
                self._limiter.pause(delay)
            raise failure from None

        def announce(state: RetryCallState) -> None:
            outcome = state.outcome.exception() if state.outcome else None
            _log.warning(
                "%s Attempt %d of %d follows in %.1f s.", outcome, state.attempt_number + 1, self._max_attempts, delay
            )

        retrying = Retrying(
            stop=stop_after_attempt(self._max_attempts),
            retry=retry_if_exception(_is_retried),
            wait=lambda _: delay,
            sleep=self._sleep,
            before_sleep=announce,
            reraise=True,
        )
        try:
            for trial in retrying:
                with trial:
                    return attempt(trial.retry_state.attempt_number)
        except PipelineError as error:
            if _is_retried(error) and self._max_attempts > 1:
                error.args = (f"{error} Gave up after {self._max_attempts} attempts.",)
            if isinstance(error, VendorUnreachableError):
                with self._lock:
                    self._unreachable += 1
                    error.stops_run = self._unreachable >= CUT_OFF_AFTER
            raise
        raise AssertionError("tenacity ends with an answer or an error")  # pragma: no cover


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
