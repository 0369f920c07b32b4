"""How often Python looks for garbage: rarely, because nearly all that the start of a process allocates stays.

Looking for it took a quarter of the processor time that importing Dagster costs. Objects without a cycle, which are
nearly all, are freed at once in any case.
"""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Let a collection wait for more objects; call this before heavy imports."""
    gc.set_threshold(100_000, 20, 20)
