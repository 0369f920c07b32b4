"""Load the module that declares a project's own features.

A problem with it becomes a sentence in the result, not an exception, because the 17 features do not depend on it.
Keep out: where a module may be found (settings.own_module), and checking declarations (domain.features.own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.features.own import NO_OWN_FEATURES, OwnFeatures, declared
from market_data_pipeline.settings.own_module import cannot_be_loaded, load_own_module

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings

VARIABLE: Final = "MARKET_DATA_FEATURES_MODULE"
ATTRIBUTE: Final = "FEATURES"


def load_own_features(settings: Settings) -> OwnFeatures:
    """Return what the module named in the settings declares in its `FEATURES`; no features when none is named.

    A file is read again when it has changed; an importable module stays as this process first imported it.
    """
    named = settings.features_module
    if named is None:
        return NO_OWN_FEATURES
    try:
        module = load_own_module(named, settings.project_root)
        features = tuple(getattr(module, ATTRIBUTE))
    except (Exception, SystemExit) as error:  # noqa: BLE001  the project's own code is isolated here
        return OwnFeatures(problems=(_sentence(named, error),), readable=False)
    return declared(features)


def _sentence(named: str, error: BaseException) -> str:
    if isinstance(error, AttributeError) and str(error).endswith(f"has no attribute {ATTRIBUTE!r}"):
        error = AttributeError(f"it has no {ATTRIBUTE}, a tuple of OwnFeature")
    return f"{cannot_be_loaded(VARIABLE, named, error)} Own features are NULL in new rows until it can be loaded."
