"""Run Python's cyclic garbage collector rarely: nearly everything that a process allocates at startup stays alive.

Looking for cycles took a quarter of the processor time that importing Dagster costs. Objects outside cycles, nearly all
of them, are freed at once anyway.
"""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let a collection wait for 100,000 new objects instead of 700; call this before heavy imports."""
    gc.set_threshold(100_000, 20, 20)
