"""Make the feature answer files with other libraries: Polars for windows and joins, talipp for averages.

Run once, outside the project's environment (`pip install polars talipp`), as `python make_feature_answers.py`; nothing
here touches the package. Input is `data/real_sample`, output the two files described in README.md beside this script.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
from talipp.indicators import EMA, SMMA

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "data" / "real_sample"
PRICES = ["open", "high", "low", "close"]


def adjusted(folder: str) -> pl.DataFrame:
    """Return Apple's bars with the splits of 2014 and 2020 applied to what comes before them."""
    bars = pl.read_csv(SAMPLE / folder / "AAPL.csv.gz").with_columns(
        ts=pl.from_epoch("window_start", time_unit="ns").dt.replace_time_zone("UTC").dt.cast_time_unit("us")
    )
    splits = pl.read_csv(SAMPLE / "splits.csv", try_parse_dates=True)
    factor = pl.lit(1.0)
    for split in splits.iter_rows(named=True):
        date = (
            pl.lit(split["execution_date"])
            .cast(pl.Datetime("us"))
            .dt.replace_time_zone("America/New_York")
            .dt.convert_time_zone("UTC")
        )
        factor = factor * pl.when(pl.col("ts") < date).then(split["split_from"] / split["split_to"]).otherwise(1.0)
    return bars.with_columns(factor=factor).select(
        "ts", *(pl.col(name) * pl.col("factor") for name in PRICES), volume=pl.col("volume") / pl.col("factor")
    )


def five_minutes(bars: pl.DataFrame) -> pl.DataFrame:
    """Return 5-minute bars of minute bars."""
    return bars.group_by_dynamic("ts", every="5m").agg(
        open=pl.col("open").first(),
        high=pl.col("high").max(),
        low=pl.col("low").min(),
        close=pl.col("close").last(),
        volume=pl.col("volume").sum(),
    )


def features(bars: pl.DataFrame, bars_per_year: float, *, daily: bool) -> pl.DataFrame:
    """Return `ts` and the 17 features."""
    c, h, low, v = pl.col("close"), pl.col("high"), pl.col("low"), pl.col("volume")
    true_range = bars.select(pl.max_horizontal(h - low, (h - c.shift(1)).abs(), (low - c.shift(1)).abs()))
    # talipp's own ATR starts with the first bar's range, which has no previous close: its Wilder average of the others
    atr = [None, *SMMA(14, true_range.to_series().to_list()[1:])]
    frame = bars.with_columns(
        date=pl.col("ts").dt.convert_time_zone("America/New_York").dt.date(),
        atr=pl.Series(atr, dtype=pl.Float64),
        ema_20=pl.Series(list(EMA(20, bars["close"].to_list())), dtype=pl.Float64),
        ema_50=pl.Series(list(EMA(50, bars["close"].to_list())), dtype=pl.Float64),
        log_return=(c / c.shift(1)).log(),
        rolling_volume_20=v.rolling_mean(20),
        highest=h.shift(1).rolling_max(5),
        lowest=low.shift(1).rolling_min(5),
        change_5=c / c.shift(5) - 1,
        width=4 * c.rolling_std(20, ddof=0) / c.rolling_mean(20),
    )
    if daily:
        frame = frame.with_columns(return_1d=c.pct_change(), return_1h=pl.lit(None, dtype=pl.Float64))
    else:
        last = (
            frame.group_by("date", maintain_order=True).agg(last=c.last()).with_columns(before=pl.col("last").shift(1))
        )
        earlier = frame.select("date", hour_ago=pl.col("ts") + pl.duration(hours=1), earlier=c)
        frame = (
            frame.join(last.select("date", "before"), on="date", how="left", maintain_order="left")
            .join_asof(earlier, left_on="ts", right_on="hour_ago", by="date", check_sortedness=False)
            .with_columns(return_1d=c / pl.col("before") - 1, return_1h=c / pl.col("earlier") - 1)
        )
    frame = frame.with_columns(
        volatility_20=pl.col("log_return").rolling_std(20) * bars_per_year**0.5,
        volatility_50=pl.col("log_return").rolling_std(50) * bars_per_year**0.5,
        volume_ratio=v / pl.col("rolling_volume_20"),
        hh=h > pl.col("highest"),
        hl=low > pl.col("lowest"),
        lh=h < pl.col("highest"),
        ll=low < pl.col("lowest"),
    ).with_columns(
        volatility_median=pl.col("volatility_50").rolling_median(50), width_median=pl.col("width").rolling_median(50)
    )
    apart = pl.col("ema_20") - pl.col("ema_50")
    volatility, median = pl.col("volatility_50"), pl.col("volatility_median")
    labels = {
        "trend_direction": [("up", pl.col("change_5") > 0.01), ("down", pl.col("change_5") < -0.01), "neutral"],
        "structure_label": [
            ("bullish", pl.col("hh") & pl.col("hl")),
            ("bearish", pl.col("lh") & pl.col("ll")),
            "range",
        ],
        "volatility_regime": [("low", volatility < 0.7 * median), ("high", volatility > 1.3 * median), "medium"],
        "trend_regime": [("ranging", apart.abs() <= 0.001 * c), ("uptrend", apart > 0), "downtrend"],
        "compression_regime": [("compressed", pl.col("width") < 0.7 * pl.col("width_median")), "expanded"],
    }
    known = {
        "trend_direction": "change_5",
        "structure_label": "hh",
        "volatility_regime": "volatility_median",
        "trend_regime": "ema_50",
        "compression_regime": "width_median",
    }
    columns = []
    for name, (*cases, otherwise) in labels.items():
        choice = pl.when(pl.col(known[name]).is_null()).then(None)
        for label, condition in cases:
            choice = choice.when(condition).then(pl.lit(label))
        columns.append(choice.otherwise(pl.lit(otherwise)).alias(name))
    floats = ["log_return", "return_1h", "return_1d", "volatility_20", "volatility_50", "atr", "rolling_volume_20"]
    return frame.with_columns(columns).select("ts", *floats, "volume_ratio", "hh", "hl", "lh", "ll", *labels)


if __name__ == "__main__":
    answers = {
        "features_aapl_1d.csv.gz": features(adjusted("day"), 252, daily=True),
        "features_aapl_5m.csv.gz": features(five_minutes(adjusted("minute")), 252 * 960 / 5, daily=False),
    }
    for name, frame in answers.items():
        text = frame.with_columns(pl.col("ts").dt.epoch("us")).write_csv()
        (HERE / name).write_bytes(gzip.compress(text.encode(), mtime=0))
