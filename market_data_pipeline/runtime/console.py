"""The terminal that commands print to: its width, where errors go, and how `market-data` is typed here."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

# A file or a pipe has no width; the widest table (history) needs about 150 columns.
_FILE_WIDTH: Final = 160


@cache
def console() -> Console:
    """Return the console on standard output; in a file or a pipe it is COLUMNS wide, or 160 if that is not set."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _FILE_WIDTH
    return made


def print_error(sentence: str) -> None:
    """Print an error to standard error, in red where the terminal has colours."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="red", markup=False)


def print_notice(sentence: str) -> None:
    """Print what a user should know, but need not act on, to standard error."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(sentence, style="yellow", markup=False)


def command_name() -> str:
    """Return what to type to run `market-data` here: its name if it is on PATH, else its path."""
    ours = Path(sys.executable).with_name("market-data")
    found = shutil.which("market-data")
    if found and Path(found) == ours:
        return "market-data"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)
