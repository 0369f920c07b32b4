"""The staleness sensor's memory between two ticks: verdicts, attempts on late series, the state of the database.

Pure: what is late, what was tried and an instant in; a decision out. It travels as the sensor's cursor
(https://docs.dagster.io/guides/automate/sensors), in Dagster's storage, so it survives the loss of the market database.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from market_data_pipeline.domain.series import Series

log = logging.getLogger(__name__)

# A series is late after its schedule missed it several times, so the reason rarely passes within minutes: wait longer
# each time, up to a quarter of a day, so that what is repaired at night is fetched before the market opens.
FIRST_WAIT: Final = timedelta(minutes=5)
LONGEST_WAIT: Final = timedelta(hours=6)

# An unchanged verdict is repeated this often, to show that it is still evaluated: 100 events a day, not 1,440.
REPEAT_AFTER: Final = timedelta(minutes=15)


class Attempt(NamedTuple):
    """How often a late series was tried, and when it may be tried again."""

    number: int
    not_before: float  # seconds since 1970


class Verdict(NamedTuple):
    """The last verdict on a tier that was written, in short."""

    text: str
    at: float  # seconds since 1970


class Loss(NamedTuple):
    """The market database does not answer."""

    since: float  # seconds since 1970, of the first tick that it did not answer
    alerted: bool  # whether the alert was delivered


class Server(NamedTuple):
    """The database server as the last tick found it; all in seconds since 1970."""

    at: float  # of that tick
    started: float  # when the server started
    recovered: float  # when its statistics were reset: after a crash, and not by an orderly stop


class Memory(BaseModel):
    """The memory itself; every `now` is aware UTC.

    Attributes:
        attempts: by late series (`AAPL|5m`).
        verdicts: by tier.
        loss: None while the market database answers.
        server: None before the first tick.
    """

    attempts: dict[str, Attempt] = {}
    verdicts: dict[str, Verdict] = {}
    loss: Loss | None = None
    server: Server | None = None

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Self:
        """Return the memory that `to_cursor` wrote; an empty one for a first tick or a cursor in another format.

        An unreadable cursor costs only the waits and is logged; a sensor that failed on it would fail at every tick.
        """
        try:
            return cls.model_validate_json(cursor or "{}")
        except ValidationError:
            log.warning("The sensor's cursor cannot be read and is reset: late series are tried at once.")
            return cls()

    def to_cursor(self) -> str:
        """Return the memory as text."""
        return self.model_dump_json()

    def forget_recovered(self, late: Iterable[Series]) -> None:
        """Forget the attempts for every series that is not among the late ones."""
        keys = {series.partition_key for series in late}
        self.attempts = {key: attempt for key, attempt in self.attempts.items() if key in keys}

    def due(self, late: Iterable[Series], now: datetime) -> list[Series]:
        """Return which of the late series may be tried now."""
        first = Attempt(0, 0.0)
        return [
            series for series in late if self.attempts.get(series.partition_key, first).not_before <= now.timestamp()
        ]

    def record(self, tried: Iterable[Series], now: datetime) -> None:
        """Record that these series are being tried: the wait doubles with each attempt."""
        for series in tried:
            number = self.attempts.get(series.partition_key, Attempt(0, 0.0)).number
            # The exponent is capped so that a series that fails for years does not overflow.
            wait = min(FIRST_WAIT * 2 ** min(number, 10), LONGEST_WAIT)
            self.attempts[series.partition_key] = Attempt(number + 1, (now + wait).timestamp())

    def is_news(self, tier: str, verdict: str, now: datetime) -> bool:
        """Return whether a verdict has to be written, and record it: it changed, or `REPEAT_AFTER` has passed."""
        before = self.verdicts.get(tier)
        if before and before.text == verdict and now - datetime.fromtimestamp(before.at, UTC) < REPEAT_AFTER:
            return False
        self.verdicts[tier] = Verdict(verdict, now.timestamp())
        return True
