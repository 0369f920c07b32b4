"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, at_most: float = 20.0) -> None:
    """Return once `condition` holds; fail when it does not within `at_most` seconds."""
    deadline = time.monotonic() + at_most
    while not condition():
        assert time.monotonic() < deadline, "the condition never came to hold"
        time.sleep(0.02)
