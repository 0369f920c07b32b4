"""Read a year of day bars and features, and draw them: close, its average true range and where volatility was high.

    .venv/bin/python docs/examples/read_features.py AAPL chart.png

The file's name chooses what is drawn: a picture (png, svg) or a page for a browser (html). In a notebook
`chart(bars, features, title)` alone shows it. Times are the bars' starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt

from market_data_pipeline import read_bars, read_features

if TYPE_CHECKING:
    import pandas as pd


def chart(bars: pd.DataFrame, features: pd.DataFrame, title: str) -> alt.VConcatChart:
    """Return a chart of bars and features with the same index."""
    rows = bars.join(features).reset_index()
    rows["band_low"], rows["band_high"] = rows["close"] - 2 * rows["atr"], rows["close"] + 2 * rows["atr"]
    time = alt.X("ts:T", title=None)
    base = alt.Chart(rows).properties(width=800)
    band = base.mark_area(opacity=0.2).encode(
        time, alt.Y("band_low:Q", title="US dollars", scale=alt.Scale(zero=False)), alt.Y2("band_high:Q")
    )
    close = base.mark_line().encode(time, alt.Y("close:Q"))
    calm = (
        base.mark_circle()
        .transform_filter("datum.volatility_regime !== null")
        .encode(time, alt.Y("close:Q"), alt.Color("volatility_regime:N", title="volatility"))
    )
    yearly = base.mark_line().encode(
        time, alt.Y("volatility_20:Q", title="volatility, 20 bars", axis=alt.Axis(format="%"))
    )
    return alt.vconcat((band + close + calm).properties(height=320, title=title), yearly.properties(height=120))


def main(symbol: str = "AAPL", target: str = "chart.png") -> None:
    """Draw the newest year of `symbol` into the file `target`."""
    bars = read_bars(symbol, "1d").tail(252)
    features = read_features(symbol, "1d", start=bars.index[0])
    print(features[["log_return", "volatility_20", "atr", "trend_regime"]].tail())
    chart(bars, features, f"{symbol}: close, within two average true ranges").save(
        target,
        **({"inline": True} if target.endswith(".html") else {}),  # a page that needs no network
    )
    print(f"{len(bars)} bars drawn in {Path(target).resolve()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
