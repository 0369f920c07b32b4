"""The shelf: answers kept until a commit changes their series.

It is open only while commits are heard of (see `changes`): when that connection is lost everything is thrown away and
every request reads the database. Two bounds do not rely on hearing: the number of bytes kept, and a shelf life.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.middleware.gzip import GZipMiddleware

from market_data_pipeline.serving.answers import send_rendered
from market_data_pipeline.serving.negotiation import takes_gzip

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from starlette.types import ASGIApp, Receive, Scope, Send

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.serving.answers import Answer

CAPACITY_BYTES: Final = 64 * 2**20  # about 1,000 answers of 100 records, or 10 of the largest
# A correction made by hand, which notifies nobody, is seen after at most this long, in seconds.
SHELF_LIFE_SECONDS: Final = 60.0

SCOPE_KEY: Final = "market_data.request_key"


class RequestKey(NamedTuple):
    """What makes two requests ask for the same bytes."""

    path: str
    query: bytes
    accept: str


class Ticket(NamedTuple):
    """The state of a series' cache before a reading began; an answer made from the reading is kept only if it holds."""

    epoch: int
    changes: int


class Shelf:
    """Answers by request, least recently used first; used from the event loop only."""

    def __init__(self, clock: Callable[[], datetime], capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._clock = clock
        self._capacity = capacity_bytes
        self._answers: OrderedDict[RequestKey, tuple[Answer, float, int]] = OrderedDict()
        self._requests: defaultdict[Series, set[RequestKey]] = defaultdict(set)
        self._changes: dict[Series, int] = {}
        self._epoch = 0
        self.is_open = False
        self.size = 0

    def __len__(self) -> int:
        return len(self._answers)

    def open(self) -> None:
        """Begin to keep answers: from now on every commit will be heard of."""
        self.close()
        self.is_open = True

    def close(self) -> None:
        """Throw everything away and keep nothing more, also not what is being read now."""
        self._answers.clear()
        self._requests.clear()
        self._changes.clear()
        self._epoch += 1
        self.size = 0
        self.is_open = False

    def ticket(self, series: Series) -> Ticket | None:
        """Return what `put` wants; take it before the reading begins. None when nothing is kept."""
        return Ticket(self._epoch, self._changes.get(series, 0)) if self.is_open else None

    def get(self, key: RequestKey) -> Answer | None:
        """Return the answer to a request, if it is there and holds."""
        kept = self._answers.get(key)
        if kept is None:
            return None
        answer, expires, _ = kept
        if time.monotonic() > expires or (answer.valid_until is not None and self._clock() >= answer.valid_until):
            self._remove(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: RequestKey, answer: Answer, ticket: Ticket | None) -> None:
        """Keep an answer unless its series changed since `ticket` was taken."""
        if ticket is None or ticket != self.ticket(answer.series):
            return
        self._remove(key)
        size = 2 * answer.size  # room for the compressed form, which is made when first asked for
        if size > self._capacity:
            return
        self._answers[key] = (answer, time.monotonic() + SHELF_LIFE_SECONDS, size)
        self._requests[answer.series].add(key)
        self.size += size
        while self.size > self._capacity:
            self._remove(next(iter(self._answers)))

    def drop(self, series: Series) -> None:
        """Throw the answers about a series away: it has changed."""
        self._changes[series] = self._changes.get(series, 0) + 1
        for key in tuple(self._requests.get(series, ())):
            self._remove(key)

    def _remove(self, key: RequestKey) -> None:
        kept = self._answers.pop(key, None)
        if kept is None:
            return
        answer, _, size = kept
        self.size -= size
        keys = self._requests[answer.series]
        keys.discard(key)
        if not keys:
            del self._requests[answer.series]


class ReportGzip(GZipMiddleware):
    """Compresses what is not an answer about a series; those come compressed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        handler = self.app if SCOPE_KEY in scope else super().__call__
        await handler(scope, receive, send)


class ShelfMiddleware:
    """Answers from the shelf before any routing; a request it cannot answer goes on with its key in the scope."""

    def __init__(self, app: ASGIApp, shelf: Shelf, clock: Callable[[], datetime], hit: Callable[[], None]) -> None:
        self._app = app
        self._shelf = shelf
        self._clock = clock
        self._hit = hit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith("/api/v1/"):
            await self._app(scope, receive, send)
            return
        wanted = {b"accept": "", b"accept-encoding": "", b"if-none-match": ""}
        for name, value in scope["headers"]:
            if name in wanted:
                text = value.decode("latin-1")
                wanted[name] = f"{wanted[name]},{text}" if wanted[name] else text
        key = RequestKey(scope["path"], scope["query_string"], wanted[b"accept"])
        answer = self._shelf.get(key)
        if answer is None:
            scope[SCOPE_KEY] = key
            await self._app(scope, receive, send)
            return
        self._hit()
        scope["route_template"] = answer.route
        if gzip := takes_gzip(wanted[b"accept-encoding"]):
            await answer.compress()
        rendered = answer.render(self._clock(), gzip=gzip, if_none_match=wanted[b"if-none-match"])
        await send_rendered(rendered, send)
