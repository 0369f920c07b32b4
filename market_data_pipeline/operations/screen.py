"""The screen that commands print on: how wide it is, and where complaints go.

Keep out: what is printed.
"""

from __future__ import annotations

import os
from functools import cache
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
