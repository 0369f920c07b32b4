"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 300.0  # seconds after which a test gives up on a condition; a quiet machine takes a twentieth of that


def until(condition: Callable[[], object], *, every: float | None = None, patience: float = PATIENCE) -> None:
    """Wait until a condition holds.

    It is looked at `every` so many seconds; by default every 20 ms and, the longer it takes, the less often, because
    looking takes processor time from what is waited for.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < patience, "the condition never came to hold"
        time.sleep(every or min(max(0.02, waited / 20), 0.25))


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a process listens on a port of one of this machine's addresses."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
