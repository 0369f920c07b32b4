"""A project's own features besides the 17: how they are declared.

Keep out: finding the module that declares features (ingest.own_features), and their values (own_values): what declares
them needs no pandas.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.features.definitions import FEATURE_NAMES, SQL_TYPES, WARM_UP_BARS, Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

    from market_data_pipeline.domain.series import AssetClass, Timeframe


FAILED_MARK: Final = "!"  # after the fingerprint of a series in which a feature failed

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")  # what SQL, Arrow and JSON all take without quoting
_TAKEN: Final = {*FEATURE_NAMES, *bar_frames.COLUMNS, "symbol", "timeframe", "extra", "features_computed_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFeature:
    """One of a project's own features: a function, and what storage, API and catalog need to know about its values.

    Attributes:
        compute: called as `compute(bars, timeframe, asset_class)` with split-adjusted bars (`domain.bars`) of one
            series, ascending; returns one value per bar as an array or a pandas Series: NaN, NA or None for NULL. The
            value at t may depend on bars 0..t only.
        name: the column, lower case.
        dtype: `float`, `bool` or `text`.
        description: one line for users.
        warm_up: how many earlier bars a value depends on; None when it depends on all of them, so that every refresh
            reads the whole series.
        unit: of the value; empty for booleans and labels.
        version: raise it when the definition changes: the next refresh computes stored rows again.
        price_scaled: True when a split known later changes the values of earlier bars.
        labels: the values of a `text` feature if they are few, else empty.

    Example:
        >>> import pandas as pd
        >>> from market_data_pipeline import OwnFeature
        >>> gap = OwnFeature(
        ...     name="gap",
        ...     compute=lambda bars, timeframe, asset_class: bars["open"] / bars["close"].shift(1) - 1,
        ...     dtype="float",
        ...     unit="ratio",
        ...     warm_up=1,
        ...     description="open over the previous close, minus 1",
        ... )
        >>> bars = pd.DataFrame({"open": [10.0, 12.6], "close": [12.0, 13.0]})
        >>> gap.compute(bars, "1d", "us_equity").round(3).to_list()
        [nan, 0.05]
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
        """The column as storage, API and catalog know it."""
        return Feature(
            self.name, self.dtype, self.unit, self.warm_up, self.price_scaled, self.description, tuple(self.labels)
        )


@dataclass(frozen=True, slots=True)
class OwnFeatures:
    """The own features of a project.

    Attributes:
        features: the valid ones.
        problems: a sentence for each invalid one.
        readable: False when the module could not be loaded: what it declares is unknown, and stored values stay.
    """

    features: tuple[OwnFeature, ...] = ()
    problems: tuple[str, ...] = ()
    readable: bool = True

    @property
    def declarations(self) -> tuple[Feature, ...]:
        """The columns, in the order of declaration."""
        return tuple(feature.declaration for feature in self.features)

    @property
    def digest(self) -> str:
        """A fingerprint of everything that the values depend on; empty when no feature is declared."""
        facts = sorted((f.name, f.dtype, f.version, f.warm_up or 0, f.warm_up is None) for f in self.features)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16] if facts else ""

    @property
    def warm_up(self) -> int | None:
        """Earlier bars that make an incremental computation of all features equal the full one; None for all bars."""
        needed = [feature.warm_up for feature in self.features]
        return None if None in needed else max((WARM_UP_BARS, *(bars for bars in needed if bars is not None)))


NO_OWN_FEATURES: Final = OwnFeatures()


def declared(features: Iterable[object]) -> OwnFeatures:
    """Return the valid declarations among `features`, and a sentence for each invalid one."""
    valid: dict[str, OwnFeature] = {}
    problems = []
    for place, feature in enumerate(features, start=1):
        if not isinstance(feature, OwnFeature):
            problems.append(f"Entry {place} of FEATURES is {type(feature).__name__}, not an OwnFeature.")
        elif (wrong := _wrong(feature)) or feature.name in valid:
            problems.append(f"Own feature {feature.name!r} {wrong or 'is declared twice; the first one counts'}.")
        else:
            valid[feature.name] = feature
    return OwnFeatures(tuple(valid.values()), tuple(problems))


def _wrong(feature: OwnFeature) -> str | None:
    """Return what is wrong with a declaration, as the rest of a sentence about it; None when nothing is."""
    name: object = feature.name  # written by users: the annotations hold only once checked
    warm_up: object = feature.warm_up
    compute: object = feature.compute
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "has no usable name: use at most 63 lower-case letters, digits and _, starting with a letter"
    if name in _TAKEN:
        return "has the name of a column that already exists"
    if feature.dtype not in SQL_TYPES:
        return f"has dtype {feature.dtype!r}: use one of {', '.join(SQL_TYPES)}"
    if warm_up is not None and not _is_count(warm_up):
        return f"has warm_up {warm_up!r}: use a number of bars, or None for all of them"
    if not _is_count(feature.version):
        return f"has version {feature.version!r}: use a whole number"
    if not callable(compute):
        return "has a compute that is not a function"
    if not str(feature.description or "").strip():
        return "has no description"
    if feature.labels and (feature.dtype != "text" or not all(isinstance(label, str) for label in feature.labels)):
        return "has labels, which only text features may have and which must be text"
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
