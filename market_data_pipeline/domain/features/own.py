"""Features that a project declares for itself, beside the 17: what a declaration says, and which ones are sound.

Add here: a fact that storage, API or catalog has to know of an own feature. Keep out: computing them
(own_computation) and finding the module that declares them (ingest.own_module).

Computing a project's own features: each by itself, distrusted, and never at the cost of the others.

A feature that raises, returns something else than one value of its type per bar, or sees later bars is left out: its
column is NULL and a sentence names it and the bar. Whether it sees later bars is tried on the bars at hand: it is
computed again with the last ones left out, at a few places, and has to give what it gave before. Raising includes what
is no `Exception`: a `sys.exit`, or a panic of a library written in Rust, would otherwise end the thread of a shard.

Add here: a way to find out that a feature does not keep its word. Keep out: what a declaration holds (own_features).
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, SQL_TYPES, WARM_UP_BARS, Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from market_data_pipeline.domain.series import AssetClass, Timeframe


FAILED_MARK: Final = "!"  # behind the fingerprint of a series in which one of the features failed

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")  # what SQL, Arrow and JSON all take without quoting

_TAKEN: Final = {*FEATURE_NAMES, *bar_frames.COLUMNS, "symbol", "timeframe", "extra", "features_computed_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFeature:
    """One feature of the project's own: a function and what is to be known of its values.

    Attributes:
        compute: called as `compute(bars, timeframe, asset_class)` with split-adjusted bars (`domain.bars`) of one
            series, ascending; returns one value per bar as an array or a pandas Series: NaN, NA or None for NULL. The
            value at t may depend on bars 0..t only.
        name: the column, lower case.
        dtype: `float`, `bool` or `text`.
        description: one line for people.
        warm_up: how many earlier bars a value depends on; None when it depends on all of them, which makes every
            refresh read the whole series.
        unit: what a value counts; empty for booleans and labels.
        version: raise it when values change: the next refresh computes stored rows again.
        price_scaled: True when a split known later changes the values of earlier bars.
        labels: the values of a `text` feature, if they are few; else empty.
    """

    compute: Callable[[pd.DataFrame, Timeframe, AssetClass], Any]
    name: str
    dtype: Literal["float", "bool", "text"]
    description: str
    warm_up: int | None
    unit: str = ""
    version: int = 1
    price_scaled: bool = False
    labels: tuple[str, ...] = ()

    @property
    def declaration(self) -> Feature:
        """What the columns of storage, API and catalog are made of."""
        return Feature(
            self.name, self.dtype, self.unit, self.warm_up, self.price_scaled, self.description, tuple(self.labels)
        )


@dataclass(frozen=True, slots=True)
class OwnFeatures:
    """The own features of a project.

    Attributes:
        features: those that are soundly declared.
        problems: a sentence for each that is not.
        readable: False when the module could not be loaded at all: then nobody knows what is declared, and what is
            stored stays as it is.
    """

    features: tuple[OwnFeature, ...] = ()
    problems: tuple[str, ...] = ()
    readable: bool = True

    @property
    def declarations(self) -> tuple[Feature, ...]:
        """The columns, in the order in which they were declared."""
        return tuple(feature.declaration for feature in self.features)

    @property
    def digest(self) -> str:
        """A fingerprint of everything that decides about values; empty when no feature is declared."""
        facts = sorted((f.name, f.dtype, f.version, f.warm_up or 0, f.warm_up is None) for f in self.features)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] if facts else ""

    @property
    def warm_up(self) -> int | None:
        """Earlier bars that make an incremental computation of all features equal the full one; None: all of them."""
        needed = [feature.warm_up for feature in self.features]
        return None if None in needed else max((WARM_UP_BARS, *(bars for bars in needed if bars is not None)))


NO_OWN_FEATURES: Final = OwnFeatures()


def declared(features: Iterable[object]) -> OwnFeatures:
    """Return the sound ones of `features`, and a sentence for each that is not."""
    sound: dict[str, OwnFeature] = {}
    problems = []
    for place, feature in enumerate(features, start=1):
        if not isinstance(feature, OwnFeature):
            problems.append(f"Entry {place} of FEATURES is {type(feature).__name__}, not an OwnFeature.")
        elif (wrong := _wrong(feature)) or feature.name in sound:
            problems.append(f"Own feature {feature.name!r} {wrong or 'is declared twice; the first one counts'}.")
        else:
            sound[feature.name] = feature
    return OwnFeatures(tuple(sound.values()), tuple(problems))


def _wrong(feature: OwnFeature) -> str | None:
    """Return what is wrong with a declaration, to complete a sentence about it."""
    name: object = feature.name  # people write these: nothing is as the annotations say until it was looked at
    warm_up: object = feature.warm_up
    compute: object = feature.compute
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "has no usable name: at most 63 lower-case letters, digits and _, a letter first"
    if name in _TAKEN:
        return "has the name of a column that exists already"
    if feature.dtype not in SQL_TYPES:
        return f"has dtype {feature.dtype!r}: use one of {', '.join(SQL_TYPES)}"
    if warm_up is not None and not _is_count(warm_up):
        return f"has warm_up {warm_up!r}: use a number of bars, or None for all of them"
    if not _is_count(feature.version):
        return f"has version {feature.version!r}: use a whole number"
    if not callable(compute):
        return "has a compute that is no function"
    if not str(feature.description or "").strip():
        return "has no description"
    if feature.labels and (feature.dtype != "text" or not all(isinstance(label, str) for label in feature.labels)):
        return "has labels, which are for text features and texts themselves"
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# Two computations of one value may differ by the rounding of sums that began elsewhere.
TOLERANCE: Final = 1e-9  # relative, as for the 17

_NOISE: Final = 1e-12  # of the largest value: what is left of a difference that is 0

_LONGEST_REASON: Final = 200  # characters, in a sentence that ends up in a table

_NUMBERS: Final = frozenset({"floating", "integer", "mixed-integer-float", "decimal", "empty"})


class OwnColumns(NamedTuple):
    """Columns of own features, and a sentence for each feature that failed and is therefore NULL."""

    columns: pd.DataFrame
    problems: tuple[str, ...]


class _BrokenError(Exception):
    """A feature that does not keep its word; the text completes a sentence about it."""


def compute_own(
    features: Sequence[OwnFeature],
    bars: pd.DataFrame,
    first_new: int,
    timeframe: Timeframe,
    asset_class: AssetClass,
) -> OwnColumns:
    """Return the own features of bars[first_new:], in the order of `features`.

    Args:
        features: what to compute.
        bars: a bar frame of one series, split-adjusted, the first `first_new` of them as warm-up.
        first_new: index of the first bar whose values are wanted.
        timeframe: the bars' length.
        asset_class: of the series.

    Returns:
        Columns with a RangeIndex, as `domain.features` makes them: float64 with NaN for NULL, pandas `boolean`, or
        text with NaN. Nothing is raised for what a feature does.
    """
    columns, problems = {}, []
    for feature in features:
        trial = _Trial(feature, bars, timeframe, asset_class)
        try:
            values = trial.checked(first_new)
        except _BrokenError as broken:
            problems.append(f"Own feature {feature.name} (version {feature.version}) {broken}; its values are NULL.")
            values = _nothing(feature, len(bars))
        columns[feature.name] = values.iloc[first_new:].reset_index(drop=True)
    return OwnColumns(pd.DataFrame(columns, index=pd.RangeIndex(len(bars) - first_new)), tuple(problems))


class _Trial:
    """One feature on one series' bars."""

    def __init__(self, feature: OwnFeature, bars: pd.DataFrame, timeframe: Timeframe, asset_class: AssetClass) -> None:
        self.feature = feature
        self.bars = bars
        self.timeframe = timeframe
        self.asset_class = asset_class

    def checked(self, first_new: int) -> pd.Series[Any]:
        """Return the values of all bars.

        Raises:
            _BrokenError: the feature raises, gives something else than it declares, or looks ahead.
        """
        count = len(self.bars)
        if not count:
            return _nothing(self.feature, 0)
        try:
            values = self._values(0, count)
        except (_BrokenError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  the project's own code is isolated here, see the docstring
            bar = self._bar(self._first_failing())
            raise _BrokenError(f"raises {type(error).__name__} at the bar {bar}: {_said(error)}") from None
        for stop in sorted({count - 1, (first_new + count) // 2, count // 3, count // 10} & set(range(1, count))):
            self._compare(values.iloc[:stop], 0, stop, "changes when later bars are left out: it looks ahead")
        warm_up = self.feature.warm_up
        if first_new == 0 and warm_up is not None and count - 1 > (enough := max(WARM_UP_BARS, warm_up)):
            # What an append will see of this series has to be enough for the value that all of it has just given.
            told = f"is another one when only the {enough} bars before are known: declare a larger warm_up, or None"
            self._compare(values.iloc[-1:], count - 1 - enough, count, told)
        return values

    def _values(self, start: int, stop: int) -> pd.Series[Any]:
        """Return the values of bars[start:stop] computed from these alone."""
        part = self.bars.iloc[start:stop].reset_index(drop=True)  # a copy as soon as the feature writes into it
        with np.errstate(all="ignore"):
            made = self.feature.compute(part, self.timeframe, self.asset_class)
        if np.ndim(made) != 1 or len(made) != stop - start:
            found = f"{len(made)} values" if np.ndim(made) == 1 else f"{type(made).__name__} {made!r:.40}"
            raise _BrokenError(
                f"returns {found} for {stop - start} bars from {self._bar(start)} to {self._bar(stop - 1)}"
            )
        return self._typed(pd.Series(np.asarray(made) if isinstance(made, list | tuple) else made), start)

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
                raise ValueError(f"{value!r:.40} is none of its labels")
        return values.astype("str")

    def _compare(self, expected: pd.Series[Any], start: int, stop: int, otherwise: str) -> None:
        """Compare `expected` with the last values of bars[start:stop] computed from these alone."""
        try:
            found = self._values(start, stop).iloc[stop - start - len(expected) :]
        except (_BrokenError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  as above
            raise _BrokenError(
                f"raises {type(error).__name__} when there are only the bars from {self._bar(start)} to "
                f"{self._bar(stop - 1)}: {_said(error)}"
            ) from None
        differs = _differs(expected, found, self.feature.dtype)
        if differs.any():
            at = stop - len(expected) + int(differs.argmax())
            raise _BrokenError(f"at the bar {self._bar(at)} {otherwise}")

    def _first_failing(self) -> int:
        """Return the index of a bar with which the feature raises and without which it does not."""
        good, bad = 0, len(self.bars)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self._values(0, middle)
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001  as above
                bad = middle
            else:
                good = middle
        return bad - 1

    def _bar(self, index: int) -> str:
        if not 0 <= index < len(self.bars):
            return "none"
        return f"{self.bars['ts'].iloc[index]:%Y-%m-%d %H:%M}Z"


def _said(error: BaseException) -> str:
    """Return the first line of what an exception says: people put whole frames into them."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], _LONGEST_REASON, placeholder=" ...") if lines else "no reason given"


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


def _nothing(feature: OwnFeature, count: int) -> pd.Series[Any]:
    dtype = {"float": "float64", "bool": "boolean", "text": "str"}[feature.dtype]
    return pd.Series([np.nan if feature.dtype == "float" else None] * count, dtype=dtype)
