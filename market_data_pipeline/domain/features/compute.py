"""Compute the 17 features of one series, a pure function of its split-adjusted bars.

Two laws hold, and property tests try to break them: any sequence of appends and corrections leaves the rows that one
computation from the first bar gives (floats to 1e-9 relative, labels and NULLs exactly), and features of bars 0..t do
not change when later bars are removed. Importing this module loads pandas and TA-Lib, so import it where it is used.

Short series of many symbols are computed at once, one behind the other (`features_of_many`): a value depends on its
window alone, so those whose window would reach into the series before are exactly those that have no value yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import talib

from market_data_pipeline.domain.bars import array
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import FeatureError
from market_data_pipeline.domain.features import rolling
from market_data_pipeline.domain.features.definitions import (
    FEATURE_NAMES,
    FEATURES,
    WARM_UP_BARS,
    WINDOW_BARS,
    Feature,
    bars_per_year,
)
from market_data_pipeline.domain.series import Timeframe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from numpy.typing import NDArray

    from market_data_pipeline.domain.series import AssetClass

    Floats: TypeAlias = NDArray[np.float64]
    Flags: TypeAlias = NDArray[np.bool_]
    Codes: TypeAlias = NDArray[np.int8]  # of labels, by their order in the declaration

HOUR_US: Final = 3_600_000_000
_APART_BITS: Final = 52  # microseconds since 1970 take 51 until 2041 and 52 until 2112, which leaves 2,000 series

STRUCTURE_BARS: Final = 5
TREND_THRESHOLD: Final = 0.01
RANGING_THRESHOLD: Final = 0.001
LOW_VOLATILITY, HIGH_VOLATILITY = 0.7, 1.3
COMPRESSED: Final = 0.7
REGIME_BARS: Final = 50

# An average true range this small relative to the price is what remains of a seed after more than 900 bars without
# movement (13/14 to that power): it still shows how the average started, see warm_up_suffices.
MOTIONLESS: Final = 1e-30
# 214 bars after a movement of this size relative to the price, the average is still 1e-29 of the price.
MOVING: Final = 1e-20
SOON: Final = 200

_COLUMNS: Final = pd.Index(["ts", *FEATURE_NAMES])
_DTYPES: Final[dict[str, Any]] = {f.name: pd.CategoricalDtype(list(f.labels)) for f in FEATURES if f.labels}


def compute_features(bars: pd.DataFrame, timeframe: Timeframe, asset_class: AssetClass) -> pd.DataFrame:
    """Return the features of every bar.

    Args:
        bars: a bar frame (see `domain.bars`) of one series, split-adjusted.
        timeframe: the bars' length.
        asset_class: chooses the session dates (New York or UTC) and the bars per year.

    Returns:
        One row per bar: `ts` and the columns of `FEATURES` in their order. `float`: float64 with NaN for NULL, never
        infinite. `bool`: pandas `boolean` with NA. `text`: a pandas Categorical over the feature's `labels` with NA,
        which pyarrow converts to a dictionary or to plain strings at once.

    Raises:
        FeatureError: TA-Lib's process-wide settings were changed, so that its averages would be seeded differently.
    """
    return features_from(bars, 0, timeframe, asset_class)


def features_from(bars: pd.DataFrame, first_new: int, timeframe: Timeframe, asset_class: AssetClass) -> pd.DataFrame:
    """Return the features of bars[first_new:] only, as `compute_features` does; the bars before are warm-up.

    They equal what the whole history gives if `bars` starts with the series' first bar, or if
    `warm_up_suffices(bars, first_new)`.

    Raises:
        FeatureError: as `compute_features`.
    """
    _check_talib()
    ts = array(bars, "ts")
    starts: NDArray[np.int64] = ts.as_unit("us").asi8
    high, low, close, volume = (
        np.ascontiguousarray(array(bars, name), dtype="float64") for name in ("high", "low", "close", "volume")
    )
    # Only the averages need all of the warm-up; nothing else depends on bars before `begin`.
    begin = max(0, first_new - WINDOW_BARS)
    recent = slice(begin, None)
    with np.errstate(all="ignore"):
        averages: dict[str, Any] = {
            "atr": _average_true_range(high, low, close),
            "trend_regime": _trend_regime(_ema_ahead(close), close),
        }
        high, low, close, volume = high[recent], low[recent], close[recent], volume[recent]
        windows: dict[str, Any] = {
            **_returns(starts[recent], close, timeframe, calendar_for(asset_class).first_of_days(starts[recent])),
            **_volatility(close, bars_per_year(timeframe, asset_class)),
            **_volume(volume),
            **_structure(high, low),
            "trend_direction": _trend_direction(close),
            "compression_regime": _compression_regime(close, np.frexp(np.median(close))[1] if len(close) else 0),
        }
    columns = [
        _column(f, averages[f.name], first_new)
        if f.name in averages
        else _column(f, windows[f.name], first_new - begin)
        for f in FEATURES
    ]
    # The public constructor checks every column again: a tenth of the time of appending one bar.
    return pd.DataFrame._from_arrays(  # type: ignore[attr-defined,no-any-return]
        [ts[first_new:], *columns], columns=_COLUMNS, index=pd.RangeIndex(len(bars) - first_new), verify_integrity=False
    )


def features_of_many(
    starts: NDArray[np.int64],
    values: Mapping[str, Floats],
    offsets: NDArray[np.int64],
    timeframe: Timeframe,
    asset_class: AssetClass,
) -> dict[str, Floats | Codes | tuple[Flags, Flags]]:
    """Return the features of whole histories of several series, one behind the other.

    Args:
        starts: of the bars, int64 microseconds since 1970 UTC, ascending within each series.
        values: `high`, `low`, `close` and `volume`, split-adjusted, as long as `starts`.
        offsets: where each series begins, and the end of the last one; none is empty.
        timeframe: the bars' length.
        asset_class: chooses the session dates and the bars per year.

    Returns:
        By feature, values as long as `starts`: floats with NaN for NULL; of a boolean, its values and which are NULL;
        of a label, its place in the declared order, -1 for NULL. `compute_features` gives the same for each series.

    Raises:
        FeatureError: as `compute_features`.
    """
    _check_talib()
    high, low, close, volume = (
        np.ascontiguousarray(values[name], dtype="float64") for name in ("high", "low", "close", "volume")
    )
    counts = np.diff(offsets)
    begins = np.repeat(offsets[:-1], counts)
    age = np.arange(len(starts)) - begins
    days = calendar_for(asset_class).session_days(starts)
    opens = np.flatnonzero((age == 0) | np.r_[True, days[1:] != days[:-1]])
    # Ascending over all series: what would be searched for in one lies before the next.
    apart = starts + (np.repeat(np.arange(len(counts)), counts) << _APART_BITS)
    # A power of two of about each series' prices, see _compression_regime.
    exponents = np.repeat(np.frexp(close[offsets[:-1]])[1], counts)
    parts = [slice(*bounds) for bounds in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    with np.errstate(all="ignore"):
        atr = np.concatenate([_average_true_range(high[part], low[part], close[part]) for part in parts])
        ahead = np.concatenate([_ema_ahead(close[part]) for part in parts])
        found: dict[str, Any] = {
            "atr": atr,
            "trend_regime": _trend_regime(ahead, close),
            **_returns(apart, close, timeframe, opens, begins),
            **_volatility(close, bars_per_year(timeframe, asset_class)),
            **_volume(volume),
            **_structure(high, low),
            "trend_direction": _trend_direction(close),
            "compression_regime": _compression_regime(close, exponents),
        }
    for feature in FEATURES:
        of_it = found[feature.name]
        early = age < (1 if feature.warm_up is None else feature.warm_up)
        if isinstance(of_it, tuple):
            of_it[1][early] = True
        elif feature.labels:
            of_it[early] = -1
        else:
            of_it[early | ~np.isfinite(of_it)] = np.nan
    return found


def warm_up_suffices(bars: pd.DataFrame, first_new: int) -> bool:
    """Return whether bars that start in mid-history give bars[first_new:] the features that the whole history gives.

    That takes `WARM_UP_BARS` bars before `first_new`, and prices that moved: after a thousand bars without movement (a
    dead ticker) the average true range is only what remains of older bars, which a computation without them cannot
    know. If False, compute from the series' first bar.
    """
    if first_new < WARM_UP_BARS:
        return False
    high, low = array(bars, "high"), array(bars, "low")
    moved = (high - low)[first_new - 13 : first_new + 1].max(initial=0.0)
    if len(bars) - first_new <= SOON and moved > MOVING * high.max():
        return True  # the usual case, without computing anything
    high, low, close = (np.ascontiguousarray(array(bars, name), dtype="float64") for name in ("high", "low", "close"))
    atr = talib.ATR(high, low, close, timeperiod=14)[first_new:]
    return bool(np.all(atr > MOTIONLESS * high.max()))


def _check_talib() -> None:
    unstable = (talib.get_unstable_period(name) for name in ("EMA", "ATR"))  # type: ignore[attr-defined]
    if talib.get_compatibility() or any(unstable):  # type: ignore[attr-defined]
        raise FeatureError(
            "TA-Lib's compatibility or unstable period was changed in this process, so EMA and ATR would not be seeded "
            "as defined; restore talib.set_compatibility(0) and talib.set_unstable_period(name, 0)."
        )


def _column(feature: Feature, values: Floats | Codes | tuple[Flags, Flags], first: int) -> object:
    """Return values[first:] as a frame's column: floats; (values, is NULL) as booleans; codes (-1: NULL) as labels."""
    if isinstance(values, tuple):
        return pd.arrays.BooleanArray(values[0][first:], values[1][first:])
    values = values[first:]
    if feature.labels:
        return pd.Categorical.from_codes(values, dtype=_DTYPES[feature.name], validate=False)  # type: ignore[arg-type]
    values[~np.isfinite(values)] = np.nan
    return values


def _returns(
    starts: NDArray[np.int64],
    close: Floats,
    timeframe: Timeframe,
    opens: NDArray[np.int64],
    begins: NDArray[np.int64] | int = 0,
) -> dict[str, Floats]:
    """Return the returns; `opens` are the indices of each session's first bar, `begins` that of the series' first."""
    none = np.full(len(close), np.nan)
    if timeframe is Timeframe.D1:
        return {"return_1h": none, "return_1d": rolling.change(close, 1) - 1}
    counts = np.empty_like(opens)
    counts[:-1], counts[-1:] = opens[1:], len(close)
    counts -= opens
    last_before = np.repeat(opens - 1, counts)
    return_1d = np.where(last_before >= begins, close / close[last_before] - 1, np.nan)
    if timeframe is Timeframe.H4:
        return {"return_1h": none, "return_1d": return_1d}
    hour_before = _hour_before(starts, timeframe)
    in_session = hour_before > last_before
    return {"return_1h": np.where(in_session, close / close[hour_before] - 1, np.nan), "return_1d": return_1d}


def _hour_before(starts: NDArray[np.int64], timeframe: Timeframe) -> NDArray[np.int64]:
    """Return for every bar the index of the latest one that started an hour earlier or before; -1 for none."""
    index = np.maximum(np.arange(len(starts)) - 60 // timeframe.minutes, -1)
    earlier = starts - HOUR_US
    # Without a gap it is as many bars back as an hour has; only across a gap must it be searched for.
    gap = starts[index] != earlier
    index[gap] = np.searchsorted(starts, earlier[gap], side="right") - 1
    return index


def _volatility(close: Floats, per_year: float) -> dict[str, Floats | Codes]:
    log_return = np.log(rolling.change(close, 1))
    log_return[~np.isfinite(log_return)] = np.nan
    windows = rolling.trailing_moments(log_return, (20, 50))
    for window in windows:
        volatility = np.divide(window.squares, window.size - 1, out=window.squares)
        np.sqrt(volatility, out=volatility)
        volatility *= np.sqrt(per_year)
    volatility_20, volatility_50 = (window.squares for window in windows)
    median = rolling.trailing_median(volatility_50, REGIME_BARS)
    regime = 1 + _ones(volatility_50 > HIGH_VOLATILITY * median) - _ones(volatility_50 < LOW_VOLATILITY * median)
    regime[np.isnan(median)] = -1
    return {
        "log_return": log_return,
        "volatility_20": volatility_20,
        "volatility_50": volatility_50,
        "volatility_regime": regime,
    }


def _average_true_range(high: Floats, low: Floats, close: Floats) -> Floats:
    atr: Floats = talib.ATR(high, low, close, timeperiod=14)
    return atr


def _volume(volume: Floats) -> dict[str, Floats]:
    mean = rolling.trailing_mean(volume, 20)
    return {"rolling_volume_20": mean, "volume_ratio": np.where(mean == 0, np.nan, volume / mean)}


def _structure(high: Floats, low: Floats) -> dict[str, tuple[Flags, Flags] | Codes]:
    highest = rolling.previous_extreme(high, STRUCTURE_BARS, largest=True)
    lowest = rolling.previous_extreme(low, STRUCTURE_BARS, largest=False)
    unknown = np.isnan(highest)
    hh, hl, lh, ll = high > highest, low > lowest, high < highest, low < lowest
    label = 2 - 2 * _ones(hh & hl) - _ones(lh & ll)  # never both
    label[unknown] = -1
    flags = {"hh": (hh, unknown), "hl": (hl, unknown), "lh": (lh, unknown), "ll": (ll, unknown)}
    return {**flags, "structure_label": label}


def _trend_direction(close: Floats) -> Codes:
    change = rolling.change(close, STRUCTURE_BARS) - 1
    direction = 2 - 2 * _ones(change > TREND_THRESHOLD) - _ones(change < -TREND_THRESHOLD)
    direction[:STRUCTURE_BARS] = -1
    return direction


def _ema_ahead(close: Floats) -> Floats:
    ahead: Floats = talib.EMA(close, timeperiod=20) - talib.EMA(close, timeperiod=50)
    return ahead


def _trend_regime(ahead: Floats, close: Floats) -> Codes:
    regime = np.maximum(1 - _ones(ahead > 0), 2 * _ones(np.abs(ahead) <= RANGING_THRESHOLD * close))
    regime[np.isnan(ahead)] = -1
    return regime


def _compression_regime(close: Floats, exponent: Any) -> Codes:
    # The width is scale-free: a power of two, which changes no digit, keeps squares of extreme prices in range.
    scaled = np.ldexp(close, -exponent)
    (window,) = rolling.trailing_moments(scaled, (20,))
    width = 4 * np.sqrt(window.squares / 20) / (scaled + window.offset)
    width[~np.isfinite(width)] = np.nan
    median = rolling.trailing_median(width, REGIME_BARS)
    regime = 1 - _ones(width < COMPRESSED * median)
    regime[np.isnan(median)] = -1
    return regime


def _ones(flags: Flags) -> Codes:
    """Return 1 for True and 0 for False; labels computed from these take a third of the time of masks."""
    return flags.view("int8")
