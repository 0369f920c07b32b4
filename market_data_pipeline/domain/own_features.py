"""Features that a project declares for itself, beside the 17: what a declaration says, and which ones are sound.

Add here: a fact that storage, API or catalog has to know of an own feature. Keep out: computing them
(own_computation) and finding the module that declares them (ingest.own_module).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.feature_definitions import FEATURE_NAMES, SQL_TYPES, WARM_UP_BARS, Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

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
