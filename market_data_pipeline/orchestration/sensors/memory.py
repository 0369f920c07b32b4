"""The staleness sensor's memory: what it said, which late series it tried to heal, how it last found the database.

Pure: what is late, what was tried and an instant in; a decision out. Add here: reasons to wait. Keep out: Dagster.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from market_data_pipeline.domain.series import Series

log = logging.getLogger(__name__)

# A series is late after its schedule missed it several times, so the reason rarely passes within minutes: wait longer
# each time, up to a quarter of a day, so that whatever a person mends at night is taken in before the market opens.
FIRST_WAIT: Final = timedelta(minutes=5)
LONGEST_WAIT: Final = timedelta(hours=6)

# An unchanged verdict is repeated this often, to show that somebody still looks: 100 events a day and tier, not 1,440.
REPEAT_AFTER: Final = timedelta(minutes=15)


class Attempt(NamedTuple):
    """What was tried for a late series."""

    number: int
    not_before: float  # seconds since 1970


class Said(NamedTuple):
    """The verdict on a tier, in short, and when it was given."""

    verdict: str
    at: float  # seconds since 1970


class Absence(NamedTuple):
    """That the market database does not answer: it cannot note that itself."""

    since: float  # seconds since 1970, of the first look that it did not answer
    told: bool  # whether the alert reached somebody


class Sighting(NamedTuple):
    """The database server as a look found it."""

    at: float  # seconds since 1970, as the others
    started: float  # since when the server runs
    recovered: float  # since when it counts: anew after a crash, while it counts on after a stop in good order


class Memory:
    """What the sensor remembers between two ticks; instants are aware UTC."""

    def __init__(self) -> None:
        self.absence: Absence | None = None
        self.seen: Sighting | None = None
        self._attempts: dict[str, Attempt] = {}
        self._said: dict[str, Said] = {}

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Self:
        """Return the memory that `to_cursor` wrote; an empty one for a first tick, or for text of another make.

        Nothing is lost with it but waits, and it is logged: a sensor that could not go on would be worse.
        """
        memory = cls()
        try:
            stored = json.loads(cursor or "{}")
            attempts, said = stored.get("attempts", {}), stored.get("said", {})
            memory._attempts = {key: Attempt(int(number), float(until)) for key, (number, until) in attempts.items()}
            memory._said = {key: Said(str(verdict), float(at)) for key, (verdict, at) in said.items()}
            if absence := stored.get("absence"):
                since, told = absence
                memory.absence = Absence(float(since), bool(told))
            if seen := stored.get("seen"):
                at, started, recovered = seen
                memory.seen = Sighting(float(at), float(started), float(recovered))
        except (ValueError, TypeError, AttributeError):
            log.warning("The sensor's cursor cannot be read; it starts anew: late series are tried at once.")
            return cls()
        return memory

    def to_cursor(self) -> str:
        """Return the memory as text."""
        remembered = {"attempts": self._attempts, "said": self._said, "absence": self.absence, "seen": self.seen}
        return json.dumps(remembered)

    def forget_healed(self, late: Iterable[Series]) -> None:
        """Forget the attempts for every series that is not among the late ones."""
        keys = {series.partition_key for series in late}
        self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in keys}

    def due(self, late: Iterable[Series], now: datetime) -> list[Series]:
        """Return which of the late series may be tried now."""
        first = Attempt(0, 0.0)
        return [
            series for series in late if self._attempts.get(series.partition_key, first).not_before <= now.timestamp()
        ]

    def note(self, tried: Iterable[Series], now: datetime) -> None:
        """Remember that these are being tried: the wait doubles with each attempt."""
        for series in tried:
            number = self._attempts.get(series.partition_key, Attempt(0, 0.0)).number
            # The exponent is capped so that a series that fails for years does not overflow.
            wait = min(FIRST_WAIT * 2 ** min(number, 10), LONGEST_WAIT)
            self._attempts[series.partition_key] = Attempt(number + 1, (now + wait).timestamp())

    def is_news(self, about: str, verdict: str, now: datetime) -> bool:
        """Return whether a verdict is to be written, and take it as said: it changed, or was last said a while ago."""
        before = self._said.get(about)
        if before and before.verdict == verdict and now - datetime.fromtimestamp(before.at, UTC) < REPEAT_AFTER:
            return False
        self._said[about] = Said(verdict, now.timestamp())
        return True
