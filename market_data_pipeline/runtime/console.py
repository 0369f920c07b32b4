"""The screen that commands print on: how wide it is, where complaints go, and what a reader can type next.

Keep out: what is printed.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

# Where the output is a file or a pipe nobody says how wide it is; the widest table (history) needs about 150 columns.
_FILE_WIDTH: Final = 160


@cache
def console() -> Console:
    """Return the console on standard output; tables in a file are as wide as COLUMNS says, else 160."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _FILE_WIDTH
    return made


def complain(sentence: str) -> None:
    """Print `sentence` on standard error, in red where there are colours."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="red", markup=False)


def command() -> str:
    """Return `market-data` as it can be typed here: by its path from this folder, unless the shell finds it."""
    ours = Path(sys.executable).with_name("market-data")
    found = shutil.which("market-data")
    if found and Path(found) == ours:
        return "market-data"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)
