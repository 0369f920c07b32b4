"""Environments of what is compared with the package: each is separate from it, and made when it is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.report import RESULTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def environment(name: str, required: Sequence[str]) -> Path:
    """Return the Python of an environment that has what is required.

    Raises:
        CalledProcessError: it cannot be installed here.
    """
    folder = RESULTS / name
    python, made = folder / "bin" / "python", folder / "made.json"
    if made.exists() and json.loads(made.read_text(encoding="utf-8")) == list(required):
        return python
    print(f"Creating an environment in {folder} ...", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)],
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *required],
    ):
        subprocess.run(command, check=True)  # noqa: S603 - fixed commands
    made.write_text(json.dumps(list(required)), encoding="utf-8")
    return python
