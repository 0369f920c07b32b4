"""A vendor that tells the truth, the sandbox's, except where a test makes it misbehave.

Each request is answered as the sandbox would answer it at the test's clock. A fault that is injected takes the place of
the true answer of the requests that it applies to, as often as it says; it is given the true page and makes an answer
from it, or breaks the connection.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.sandbox.bars import SplitRow
from market_data_pipeline.sandbox.view import Source, View
from market_data_pipeline.sandbox.wire import answer
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.polygon.faulty_server import Answer, FaultyServer, Seen, send

# Base bars on a page: small enough that three days of 5-minute bars, 2 sessions of 960 minutes and a half, have two.
PAGE_LIMIT: Final = 1_500
ALWAYS: Final = 1 << 30

Page = dict[str, Any]
Make = Callable[["Exchange"], Answer]


@dataclass(frozen=True)
class Exchange:
    """A request, and the true answer to it."""

    target: str
    kind: str  # "5m", "1d", "splits", "dividends", "grouped", or "reference" for what is asked of one ticker
    symbol: str
    follows: bool  # a page after the first
    root: str
    status: int
    body: bytes

    @property
    def page(self) -> Page:
        page: Page = json.loads(self.body)
        return page

    @property
    def has_rows(self) -> bool:
        return b'"results":[{' in self.body


@dataclass
class _Fault:
    make: Make
    applies: Callable[[Exchange], bool]
    left: int


def bars(exchange: Exchange) -> bool:
    """Apply to pages of 5-minute bars."""
    return exchange.kind == "5m"


def first_page(exchange: Exchange) -> bool:
    return exchange.kind == "5m" and not exchange.follows


def later_page(exchange: Exchange) -> bool:
    return exchange.kind == "5m" and exchange.follows


def anything(exchange: Exchange) -> bool:
    return True


class FaultyVendor(FaultyServer):
    """Serves on a free local port while the `with` block runs; `key` is the one that it accepts."""

    def __init__(self, source: Source, clock: Callable[[], datetime], key: str = SANDBOX_KEY) -> None:
        super().__init__()
        self.source = source
        self.clock = clock
        self.key = key
        self.exchanges: list[Exchange] = []
        self._faults: list[_Fault] = []
        self._edit: Callable[[Exchange, Page], None] | None = None
        self._faults_lock = threading.Lock()

    def inject(self, make: Make, applies: Callable[[Exchange], bool] = bars, times: int = 1) -> None:
        """Let the next `times` requests that it applies to be answered by `make`."""
        with self._faults_lock:
            self._faults.append(_Fault(make, applies, times))

    def edit(self, change: Callable[[Exchange, Page], None] | None) -> None:
        """Change what the vendor says is true, in pages of 5-minute bars, until it is set to None."""
        self._edit = change

    def heal(self) -> None:
        """Stop misbehaving."""
        with self._faults_lock:
            self._faults.clear()
        self._edit = None

    def next_answer(self, seen: Seen) -> Answer:
        exchange = self._truth(seen)
        if self._edit is not None and exchange.kind == "5m" and exchange.has_rows:
            page = exchange.page
            self._edit(exchange, page)
            exchange = replace(exchange, body=json.dumps(recounted(page)).encode())
        with self._faults_lock:
            self.seen.append(seen)
            self.exchanges.append(exchange)
            for fault in self._faults:
                if fault.left and fault.applies(exchange):
                    fault.left -= 1
                    return fault.make(exchange)
        return send(exchange.status, exchange.body, {"Content-Type": "application/json"})

    def _truth(self, seen: Seen) -> Exchange:
        parts = urlsplit(seen.target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        path = unquote(parts.path)
        root = f"http://{seen.headers['Host']}"
        steps = path.split("/")
        if "/range/" in path:
            kind, symbol = {"minute": "5m", "day": "1d"}[steps[7]], steps[4]
            query["limit"] = str(PAGE_LIMIT)
        else:
            kinds = ("grouped", "dividends", "splits")
            kind, symbol = next((each for each in kinds if f"/{each}" in path), "reference"), ""
        if seen.headers.get("Authorization") != f"Bearer {self.key}":
            status, body = 401, b'{"status":"ERROR","request_id":"f00","error":"Unknown API Key"}'
        else:
            view = View(self.source, plan_named("advanced"), self.clock())
            status, body = answer(view, path, query, root)
        return Exchange(seen.target, kind, symbol, "cursor" in query, root, status, body)


def recounted(page: Page) -> Page:
    """Return the page with counts that fit its rows."""
    rows = page.get("results") or []
    return {**page, "resultsCount": len(rows), "count": len(rows)}


class WithSplit:
    """A source whose list of splits has one more from `announced` on; its raw bars are the same."""

    def __init__(self, source: Source, split: SplitRow) -> None:
        self._source = source
        self._split = split
        self.announced = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def splits(self) -> list[SplitRow]:
        more = [self._split] if self.announced.is_set() else []
        return sorted([*self._source.splits(), *more], key=lambda split: (split.execution_date, split.ticker))
