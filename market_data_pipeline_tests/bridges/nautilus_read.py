"""Write a catalog with the program of docs/examples, read it back, and print how it differs from ours, as JSON."""

from __future__ import annotations

import json

import nautilus_catalog
from nautilus_trader.persistence.catalog import ParquetDataCatalog

from market_data_pipeline import read_bars

START = "2026-11-10"
written = nautilus_catalog.write("catalog", ["AAPL", "NVDA"], "5m", START)
bars = ParquetDataCatalog("catalog").bars(["NVDA.XNAS-5-MINUTE-LAST-EXTERNAL"])
ours = read_bars("NVDA", "5m", start=START, source="lake")
pairs = list(zip(bars, ours.index, ours["close"], strict=True))
result = {
    "written": written,
    "bars": len(bars),
    "ours": len(ours),
    "largest_difference": max(abs(float(bar.close) - close) for bar, _, close in pairs),
    "minutes_from_start_to_label": sorted({(bar.ts_event - start.value) / 60e9 for bar, start, _ in pairs}),
}
print(json.dumps(result))
