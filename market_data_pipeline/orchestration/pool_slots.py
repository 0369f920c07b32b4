"""Claiming and freeing the slots of Dagster's pools by one process at a time.

Dagster's storage commits each statement on its own, so that its `select … for update` locks nothing. Two runs that
start together then claim the same slot, and one of them works without any; of two that end together, both start the
same waiting run, and another one goes on waiting beside a free slot.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa

# What sees which slots are free and then changes that.
_CHANGES: Final = (
    "claim_concurrency_slot",
    "free_concurrency_slots_for_run",
    "free_concurrency_slot_for_step",
    "assign_pending_steps",
    "set_concurrency_slots",
    "delete_concurrency_limit",
)
_LOCK: Final = {"turn": 0x4D44_0001}  # "MD": an advisory lock of Dagster's database
# A turn takes milliseconds. Who has had none for this long goes on without: its holder has been suspended in it.
_PATIENCE_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.02


def change_slots_in_turn(storage: Any, engine: sa.Engine) -> None:
    """Let an event log storage change slots only while no other thread of any process does.

    Args:
        storage: Dagster's.
        engine: of its database, in autocommit.
    """
    inside = threading.local()

    def in_turn(change: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(change)
        def changed(*given: Any, **named: Any) -> Any:
            if getattr(inside, "a_turn", False):  # one of them calls another
                return change(*given, **named)
            with _turn(engine):
                inside.a_turn = True
                try:
                    return change(*given, **named)
                finally:
                    inside.a_turn = False

        return changed

    for name in _CHANGES:
        setattr(storage, name, in_turn(getattr(storage, name)))


@contextmanager
def _turn(engine: sa.Engine) -> Iterator[None]:
    with engine.connect() as connection:
        until = time.monotonic() + _PATIENCE_SECONDS
        ask = text("select pg_try_advisory_lock(:turn)")
        while not (is_ours := connection.execute(ask, _LOCK).scalar_one()) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            if is_ours:
                connection.execute(text("select pg_advisory_unlock(:turn)"), _LOCK)
