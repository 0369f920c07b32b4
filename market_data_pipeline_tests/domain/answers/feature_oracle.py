"""The 17 features, a second time: plain loops straight from their definitions, slow and without any library.

Shares nothing with the code under test; exact rational arithmetic stands behind `statistics`' deviations. One bar is
a tuple (ts, high, low, close, volume), ts an aware UTC datetime; one answer is a dict with None for NULL.
"""

from __future__ import annotations

import math
import statistics
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

Bar = tuple[datetime, float, float, float, float]
Row = dict[str, float | bool | str | None]

BARS_PER_YEAR = {
    ("us_equity", "5m"): 48_384.0,
    ("us_equity", "15m"): 16_128.0,
    ("us_equity", "1h"): 4_032.0,
    ("us_equity", "4h"): 1_008.0,
    ("us_equity", "1d"): 252.0,
    ("crypto", "5m"): 105_120.0,
    ("crypto", "15m"): 35_040.0,
    ("crypto", "1h"): 8_760.0,
    ("crypto", "4h"): 2_190.0,
    ("crypto", "1d"): 365.0,
    ("forex", "5m"): 74_880.0,  # 52 weeks of 120 hours
    ("forex", "15m"): 24_960.0,
    ("forex", "1h"): 6_240.0,
    ("forex", "4h"): 1_560.0,
    ("forex", "1d"): 312.0,  # six days a week, of which Sunday is short
    ("index", "5m"): 19_656.0,  # 252 days of 6.5 hours
    ("index", "15m"): 6_552.0,
    ("index", "1h"): 1_638.0,
    ("index", "4h"): 409.5,
    ("index", "1d"): 252.0,
}


def features(bars: list[Bar], timeframe: str, asset_class: str) -> list[Row]:
    """Return the features of every bar."""
    tz = ZoneInfo("America/New_York" if asset_class in ("us_equity", "index") else "UTC")
    dates = [bar[0].astimezone(tz).date() for bar in bars]
    close = [bar[3] for bar in bars]
    scale = math.sqrt(BARS_PER_YEAR[asset_class, timeframe])
    ema_20, ema_50 = _ema(close, 20), _ema(close, 50)
    rows: list[Row] = []
    widths: list[float | None] = []
    true_ranges: list[float] = []
    for t, (ts, high, low, c, volume) in enumerate(bars):
        row: Row = {}
        row["log_return"] = math.log(c / close[t - 1]) if t >= 1 else None

        row["return_1h"] = None
        if timeframe not in ("4h", "1d"):
            for r in range(t - 1, -1, -1):
                if dates[r] == dates[t] and bars[r][0] <= ts - timedelta(hours=1):
                    row["return_1h"] = c / close[r] - 1
                    break

        row["return_1d"] = None
        for r in range(t - 1, -1, -1):
            if timeframe == "1d" or dates[r] < dates[t]:
                row["return_1d"] = c / close[r] - 1
                break

        returns = [row["log_return"]] if t else []
        returns = [rows[k]["log_return"] for k in range(1, t)] + returns
        row["volatility_20"] = statistics.stdev(returns[-20:]) * scale if len(returns) >= 20 else None
        row["volatility_50"] = statistics.stdev(returns[-50:]) * scale if len(returns) >= 50 else None

        row["atr"] = None
        if t >= 1:
            true_ranges.append(max(high - low, abs(high - close[t - 1]), abs(low - close[t - 1])))
        if t == 14:
            row["atr"] = sum(true_ranges) / 14
        if t > 14:
            row["atr"] = (13 * rows[t - 1]["atr"] + true_ranges[-1]) / 14

        has_volume = t >= 19 and asset_class != "index"
        row["rolling_volume_20"] = math.fsum(bar[4] for bar in bars[t - 19 : t + 1]) / 20 if has_volume else None
        row["volume_ratio"] = volume / row["rolling_volume_20"] if row["rolling_volume_20"] else None

        row["hh"] = row["hl"] = row["lh"] = row["ll"] = None
        row["trend_direction"] = row["structure_label"] = None
        if t >= 5:
            before = bars[t - 5 : t]
            row["hh"] = high > max(bar[1] for bar in before)
            row["hl"] = low > min(bar[2] for bar in before)
            row["lh"] = high < max(bar[1] for bar in before)
            row["ll"] = low < min(bar[2] for bar in before)
            change = c / close[t - 5] - 1
            row["trend_direction"] = "up" if change > 0.01 else "down" if change < -0.01 else "neutral"
            row["structure_label"] = "range"
            if row["hh"] and row["hl"]:
                row["structure_label"] = "bullish"
            elif row["lh"] and row["ll"]:
                row["structure_label"] = "bearish"

        row["volatility_regime"] = None
        volatilities = [earlier["volatility_50"] for earlier in rows[-49:]] + [row["volatility_50"]]
        if len(volatilities) == 50 and None not in volatilities:
            median = statistics.median(volatilities)
            v = row["volatility_50"]
            row["volatility_regime"] = "low" if v < 0.7 * median else "high" if v > 1.3 * median else "medium"

        row["trend_regime"] = None
        if ema_50[t] is not None:
            apart = ema_20[t] - ema_50[t]
            row["trend_regime"] = "ranging" if abs(apart) <= 0.001 * c else "uptrend" if apart > 0 else "downtrend"

        row["compression_regime"] = None
        window = close[t - 19 : t + 1] if t >= 19 else []
        widths.append(4 * statistics.pstdev(window) / statistics.mean(window) if window else None)
        recent = widths[-50:]
        if len(recent) == 50 and None not in recent:
            compressed = widths[-1] < 0.7 * statistics.median(recent)
            row["compression_regime"] = "compressed" if compressed else "expanded"
        rows.append(row)
    return rows


def _ema(values: list[float], n: int) -> list[float | None]:
    """Return the exponential average with alpha = 2 / (n + 1), seeded with the mean of the first n values."""
    alpha = 2 / (n + 1)
    averages: list[float | None] = []
    for t, value in enumerate(values):
        if t < n - 1:
            averages.append(None)
        elif t == n - 1:
            averages.append(sum(values[:n]) / n)
        else:
            averages.append(alpha * value + (1 - alpha) * averages[-1])
    return averages
