"""The vendor's answers when all is well, and a client to request them: shared by the tests of this folder."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

from market_data_pipeline.domain.counters import Counters
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.client import PolygonClient

KEY: Final = "kQ7vSECRETvendorKEY93x"

# A Tuesday in winter: 04:00 New York is 09:00 UTC.
START: Final = dt.datetime(2024, 1, 2, 9, tzinfo=dt.UTC)
FIVE_MINUTES: Final = dt.timedelta(minutes=5)
START_MS: Final = int(START.timestamp()) * 1000
SPAN_MS: Final = 300_000


def bar(index: int, **changed: Any) -> dict[str, Any]:
    """Bar `index` of the truth, with fields replaced; a field of ... is left out."""
    low = 100.0 + index
    fields: dict[str, Any] = {
        "v": 1000.0 + index,
        "vw": low + 1.25,
        "o": low + 1,
        "c": low + 1.5,
        "h": low + 2,
        "l": low,
        "t": START_MS + index * SPAN_MS,
        "n": 40 + index,
    }
    return {name: value for name, value in {**fields, **changed}.items() if value is not ...}


def page(bars: Sequence[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """An aggregates page in the recorded order of keys, with some replaced; a key of ... is left out."""
    fields = {
        "ticker": "AAPL",
        "queryCount": 5 * len(bars),
        "resultsCount": len(bars),
        "adjusted": False,
        "results": list(bars),
        "status": "OK",
        "request_id": "6a7e466379af0a71039d60cc78e72282",
        "count": len(bars),
    }
    return {name: value for name, value in {**fields, **changed}.items() if value is not ...}


def empty_page(**changed: Any) -> dict[str, Any]:
    """What the vendor sends when it has nothing: no `results` at all."""
    return page([], **{"results": ..., "count": ..., **changed})


def minutes(count: int) -> Interval:
    """The interval of the first `count` 5m bars of the truth."""
    return Interval(START, START + count * FIVE_MINUTES)


TRUTH: Final = [bar(i) for i in range(4)]
WHOLE: Final = minutes(len(TRUTH))


class NoWait:
    """A limiter that lets every request go at once and remembers the priorities and pauses."""

    def __init__(self) -> None:
        self.priorities: list[int] = []
        self.pauses: list[float] = []
        self.closed = False

    def acquire(self, priority: int) -> None:
        self.priorities.append(priority)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def close(self) -> None:
        self.closed = True


class QuickClient:
    """A client whose backoff costs no time: it waits the longest jitter, on paper."""

    def __init__(self, url: str, **more: Any) -> None:
        self.limiter = NoWait()
        self.slept: list[float] = []
        more = {"uniform": lambda low, high: high, "sleep": self.slept.append, **more}
        self.client = PolygonClient(url, KEY, limiter=self.limiter, **more)

    def bars(self, interval: Interval = WHOLE, symbol: str = "AAPL", timeframe: Timeframe = Timeframe.M5) -> Any:
        return self.client.bars(symbol, timeframe, interval)


def cost(error: PipelineError) -> Counters:
    """What a failed call had cost until it failed."""
    usage = vars(error)["usage"]
    assert isinstance(usage, Counters)
    return usage


def rows(frame: Any) -> list[dict[str, Any]]:
    """A bar frame with the vendor's field names."""
    names = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "vwap": "vw", "trades": "n"}
    records = frame.rename(columns=names).assign(t=frame["ts"].astype("int64") // 1000).drop(columns="ts")
    return list(records.to_dict("records"))
