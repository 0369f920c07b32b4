"""Where the wall-clock seconds of an execution go.

Add here: a stage that a person asks about. Keep out: instants (the injected clock has those).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent waiting for the vendor, in PostgreSQL, and computing."""

    fetch_seconds: float = 0.0
    store_seconds: float = 0.0
    compute_seconds: float = 0.0

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Count the block as time in PostgreSQL."""
        started = perf_counter()
        try:
            yield
        finally:
            self.store_seconds += perf_counter() - started

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the block as time resampling and computing features."""
        started = perf_counter()
        try:
            yield
        finally:
            self.compute_seconds += perf_counter() - started
