"""The charts of a tier on its checks' pages: prices with features, and the coverage of each session day.

A chart is a PNG inside Markdown metadata, which Dagster shows wherever it shows metadata
(https://docs.dagster.io/guides/build/assets/metadata-and-tags). It goes into Dagster's event log, so it is drawn once
per tier and night, in few colours (a tenth of the bytes), and shows at most `SYMBOLS_DRAWN` symbols. Importing this
module imports altair and its renderer (1 s), so quality imports it inside its step.
"""

from __future__ import annotations

import base64
import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import altair as alt
import orjson
import vl_convert
from PIL import Image

from market_data_pipeline.reports.charts import coverage_days, day_bars

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Engine

    from market_data_pipeline.domain.series import Tier

SYMBOLS_DRAWN: Final = 24  # what fits on a screen; a tier may hold hundreds

_COLUMNS: Final = 3  # as wide as the dialog in which Dagster shows Markdown, on a screen of 1,360 pixels

# Okabe and Ito's colours, distinct for any kind of colour vision, dark enough for white and light enough for black.
_BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#9A9A9A", "#CC79A7"

_TRENDS: Final = {"uptrend": _GREEN, "ranging": _GREY, "downtrend": _ORANGE}

_STATES: Final = {
    "complete": _BLUE,
    "provisional": _ORANGE,
    "empty_confirmed": _GREY,
    "clamped": "#DDDDDD",
    "failed": "#B00020",
    "not fetched": _PURPLE,
}

_FONT: Final = 10

_MONTHS_FROM: Final = timedelta(days=62)  # so that two months begin in it at least

_SHADES: Final = 48  # eight colours with the edges between them


def prices(engine: Engine, tier: Tier) -> str | None:
    """Return the chart of a tier's prices, volumes and features as Markdown; None when it holds no day bars."""
    days = day_bars(engine, tier, SYMBOLS_DRAWN)
    return None if days.empty else price_and_volume(days)


def coverage(engine: Engine, tier: Tier) -> str | None:
    """Return the chart of a tier's coverage as Markdown; None when nothing was ever fetched."""
    days = coverage_days(engine, tier, SYMBOLS_DRAWN)
    return None if days.empty else coverage_strips(days)


def price_and_volume(days: pd.DataFrame) -> str:
    """Return a chart with one panel per symbol: closing price by trend, two average true ranges around it, and volume.

    Args:
        days: adjusted day bars with features, one row per symbol and session: `symbol`, `ts`, `close`, `atr`,
            `volume`, `trend_regime`. Empty features are NULL.
    """
    rows = days.assign(low=days["close"] - 2 * days["atr"], high=days["close"] + 2 * days["atr"])
    # One line changes its colour with the trend: each piece reaches to the next point.
    rows["next_ts"] = rows.groupby("symbol")["ts"].shift(-1)
    rows["next_close"] = rows.groupby("symbol")["close"].shift(-1)
    time: Any = alt.X("ts:T", title=None, axis=time_axis(rows["ts"].max() - rows["ts"].min()))
    panels = [_panel(rows[rows["symbol"] == symbol], str(symbol), time) for symbol in rows["symbol"].unique()]
    legend = (
        "Close by trend (green up, grey ranging, orange down) within two average true ranges; volume below, day bars"
    )
    return _markdown(alt.concat(*panels, columns=_COLUMNS, title=legend), legend)


def time_axis(span: timedelta) -> Any:
    """Return the axis of a panel: a name at the start of each month, or days where there are too few months.

    Left to choose, the ticks of some spans lie closer than a month, and a month's name then stands there twice.
    """
    if span < _MONTHS_FROM:
        return alt.Axis(format="%d %b", tickCount=3, grid=False)
    return alt.Axis(format="%b", tickCount=alt.TimeIntervalStep(interval="month", step=1), grid=False)


def _panel(rows: pd.DataFrame, symbol: str, time: Any) -> alt.VConcatChart:
    base = alt.Chart(rows).properties(width=170)
    price = alt.Scale(zero=False)
    band = base.mark_area(opacity=0.25, color=_BLUE).encode(
        time, alt.Y("low:Q", title=None, scale=price, axis=alt.Axis(tickCount=3)), alt.Y2("high:Q")
    )
    line = base.mark_rule(strokeWidth=1.6).encode(
        time,
        alt.Y("close:Q"),
        alt.X2("next_ts:T"),
        alt.Y2("next_close:Q"),
        alt.Color("trend_regime:N", legend=None, scale=alt.Scale(domain=list(_TRENDS), range=list(_TRENDS.values()))),
    )
    bars = base.mark_bar(color=_GREY, width=1).encode(
        time, alt.Y("volume:Q", title=None, axis=alt.Axis(tickCount=2, format="~s"))
    )
    upper = (band + line).properties(height=80, title=alt.Title(symbol, anchor="start", fontSize=_FONT + 1))
    return alt.vconcat(upper, bars.properties(height=26), spacing=2)


def coverage_strips(days: pd.DataFrame) -> str:
    """Return a chart with one strip per symbol and fetched timeframe: a cell for each session day, by its status.

    Args:
        days: `symbol`, `timeframe`, `session_date` and `status`, a coverage status or `not fetched`.
    """
    seen = [state for state in _STATES if state in set(days["status"])]
    strips = (
        alt.Chart(days.assign(series=days["symbol"] + " " + days["timeframe"]))
        .mark_bar(height=9, width=5)
        .encode(
            alt.X("session_date:T", title=None, axis=alt.Axis(format="%d %b", tickCount=10, grid=False)),
            alt.Y("series:N", title=None, sort=None, axis=alt.Axis(labelPadding=6)),
            alt.Color(
                "status:N",
                title=None,
                legend=alt.Legend(orient="top"),
                scale=alt.Scale(domain=seen, range=[_STATES[state] for state in seen]),
            ),
        )
        .properties(width=600, height=alt.Step(12))
    )
    return _markdown(strips, "Coverage of each session day")


def _markdown(chart: Any, text: str) -> str:
    """Return a chart as Markdown that holds its PNG, on white: the page may be dark."""
    drawn = chart.configure(background="white").configure_view(stroke=None)
    drawn = drawn.configure_axis(labelFontSize=_FONT - 1, domainColor="#BBBBBB", tickColor="#BBBBBB")
    # orjson, because Altair writes NaN, which is not JSON, where a feature has not warmed up yet.
    spec = orjson.dumps(drawn.configure_title(fontSize=_FONT + 1, anchor="start").to_dict()).decode()
    png = _small(vl_convert.vegalite_to_png(spec, scale=1.5))
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _small(png: bytes) -> bytes:
    """Return a PNG with a palette of the few colours that a chart has."""
    with Image.open(io.BytesIO(png)) as image, io.BytesIO() as smaller:
        image.convert("RGB").quantize(_SHADES).save(smaller, "PNG", optimize=True)
        return smaller.getvalue()
