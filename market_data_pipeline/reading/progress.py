"""How far a long read has come, shown in a notebook; quiet in scripts, services and terminals."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_AFTER_SECONDS: Final = 1.0  # less is not felt as waiting
_EVERY_SECONDS: Final = 0.25


@contextmanager
def shown(what: str, series: int) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with the series and rows read so far; what it shows vanishes at the end."""
    if not _in_a_notebook():
        yield lambda _series, _rows: None
        return
    line = _Line(what, series)
    try:
        yield line.update
    finally:
        line.remove()


def _in_a_notebook() -> bool:
    """Return whether IPython runs as a notebook's kernel in this process; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _Line:
    """One line of output that is replaced in place."""

    def __init__(self, what: str, series: int) -> None:
        self._what, self._series = what, series
        self._next = time.monotonic() + _AFTER_SECONDS
        self._shown: Any = None

    def update(self, series: int, rows: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY_SECONDS
        self._show(f"Reading {self._what}: {series:,} of {self._series:,} series, {rows:,} rows")

    def remove(self) -> None:
        if self._shown is not None:
            self._show("")

    def _show(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text}
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._shown.update(content, raw=True)
