"""Load the module that declares a project's own features.

A problem with it becomes a sentence in the result, not an exception, because the 17 features do not depend on it.
Add here: where a module may be found. Keep out: checking declarations (domain.features.own).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.features.own import NO_OWN_FEATURES, OwnFeatures, declared

if TYPE_CHECKING:
    from types import ModuleType

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
        module = _module(named, settings.project_root)
        features = tuple(getattr(module, ATTRIBUTE))
    except (Exception, SystemExit) as error:  # noqa: BLE001  the project's own code is isolated here
        return OwnFeatures(problems=(_sentence(named, error),), readable=False)
    return declared(features)


def _module(named: str, root: Path) -> ModuleType:
    if named.endswith(".py"):
        file = Path(named)
        return _executed(file, file.stat().st_mtime_ns)
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module(named)


@lru_cache(maxsize=8)
def _executed(file: Path, _changed_ns: int) -> ModuleType:
    name = f"market_data_own_features_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _sentence(named: str, error: BaseException) -> str:
    said = str(error)
    if isinstance(error, AttributeError) and said.endswith(f"has no attribute {ATTRIBUTE!r}"):
        said = f"it has no {ATTRIBUTE}, a tuple of OwnFeature"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem in named]
    where = f" in line {lines[-1].lineno}" if lines else ""
    return (
        f"{VARIABLE} names {named}, which cannot be loaded: {type(error).__name__}{where}: {said}. "
        "Own features are NULL in new rows until it can be loaded."
    )
