"""Pictures of a tier for its assets' pages: prices with features, and which session days are held.

A picture is a PNG inside Markdown, because Dagster shows that wherever metadata is shown. It goes into Dagster's event
log, so it is drawn once a night and tier, in few colours (a tenth of the bytes), and shows at most so many symbols.
Importing this module imports altair and its renderer (1 s). Add here: how something is drawn. Keep out: what is read
for it (portraits).

What the pictures of a tier show, read from the database: its newest day bars with features, and its coverage.

Add here: what is read for a picture. Keep out: drawing (pictures) and where a picture is shown (quality).
"""

# ruff: noqa: S608 - the statements are put together of constants

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final

import altair as alt
import orjson
import vl_convert
from PIL import Image

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Engine

    from market_data_pipeline.domain.series import Tier


SYMBOLS_DRAWN: Final = 24  # what fits on a screen; a tier may hold hundreds

_COLUMNS: Final = 3  # as wide as the dialog in which Dagster shows Markdown, on a screen of 1,360 pixels

# Okabe and Ito's colours, told apart with any kind of sight, dark enough for white and light enough for black.
_BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#9A9A9A", "#CC79A7"

_TRENDS: Final = {"uptrend": _GREEN, "ranging": _GREY, "downtrend": _ORANGE}

_STATES: Final = {
    "complete": _BLUE,
    "provisional": _ORANGE,
    "empty_confirmed": _GREY,
    "clamped": "#DDDDDD",
    "failed": "#B00020",
    "not asked": _PURPLE,
}

_FONT: Final = 10

_SHADES: Final = 48  # eight colours with the edges between them


def price_and_volume(days: pd.DataFrame) -> str:
    """Return a picture with one panel per symbol: closing price by trend, its usual range, and volume.

    Args:
        days: adjusted day bars with features, one row per symbol and session: `symbol`, `ts`, `close`, `atr`,
            `volume`, `trend_regime`. Empty features are NULL.
    """
    rows = days.assign(low=days["close"] - 2 * days["atr"], high=days["close"] + 2 * days["atr"])
    # One line changes its colour with the trend: each piece reaches to the next point.
    rows["next_ts"] = rows.groupby("symbol")["ts"].shift(-1)
    rows["next_close"] = rows.groupby("symbol")["close"].shift(-1)
    time: Any = alt.X("ts:T", title=None, axis=alt.Axis(format="%b", tickCount=4, grid=False))
    panels = [_panel(rows[rows["symbol"] == symbol], str(symbol), time) for symbol in rows["symbol"].unique()]
    legend = (
        "Close by trend (green up, grey ranging, orange down) within two average true ranges; volume below, day bars"
    )
    return _markdown(alt.concat(*panels, columns=_COLUMNS, title=legend), legend)


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
    """Return a picture with one strip per symbol and fetched timeframe: a cell for each session day, by its state.

    Args:
        days: `symbol`, `timeframe`, `session_date` and `status`, a coverage status or `not asked`.
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
    return _markdown(strips, "What is held of each session day")


def _markdown(chart: Any, text: str) -> str:
    """Return a chart as Markdown that holds its PNG, on white: the page may be dark."""
    drawn = chart.configure(background="white").configure_view(stroke=None)
    drawn = drawn.configure_axis(labelFontSize=_FONT - 1, domainColor="#BBBBBB", tickColor="#BBBBBB")
    # orjson, because Altair's own JSON says NaN where a feature is not warm yet, which is none.
    spec = orjson.dumps(drawn.configure_title(fontSize=_FONT + 1, anchor="start").to_dict()).decode()
    png = _small(vl_convert.vegalite_to_png(spec, scale=1.5))
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _small(png: bytes) -> bytes:
    """Return a PNG with a palette of the few colours that a chart has."""
    with Image.open(io.BytesIO(png)) as picture, io.BytesIO() as smaller:
        picture.convert("RGB").quantize(_SHADES).save(smaller, "PNG", optimize=True)
        return smaller.getvalue()


_DRAWN: Final = """
with drawn as (
    select s.symbol, s.asset_class from market_data.symbols as s
    where s.tier = :tier and s.active order by s.symbol limit :symbols
)"""

# Half a year: enough for a trend, and a day is still wider than a pixel.
_PRICES: Final = (
    _DRAWN
    + """
select b.symbol, b.ts, b.close, b.volume, f.atr, f.trend_regime
from drawn join market_data.bars_adjusted as b on b.symbol = drawn.symbol
join market_data.features as f on f.symbol = b.symbol and f.timeframe = b.timeframe and f.ts = b.ts
where b.timeframe = '1d' and f.timeframe = '1d' and b.ts >= market_data.clock() - interval '183 days'
order by b.symbol, b.ts"""
)

# From the first day on that is covered at all: what lies before was never asked for.
_COVERAGE: Final = (
    _DRAWN
    + """
select k.symbol, k.timeframe, d.session_date, coalesce(c.status, 'not asked') as status
from (
    select h.symbol, h.timeframe, drawn.asset_class, min(h.session_date) as first_date
    from drawn join market_data.coverage as h on h.symbol = drawn.symbol group by 1, 2, 3
) as k
join market_data.sessions as d on d.asset_class = k.asset_class and d.session_date >= k.first_date
left join market_data.coverage as c
on c.symbol = k.symbol and c.timeframe = k.timeframe and c.session_date = d.session_date
where d.closes_at <= market_data.clock() and d.closes_at > market_data.clock() - interval '120 days'
order by k.symbol, k.timeframe desc, d.session_date"""
)


def prices(engine: Engine, tier: Tier) -> str | None:
    """Return the picture of a tier's prices, volumes and features as Markdown; None when it holds no day bars."""
    from market_data_pipeline.orchestration.checks.charts import price_and_volume

    days = _frame(engine, _PRICES, tier)
    return None if days.empty else price_and_volume(days)


def coverage(engine: Engine, tier: Tier) -> str | None:
    """Return the picture of what is held of each session day as Markdown; None when nothing was ever asked for."""
    import pandas as pd

    from market_data_pipeline.orchestration.checks.charts import coverage_strips

    days = _frame(engine, _COVERAGE, tier)
    return None if days.empty else coverage_strips(days.assign(session_date=pd.to_datetime(days["session_date"])))


def _frame(engine: Engine, statement: str, tier: Tier) -> pd.DataFrame:
    import pandas as pd
    import sqlalchemy as sa

    from market_data_pipeline.orchestration.checks.charts import SYMBOLS_DRAWN

    values: dict[str, Any] = {"tier": tier.value, "symbols": SYMBOLS_DRAWN}
    with engine.connect() as connection:
        found = connection.execute(sa.text(statement), values)
        return pd.DataFrame(found.all(), columns=list(found.keys()))
