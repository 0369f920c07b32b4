"""The 17 features by name, with type, unit and warm-up, in the order of the table's columns.

SQL columns, API schema and documentation follow this declaration; tests compare them with it. To add a feature, see
CONTRIBUTING.md. Code that needs only the names imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Timeframe

FEATURE_VERSION: Final = 1  # raise it when a definition changes: stored rows of a lower version are recomputed

WARM_UP_BARS: Final = 1_500
"""Earlier bars that make an incremental computation equal the full one.

Windows need 99 (the median of 50 `volatility_50`), `return_1d` the rest of the session and the last bar before it
(at most 289: 5-minute bars round the clock), but an EMA and Wilder's average never quite forget their seed. Bar by bar
they approach what the full history gives, first in value, finally in every bit; from there on a label cannot fall on
the other side of its threshold. Measured on 1,500 moving series (random walks, cents, ramps, a fall by a factor of 1e6
in one bar), bars until bit-identical: EMA 50 at most 1,368, Wilder 14 at most 818. In value, seeds weigh
(49/51)^1,450 = 6e-26 and (13/14)^1,486 = 2e-48 by then. While a price does not move, two EMAs may stay a few last bits
apart, far from any threshold; for the average true range see `compute.warm_up_suffices`.
"""

WINDOW_BARS: Final = 310
"""Earlier bars that all features but the two averages depend on: 99 for windows, 289 for `return_1d`; see above."""

SQL_TYPES: Final = {"float": "double precision", "bool": "boolean", "text": "text"}


class Feature(NamedTuple):
    """One column of the feature table.

    Attributes:
        name: the column.
        dtype: `float`, `bool` or `text`; any of them may be NULL.
        unit: of the value; empty for booleans and labels.
        warm_up: index of the series' first bar whose value is not NULL; None where it depends on sessions and gaps.
        price_scaled: True when a split known later changes the values of earlier bars.
        description: one line for users.
        labels: the values of a `text` feature, else empty.
    """

    name: str
    dtype: Literal["float", "bool", "text"]
    unit: str
    warm_up: int | None
    price_scaled: bool
    description: str
    labels: tuple[str, ...] = ()

    @property
    def sql_type(self) -> str:
        """The column's type in PostgreSQL."""
        return SQL_TYPES[self.dtype]


def _float(name: str, unit: str, warm_up: int | None, description: str, *, price_scaled: bool = False) -> Feature:
    return Feature(name, "float", unit, warm_up, price_scaled, description)


def _bool(name: str, description: str) -> Feature:
    return Feature(name, "bool", "", 5, False, description)


def _text(name: str, warm_up: int, labels: tuple[str, ...], description: str) -> Feature:
    return Feature(name, "text", "", warm_up, False, description, labels)


FEATURES: Final[tuple[Feature, ...]] = (
    _float("log_return", "log ratio", 1, "ln of close over the previous close"),
    _float("return_1h", "ratio", None, "close over the close one hour earlier in the session, minus 1; not for 4h, 1d"),
    _float("return_1d", "ratio", None, "close over the last close of the previous session that has bars, minus 1"),
    _float("volatility_20", "per sqrt(year)", 20, "annualised sample standard deviation of 20 log returns"),
    _float("volatility_50", "per sqrt(year)", 50, "annualised sample standard deviation of 50 log returns"),
    _float("atr", "price", 14, "Wilder's average true range over 14 bars", price_scaled=True),
    _float("rolling_volume_20", "shares", 19, "mean volume of 20 bars", price_scaled=True),
    _float("volume_ratio", "ratio", 19, "volume over rolling_volume_20; NULL when that is 0"),
    _bool("hh", "high above the highest of the 5 bars before"),
    _bool("hl", "low above the lowest of the 5 bars before"),
    _bool("lh", "high below the highest of the 5 bars before"),
    _bool("ll", "low below the lowest of the 5 bars before"),
    _text("trend_direction", 5, ("up", "down", "neutral"), "close against the close 5 bars before, more than 1 %"),
    _text("structure_label", 5, ("bullish", "bearish", "range"), "hh and hl, lh and ll, or neither"),
    _text(
        "volatility_regime", 99, ("low", "medium", "high"), "volatility_50 against its median of 50: 0.7 and 1.3 of it"
    ),
    _text("trend_regime", 49, ("uptrend", "downtrend", "ranging"), "EMA 20 against EMA 50, more than 0.1 % of close"),
    _text("compression_regime", 68, ("compressed", "expanded"), "Bollinger width against 0.7 of its median of 50"),
)

FEATURE_NAMES: Final = tuple(feature.name for feature in FEATURES)


def bars_per_year(timeframe: Timeframe, asset_class: AssetClass) -> float:
    """Return how many bars make a year, the factor that annualises a variance.

    US equities count 252 days of 960 minutes (the extended session), crypto 365 days of 1,440, forex 52 weeks of 120
    hours or of six day bars (Sunday's is one), indices 252 days of 390 minutes (the regular hours).
    """
    market = asset_class.market
    return float(market.day_bars_a_year) if timeframe is Timeframe.D1 else market.minutes_a_year / timeframe.minutes
