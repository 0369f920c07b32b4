"""Records that are asked for are read again as soon as a commit has changed them, rather than when asked for next.

A refresh changes every series in turn. Whoever came first after each commit would wait for a reading, and just while
the database is busiest. Keep out: what is worth it (shelf.drop tells) and how it is read (series_answers).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from market_data_pipeline.domain.failures import DatabaseUnavailableError
from market_data_pipeline.serving.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from market_data_pipeline.serving.stock import Stock


@dataclass
class Renewals:
    """Stocks that are made anew, one at a time: the other connections are for who waits. Used from the event loop."""

    done: Callable[[], None]  # called for each
    _due: deque[Stock] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def add(self, dropped: Iterable[Stock]) -> None:
        """Have stocks made anew whose series changed."""
        self._due.extend(dropped)
        if self._due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._due:
            with suppress(Problem, DatabaseUnavailableError):  # whoever asks next is told
                await self._due.popleft().remake()
                self.done()
