"""How `market-data migrate` shows that bars move to another table: which takes minutes where there are many."""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

_LINES_EVERY: Final = 5.0  # seconds between two lines where the output is a file


@contextmanager
def shown_move(console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with the series that are done, and all; it shows a bar, or a line every 5 s in a file.

    Args:
        console: where to; standard error if omitted, since what a command returns may be read by another program.
    """
    out = console or Console(stderr=True, highlight=False, soft_wrap=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} series"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
        refresh_per_second=4,
    )
    task: TaskID | None = None
    said = float("-inf")

    def update(done: int, total: int) -> None:
        nonlocal task, said
        if task is None:
            out.print(
                f"Moving the bars and features of {total} series to one table. They can be read meanwhile, and "
                "`market-data migrate` goes on if it is interrupted.",
                markup=False,
            )
            task = progress.add_task("Moving", total=total)
        progress.update(task, completed=done)
        if not out.is_terminal and (done == total or monotonic() - said >= _LINES_EVERY):
            said = monotonic()
            out.print(f"  moved {done} of {total} series", markup=False)

    with progress:
        yield update
