"""The counters of one refresh of a series: its requests, its rows and its seconds.

Add here: a counter worth keeping per series. It needs a column of the same name in `market_data.ingest_log` (a
migration) and one place that counts it; the audit log and the outcome carry it from here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from operator import add, attrgetter, sub
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of one refresh, or of a part of it; the parts add up with `+`.

    Attributes:
        requests: requests sent, each attempt and each page counted.
        rate_limited: 429 answers among them.
        bytes: response bodies as they came over the wire, compressed.
        pages: pages of bars of one symbol received, each counted once.
        days_refused: session days of which the vendor sent a bar that cannot be used.
        rows_fetched: bars in the answers, or made of finer bars.
        rows_inserted: bars that were not stored before.
        rows_updated: stored bars that changed or were withdrawn.
        features_written: rows of features written.
        fetch_seconds: time waiting for the rate limit and for answers, decoding included.
        store_seconds: time in PostgreSQL.
        compute_seconds: time resampling and computing features.
    """

    requests: int = 0
    rate_limited: int = 0
    bytes: int = 0
    pages: int = 0
    days_refused: int = 0
    rows_fetched: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    features_written: int = 0
    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All seconds together."""
        return self.fetch_seconds + self.store_seconds + self.compute_seconds

    def __add__(self, other: Counters) -> Counters:
        """Return the counters of both parts."""
        return Counters(*map(add, _VALUES(self), _VALUES(other)))

    def __sub__(self, other: Counters) -> Counters:
        """Return what was counted since `other`, an earlier reading of the same counters."""
        return Counters(*map(sub, _VALUES(self), _VALUES(other)))


NOTHING: Final = Counters()
_VALUES: Final = attrgetter(*(counter.name for counter in fields(Counters)))  # astuple() copies: six times as long


@dataclass(slots=True)
class Tally:
    """Counters that one thread is adding to."""

    counters: Counters = NOTHING

    def fetching(self) -> AbstractContextManager[None]:
        """Count the block as time waiting for the vendor."""
        return self._timing("fetch_seconds")

    def storing(self) -> AbstractContextManager[None]:
        """Count the block as time in PostgreSQL."""
        return self._timing("store_seconds")

    def computing(self) -> AbstractContextManager[None]:
        """Count the block as time resampling and computing features."""
        return self._timing("compute_seconds")

    @contextmanager
    def _timing(self, counter: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.counters = replace(
                self.counters, **{counter: getattr(self.counters, counter) + perf_counter() - started}
            )
