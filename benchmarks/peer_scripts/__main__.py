"""One peer: `python -m benchmarks.peer_scripts NAME` reads its task as JSON and prints how long it took.

All fetch 5m and 1d with the vendor's official client, and resample and compute features with the pipeline's own
functions: what differs is how bars become frames and frames become rows. Imports end before the clock starts.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from massive import RESTClient

from market_data_pipeline.domain.bars import VALUES, bar_frame
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.features.compute import compute_features
from market_data_pipeline.domain.resample import resample
from market_data_pipeline.domain.series import Timeframe, asset_class_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIELDS: Final = {"volume": "volume", "vwap": "vwap", "transactions": "trades"}
_BASES: Final = {Timeframe.M5: (5, "minute"), Timeframe.D1: (1, "day")}


def frames(task: dict[str, Any], symbol: str) -> Iterator[tuple[Timeframe, pd.DataFrame, pd.DataFrame]]:
    """Yield each timeframe of a symbol with its bars and its features."""
    client = RESTClient(task["key"], base=task["vendor_url"])
    bases = {base: fetched(client, symbol, base, task) for base in _BASES}
    asset_class = asset_class_of(symbol)
    for timeframe in Timeframe:
        bars = bases[timeframe.base]
        if timeframe is not timeframe.base:
            bars = resample(bars, timeframe, calendar_for(asset_class))
        yield timeframe, bars, compute_features(bars, timeframe, asset_class)


def fetched(client: RESTClient, symbol: str, base: Timeframe, task: dict[str, Any]) -> pd.DataFrame:
    """Return the bars of a fetched timeframe as the client gives them, in a bar frame."""
    multiplier, timespan = _BASES[base]
    aggs = client.list_aggs(
        symbol, multiplier, timespan, task["first"], task["last"], adjusted=False, sort="asc", limit=50_000
    )
    frame = pd.DataFrame([vars(agg) for agg in aggs]).rename(columns=_FIELDS)
    values = {name: frame[name].to_numpy(dtype="float64") for name in VALUES}
    return bar_frame(frame["timestamp"].to_numpy(dtype="int64") * 1000, values)


def main() -> None:
    """Do the work of one peer."""
    task = json.load(sys.stdin)
    peer = importlib.import_module(f"benchmarks.peer_scripts.{sys.argv[1]}")
    began = time.perf_counter()
    peer.store(task, ((symbol, *found) for symbol in task["symbols"] for found in frames(task, symbol)))
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
