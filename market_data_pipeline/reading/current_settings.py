"""The settings of a process that reads: validated once, and again when the environment or `.env` has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from market_data_pipeline.settings import Settings


class _Seen(NamedTuple):
    """What settings are made of; `env_file` is inode, size and time of change, None where there is no file."""

    environment: dict[str, str]
    folder: Path
    env_file: tuple[int, int, int] | None


_last: tuple[_Seen, Settings] | None = None


def current_settings() -> Settings:
    """Return the project's settings; validating them takes 30 ms, finding that nothing has changed 0.1.

    Raises:
        ConfigurationError: a value is bad.
    """
    global _last
    from market_data_pipeline.settings import load_settings, project_root

    environment, folder = dict(os.environ), Path.cwd()
    same = _last is not None and _last[0][:2] == (environment, folder)
    root = _last[1].project_root if same and _last is not None else project_root()
    seen = _Seen(environment, folder, _identity(root / ".env"))
    if _last is None or _last[0] != seen:
        _last = seen, load_settings()
    return _last[1]


def forget_settings() -> None:
    """Validate again at the next call: a password may stand in a file that a setting names."""
    global _last
    _last = None


def _identity(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
