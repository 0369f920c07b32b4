"""Work that several callers want at the same time is done once, and all of them get its result.

Keep out: keeping a result for those who come later (shelf).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

T = TypeVar("T")


class Flights:
    """What is under way, by key; used from the event loop only."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns, or raise what it raises; only the first caller's is done."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(partial(self._landed, key))
        # Shielded: the client who asked first may hang up, and the others still want the answer.
        found: T = await asyncio.shield(task)
        return found

    def _landed(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # looked at, or asyncio reports it when everybody who asked has hung up
