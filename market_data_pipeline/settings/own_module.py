"""Import a module of the user's project that the settings name: own features, own definitions.

Add here: where such a module may be found. Keep out: what it must contain.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def load_own_module(named: str, root: Path) -> ModuleType:
    """Return the module: a file, read again when it has changed, or an importable one, also from the project's folder.

    Args:
        named: the path of a `.py` file, or the name of an importable module.
        root: the project's folder.

    Raises:
        Exception: whatever the module raises when it is executed.
    """
    if named.endswith(".py"):
        file = Path(named)
        return _executed(file, file.stat().st_mtime_ns)
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module(named)


def cannot_be_loaded(variable: str, named: str, error: BaseException) -> str:
    """Return the sentence that says why, and in which of the module's lines."""
    stem = Path(named).stem if named.endswith(".py") else named.rpartition(".")[2]
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem == stem]
    where = f" in line {lines[-1].lineno}" if lines else ""
    return f"{variable} names {named}, which cannot be loaded: {type(error).__name__}{where}: {error}."


@lru_cache(maxsize=8)
def _executed(file: Path, _changed_ns: int) -> ModuleType:
    name = f"market_data_own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module
