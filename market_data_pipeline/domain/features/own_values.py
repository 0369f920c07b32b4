"""The values of a project's own features, computed without trusting what it declares.

A feature that raises, returns anything but one value of its type per bar, or looks ahead fails alone: its column is
NULL, and a sentence names it and the bar. To see whether it looks ahead, it is computed again without the last bars, at
a few places, and must return what it returned before. "Raises" includes what is not an `Exception`: a `sys.exit`, or a
panic of a library written in Rust, would otherwise end the thread of a shard.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from market_data_pipeline.domain.features.definitions import WARM_UP_BARS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.features.own import OwnFeature
    from market_data_pipeline.domain.series import AssetClass, Timeframe

TOLERANCE: Final = 1e-9  # relative, as for the 17: sums that begin at different bars are rounded differently

_NOISE: Final = 1e-12  # of the largest value: what rounding leaves of a difference that is 0
_LONGEST_REASON: Final = 200  # characters, in a sentence that is shown in a table
_NUMBERS: Final = frozenset({"floating", "integer", "mixed-integer-float", "decimal", "empty"})


class OwnColumns(NamedTuple):
    """Columns of own features, and a sentence for each feature that failed and is therefore NULL."""

    columns: pd.DataFrame
    problems: tuple[str, ...]


class _BrokenError(Exception):
    """A feature breaks its contract; the text is the rest of a sentence about it."""


class _RaisedError(Exception):
    """A feature raised an exception; the attributes are its type and reason."""

    def __init__(self, error: BaseException) -> None:
        lines = str(error).strip().splitlines()  # the first one: some libraries put whole frames into the text
        self.type = type(error).__name__
        self.reason = textwrap.shorten(lines[0], _LONGEST_REASON, placeholder=" ...") if lines else "no reason given"


def compute_own(
    features: Sequence[OwnFeature],
    bars: pd.DataFrame,
    first_new: int,
    timeframe: Timeframe,
    asset_class: AssetClass,
) -> OwnColumns:
    """Return the own features of bars[first_new:], in the order of `features`; a feature's failure raises nothing.

    Args:
        features: what to compute.
        bars: a bar frame of one series, split-adjusted; the first `first_new` bars are warm-up.
        first_new: index of the first bar whose values are returned.
        timeframe: the bars' length.
        asset_class: of the series.

    Returns:
        Columns with a RangeIndex: float64 with NaN for NULL, pandas `boolean`, or text with NaN.
    """
    columns, problems = {}, []
    for feature in features:
        try:
            values = _Trial(feature, bars, timeframe, asset_class).checked(first_new)
        except _BrokenError as broken:
            problems.append(f"Own feature {feature.name} (version {feature.version}) {broken}; its values are NULL.")
            values = _nulls(feature, len(bars))
        columns[feature.name] = values.iloc[first_new:].reset_index(drop=True)
    return OwnColumns(pd.DataFrame(columns, index=pd.RangeIndex(len(bars) - first_new)), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Trial:
    """One feature on the bars of one series."""

    feature: OwnFeature
    bars: pd.DataFrame
    timeframe: Timeframe
    asset_class: AssetClass

    def checked(self, first_new: int) -> pd.Series[Any]:
        """Return the values of all bars.

        Raises:
            _BrokenError: the feature raises, returns something other than it declares, or looks ahead.
        """
        count = len(self.bars)
        if not count:
            return _nulls(self.feature, 0)
        try:
            values = self._values(0, count)
        except _RaisedError as raised:
            bar = self._bar(self._first_failing())
            raise _BrokenError(f"raises {raised.type} at the bar {bar}: {raised.reason}") from None
        for stop in sorted({count - 1, (first_new + count) // 2, count // 3, count // 10} & set(range(1, count))):
            self._compare(values.iloc[:stop], 0, stop, "changes when later bars are left out: it looks ahead")
        warm_up = self.feature.warm_up
        if first_new == 0 and warm_up is not None and count - 1 > (enough := max(WARM_UP_BARS, warm_up)):
            # An append sees only the warm-up, which must give the value that the whole series has just given.
            differs = f"changes when only the {enough} bars before are known: declare a larger warm_up, or None"
            self._compare(values.iloc[-1:], count - 1 - enough, count, differs)
        return values

    def _values(self, start: int, stop: int) -> pd.Series[Any]:
        """Return the values of bars[start:stop], computed from these alone."""
        part = self.bars.iloc[start:stop].reset_index(drop=True)  # a copy as soon as the feature writes into it
        try:
            with np.errstate(all="ignore"):
                made = self.feature.compute(part, self.timeframe, self.asset_class)
            if np.ndim(made) != 1 or len(made) != stop - start:
                found = f"{len(made)} values" if np.ndim(made) == 1 else f"{type(made).__name__} {made!r:.40}"
                raise _BrokenError(f"returns {found} for {stop - start} {self._from_to(start, stop)}")
            return self._typed(pd.Series(np.asarray(made) if isinstance(made, list | tuple) else made), start)
        except (_BrokenError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  a project's own code is isolated here, see the docstring
            raise _RaisedError(error) from None

    def _typed(self, made: pd.Series[Any], start: int) -> pd.Series[Any]:
        made = made.reset_index(drop=True)
        try:
            if self.feature.dtype == "float":
                if (kind := pd.api.types.infer_dtype(made, skipna=True)) not in _NUMBERS:
                    raise TypeError(kind)
                values = made.astype("Float64").to_numpy("float64", na_value=np.nan)
                return pd.Series(np.where(np.isfinite(values), values, np.nan))
            if self.feature.dtype == "bool":
                if not (pd.api.types.is_bool_dtype(made) or pd.api.types.is_object_dtype(made)):
                    raise TypeError(str(made.dtype))
                return made.astype("boolean")
            return self._labels(made)
        except (TypeError, ValueError) as error:
            raise _BrokenError(
                f"is declared as {self.feature.dtype} and returns {made.dtype} from the bar {self._bar(start)} on "
                f"({error})"
            ) from None

    def _labels(self, made: pd.Series[Any]) -> pd.Series[Any]:
        values = made.astype(object).where(made.notna(), None)
        allowed = set(self.feature.labels)
        for value in values.dropna().unique():
            if not isinstance(value, str):
                raise TypeError(f"{type(value).__name__} {value!r:.40}")
            if allowed and value not in allowed:
                raise ValueError(f"{value!r:.40} is not one of its labels")
        return values.astype("str")

    def _compare(self, expected: pd.Series[Any], start: int, stop: int, otherwise: str) -> None:
        """Compare `expected` with the last values of bars[start:stop] computed from these alone."""
        try:
            found = self._values(start, stop).iloc[stop - start - len(expected) :]
        except _RaisedError as raised:
            raise _BrokenError(
                f"raises {raised.type} when there are only the {self._from_to(start, stop)}: {raised.reason}"
            ) from None
        differs = _differs(expected, found, self.feature.dtype)
        if differs.any():
            at = stop - len(expected) + int(differs.argmax())
            raise _BrokenError(f"at the bar {self._bar(at)} {otherwise}")

    def _first_failing(self) -> int:
        """Return the index of a bar such that the feature raises on the bars up to it, but not on those before it."""
        good, bad = 0, len(self.bars)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self._values(0, middle)
            except (_BrokenError, _RaisedError):
                bad = middle
            else:
                good = middle
        return bad - 1

    def _bar(self, index: int) -> str:
        return f"{self.bars['ts'].iloc[index]:%Y-%m-%d %H:%M}Z"

    def _from_to(self, start: int, stop: int) -> str:
        return f"bars from {self._bar(start)} to {self._bar(stop - 1)}"


def _differs(a: pd.Series[Any], b: pd.Series[Any], dtype: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    null_a, null_b = a.isna().to_numpy(dtype=bool), b.isna().to_numpy(dtype=bool)
    differs: np.ndarray[Any, np.dtype[np.bool_]] = null_a != null_b
    both = ~null_a & ~null_b
    if dtype == "float":
        x, y = a.to_numpy("float64")[both], b.to_numpy("float64")[both]
        noise = _NOISE * np.abs(x).max(initial=0.0)
        differs[both] = np.abs(x - y) > np.maximum(TOLERANCE * np.maximum(np.abs(x), np.abs(y)), noise)
    else:
        differs[both] = a.to_numpy(dtype=object)[both] != b.to_numpy(dtype=object)[both]
    return differs


def _nulls(feature: OwnFeature, count: int) -> pd.Series[Any]:
    dtype = {"float": "float64", "bool": "boolean", "text": "str"}[feature.dtype]
    return pd.Series([np.nan if feature.dtype == "float" else None] * count, dtype=dtype)
