"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 120.0  # seconds after which a test gives up on a condition; it takes a tenth of that


def until(condition: Callable[[], object], *, every: float = 0.02, patience: float = PATIENCE) -> None:
    """Wait until a condition holds, and look at it `every` so many seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "the condition never came to hold"
        time.sleep(every)


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a process listens on a port of one of this machine's addresses."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
