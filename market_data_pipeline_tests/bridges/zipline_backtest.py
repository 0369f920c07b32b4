"""Ingest the bundle of docs/examples, run an algorithm on it, and print how far its prices are from ours, as JSON."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from zipline import run_algorithm
from zipline.api import order_target_percent, symbol
from zipline.data.bundles import ingest, register
from zipline.utils.calendar_utils import get_calendar
from zipline_bundle import bundle

from market_data_pipeline import read_bars

FIRST, LAST = pd.Timestamp("2026-01-05"), pd.Timestamp("2026-11-18")
DAYS = 200  # of history on the last day, across NVDA's split

register("market-data", bundle(["AAPL", "NVDA"], start="2026-01-02"), calendar_name="XNYS")
ingest("market-data", show_progress=False)
seen: dict[str, Any] = {}


def initialize(context: Any) -> None:
    context.invested = False


def handle_data(context: Any, data: Any) -> None:
    if not context.invested:
        context.invested = True
        order_target_percent(symbol("NVDA"), 1.0)
    if data.current_session == LAST:
        seen["closes"] = data.history(symbol("NVDA"), "close", DAYS, "1d")


sessions = get_calendar("XNYS").sessions_in_range(FIRST, LAST).tz_localize("UTC")
result = run_algorithm(
    start=FIRST, end=LAST, initialize=initialize, handle_data=handle_data, capital_base=100_000,
    bundle="market-data", benchmark_returns=pd.Series(0.0, index=sessions),
)  # fmt: skip
ours = read_bars("NVDA", "1d", end="2026-11-19", source="lake")["close"].tail(DAYS).to_numpy()
print(
    json.dumps(
        {
            "sessions": len(result),
            "largest_relative_difference": float(abs(seen["closes"].to_numpy() / ours - 1).max()),
            "gain": float(result["portfolio_value"].iloc[-1]) / 100_000,
        }
    )
)
