"""The simplest possible client, and servers for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import requests

from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.view import Source
from market_data_pipeline.settings.sandbox import SANDBOX_KEY

NEW_YORK = ZoneInfo("America/New_York")
# A Friday at 14:33:20, so with a 5-minute bar and a day in progress.
NOW = datetime(2026, 11, 20, 14, 33, 20, tzinfo=NEW_YORK)
MINUTE = 60_000
HOUR = 60 * MINUTE


class Vendor:
    """One server as a client with a key sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {SANDBOX_KEY}"

    def get(self, path: str, **parameters: Any) -> requests.Response:
        """Request a path."""
        return self.session.get(self.url + path, params=parameters, timeout=30)

    def page(self, ticker: str, per: str, start: object, end: object, **parameters: Any) -> dict[str, Any]:
        """Return one decoded page of bars; `per` is written `5/minute`."""
        reply = self.get(f"/v2/aggs/ticker/{ticker}/range/{per}/{start}/{end}", **parameters)
        assert reply.status_code == 200, reply.text
        page: dict[str, Any] = reply.json()
        return page

    def bars(self, ticker: str, per: str, start: object, end: object, **parameters: Any) -> list[dict[str, Any]]:
        """Return the bars of all pages, raw by default."""
        parameters = {"adjusted": "false", "limit": 50_000, **parameters}
        page = self.page(ticker, per, start, end, **parameters)
        found = list(page.get("results", []))
        while "next_url" in page:
            following = urlsplit(page["next_url"])
            cursor = {name: texts[0] for name, texts in parse_qs(following.query).items()}
            page = self.get(following.path, adjusted=parameters["adjusted"], **cursor).json()
            found += page.get("results", [])
        return found


@contextlib.contextmanager
def vendor(
    source: Source | None = None, now: datetime = NOW, plan: str = "advanced", **options: Any
) -> Iterator[Vendor]:
    """Run a server, synthetic unless a source is given, whose clock stands still at `now`."""
    with running_server(source or SyntheticMarket(), lambda: now, plan=plan, **options) as url:
        client = Vendor(url)
        with client.session:
            yield client


def ms(*local: int, tz: ZoneInfo = NEW_YORK) -> int:
    """Return a New York clock time in ms since 1970."""
    return int(datetime(*local, tzinfo=tz).timestamp() * 1000)  # type: ignore[misc,arg-type]


def clock(t: int) -> str:
    """Return the New York clock time of an instant in ms."""
    return datetime.fromtimestamp(t / 1000, NEW_YORK).strftime("%H:%M")
