"""What answers cost: requests, refusals for the rate, time and bytes.

Add here: a figure worth keeping per series. Keep out: logging and storing it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of some answers; costs add up with `+`.

    Attributes:
        requests: requests sent, each attempt and each page counted.
        rate_limited: answers 429 among them.
        seconds: time waiting for turns and answers, decoding included.
        bytes: bodies as they came over the wire, compressed.
        pages: of bars of one symbol that came in, each counted once.
    """

    requests: int = 0
    rate_limited: int = 0
    seconds: float = 0.0
    bytes: int = 0
    pages: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the cost of both."""
        return Usage(
            self.requests + other.requests,
            self.rate_limited + other.rate_limited,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.pages + other.pages,
        )

    def __sub__(self, other: Usage) -> Usage:
        """Return the cost since `other`, an earlier reading of the same counter."""
        return Usage(
            self.requests - other.requests,
            self.rate_limited - other.rate_limited,
            self.seconds - other.seconds,
            self.bytes - other.bytes,
            self.pages - other.pages,
        )


@dataclass(slots=True)
class Tally:
    """A cost that is being run up by one thread."""

    requests: int = 0
    rate_limited: int = 0
    bytes: int = 0
    pages: int = 0
    monotonic: Callable[[], float] = time.monotonic
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self.monotonic()

    def usage(self) -> Usage:
        """Return the cost so far."""
        return Usage(self.requests, self.rate_limited, self.monotonic() - self._started, self.bytes, self.pages)
