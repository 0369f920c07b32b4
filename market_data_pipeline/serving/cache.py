"""Work that several callers want at the same time is done once, and all of them get its result.

Keep out: keeping a result for those who come later (shelf).

A stock: the newest records of a series, each encoded as JSON, from which the answer to any window of them is cut.

Clients ask about the same records in ever other words: another `limit`, a `start` that moves on. What is costly,
reading and encoding, is done once per commit of a series; cutting takes a tenth of that, most of it to unpack: packed,
512 records with features are 75 kB instead of 300, and four times as many series fit into the same memory.
Keep out: how long a stock holds (shelf), and reading it (reading, series_answers).

The shelf: answers, and the records that answers are cut from, kept until a commit changes their series.

It is open only while commits are heard of (see `changes`): when that connection is lost everything is thrown away and
every request reads the database. Two bounds do not rely on hearing: the number of bytes kept, and a shelf life.

Records that are asked for are read again as soon as a commit has changed them, rather than when asked for next.

A refresh changes every series in turn. Whoever came first after each commit would wait for a reading, and just while
the database is busiest. Keep out: what is worth it (shelf.drop tells) and how it is read (series_answers).
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from isal import isal_zlib
from starlette.middleware.gzip import GZipMiddleware

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.serving.answers import Answer, send_rendered
from market_data_pipeline.serving.formats import takes_gzip
from market_data_pipeline.serving.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
    from datetime import datetime

    from starlette.types import ASGIApp, Receive, Scope, Send

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.reports.series_records import Range, SeriesSummary


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


# Deepest stock, in records: beyond it the windows are few and large, and would push the others out.
DEEPEST: Final = 2_048

_STEP: Final = 128  # records; who asks for 450 and who asks for 500 share a stock

# A correction made by hand, which notifies nobody, is seen after at most this long, in seconds.
SHELF_LIFE_SECONDS: Final = 60.0


class StockKey(NamedTuple):
    """What a stock holds: records of one endpoint, with or without adjustment."""

    series: Series
    records_key: str
    adjusted: bool


@dataclass(frozen=True, slots=True)
class Stock:
    """The newest records of a series, as one snapshot of the database held them.

    Attributes:
        series: whose records they are.
        held: what else that snapshot said of the series.
        packed: JSON objects that begin with `ts`, ascending, a line each; see `packed`.
        oldest: start of the first of them, as `start_of` has it.
        whole: whether these are all records of the series.
        expires: monotonic seconds; see `SHELF_LIFE_SECONDS`.
        remake: has it read anew and kept, unless another is kept already.
    """

    series: Series
    held: SeriesSummary
    packed: bytes
    oldest: bytes
    whole: bool
    expires: float
    remake: Callable[[], Awaitable[None]]

    @property
    def size(self) -> int:
        """Bytes that it occupies."""
        return len(self.packed)

    @property
    def valid_until(self) -> datetime | None:
        """When a known split changes the prices without a commit, aware UTC; None for never."""
        return self.held.next_split

    def cut(self, wanted: Range) -> Sequence[bytes] | None:
        """Return the newest `wanted.limit` records of the range, or None when the stock does not reach so far back."""
        start = bound(wanted.start)
        if not self.whole and wanted.end is not None and start < self.oldest >= bound(wanted.end):
            return None  # nothing of it is here: there is no need to unpack anything
        records = isal_zlib.decompress(self.packed).split(b"\n")[:-1] if self.packed else []
        end = len(records) if wanted.end is None else bisect_left(records, bound(wanted.end), key=start_of)
        first = end - wanted.limit
        reaches = self.whole or first >= 0 or (bool(records) and start >= start_of(records[0]))
        if not reaches:
            return None
        return records[max(first, bisect_left(records, start, key=start_of), 0) : end]


def packed(lines: bytes) -> bytes:
    """Return records, JSON objects with a line's end after each, as a stock keeps them; empty for none."""
    return isal_zlib.compress(lines, 1) if lines else b""


def depth_for(limit: int) -> int:
    """Return how many records a stock should hold for windows of `limit`."""
    return -(-limit // _STEP) * _STEP


def start_of(record: bytes) -> bytes:
    """Return the start of the bar in a record, ISO 8601 without a zone, which sorts as the instants do."""
    return record[7:26]  # after {"ts":"


def bound(instant: datetime | None) -> bytes:
    """Return an aware UTC instant as `start_of` has it; a fraction of a second sorts after the second."""
    return b"" if instant is None else instant.replace(tzinfo=None).isoformat().encode()


# Together with 190 MB of code and what is under way they leave the process below 250 MB.
ANSWER_BYTES: Final = 24 * 2**20  # about 200 answers of 100 records, or 2 of the largest

STOCK_BYTES: Final = 16 * 2**20  # the newest 512 records, with features, of 220 series

SCOPE_KEY: Final = "market_data.request_key"


class RequestKey(NamedTuple):
    """What makes two requests ask for the same bytes."""

    path: str
    query: bytes
    accept: str


class Ticket(NamedTuple):
    """The state of a series' cache before a reading began; what is made from the reading is kept only if it holds."""

    epoch: int
    changes: int


class Perishable(Protocol):
    """What can be kept, until its series changes."""

    @property
    def series(self) -> Series:
        """What a commit has to change to make it untrue."""

    @property
    def size(self) -> int:
        """Bytes to reserve for it."""

    @property
    def expires(self) -> float:
        """When it is to be read again, monotonic seconds."""

    @property
    def valid_until(self) -> datetime | None:
        """When it becomes untrue without a commit, aware UTC; None for never."""


K = TypeVar("K")

V = TypeVar("V", bound=Perishable)


class Room(Generic[K, V]):
    """As much as fits into `capacity` bytes, least recently used first; kept true by the shelf it belongs to."""

    def __init__(self, shelf: Shelf, capacity: int) -> None:
        self._shelf = shelf
        self._capacity = capacity
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._keys: defaultdict[Series, set[K]] = defaultdict(set)
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def get(self, key: K) -> V | None:
        """Return what is kept under `key`, if it is there and holds."""
        found = self._kept.get(key)
        if found is None:
            return None
        kept, _ = found
        if time.monotonic() > kept.expires or (kept.valid_until is not None and self._shelf.now() >= kept.valid_until):
            self.remove(key)
            return None
        self._kept.move_to_end(key)
        self._shelf.asked.add(kept.series)
        return kept

    def put(self, key: K, new: V, ticket: Ticket | None) -> None:
        """Keep `new` unless its series changed since `ticket` was taken."""
        if ticket is None or ticket != self._shelf.ticket(new.series):
            return
        self.remove(key)
        size = new.size
        if size > self._capacity:
            return
        self._kept[key] = (new, size)
        self._keys[new.series].add(key)
        self.size += size
        while self.size > self._capacity:
            self.remove(next(iter(self._kept)))

    def remove(self, key: K) -> None:
        """Throw away what is kept under `key`, if anything is."""
        found = self._kept.pop(key, None)
        if found is None:
            return
        kept, size = found
        self.size -= size
        keys = self._keys[kept.series]
        keys.discard(key)
        if not keys:
            del self._keys[kept.series]

    def of(self, series: Series) -> list[V]:
        """Return what is kept of `series`."""
        return [self._kept[key][0] for key in self._keys.get(series, ())]

    def drop(self, series: Series) -> None:
        """Throw away what belongs to `series`."""
        for key in tuple(self._keys.get(series, ())):
            self.remove(key)

    def clear(self) -> None:
        """Throw everything away."""
        self._kept.clear()
        self._keys.clear()
        self.size = 0


class Shelf:
    """Answers by request, and stocks of records; used from the event loop only."""

    def __init__(
        self, now: Callable[[], datetime], answer_bytes: int = ANSWER_BYTES, stock_bytes: int = STOCK_BYTES
    ) -> None:
        self.now = now
        self.answers: Room[RequestKey, Answer] = Room(self, answer_bytes)
        self.stocks: Room[StockKey, Stock] = Room(self, stock_bytes)
        self.asked: set[Series] = set()  # since they changed
        self._changes: dict[Series, int] = {}
        self._epoch = 0
        self.is_open = False

    @property
    def size(self) -> int:
        """Bytes reserved for what is kept."""
        return self.answers.size + self.stocks.size

    def open(self) -> None:
        """Begin to keep answers: from now on every commit will be heard of."""
        self.close()
        self.is_open = True

    def close(self) -> None:
        """Throw everything away and keep nothing more, also not what is being read now."""
        self.answers.clear()
        self.stocks.clear()
        self._changes.clear()
        self.asked.clear()
        self._epoch += 1
        self.is_open = False

    def ticket(self, series: Series) -> Ticket | None:
        """Return what `put` wants; take it before the reading begins. None when nothing is kept."""
        return Ticket(self._epoch, self._changes.get(series, 0)) if self.is_open else None

    def drop(self, series: Series) -> list[Stock]:
        """Throw away what is kept of a series: it has changed.

        Returns:
            The stocks among it, where somebody has asked for the series since it changed before: it will be wanted.
        """
        wanted = self.stocks.of(series) if series in self.asked else []
        self._changes[series] = self._changes.get(series, 0) + 1
        self.asked.discard(series)
        self.answers.drop(series)
        self.stocks.drop(series)
        return wanted


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
        answer = self._shelf.answers.get(key)
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
