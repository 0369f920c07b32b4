"""What the sandbox server and the processes that look for it must agree on: address, key, status page, parameters.

Light to import: finding a sandbox needs no NumPy and no web server.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

SANDBOX_KEY: Final = "sandbox"
HOST: Final = "127.0.0.1"
PORT: Final = 8790
STATUS_PATH: Final = "/_sandbox/status"


def parameters(
    as_of: datetime | None,
    plan: str,
    calls_per_minute: int | None,
    replay: Path | None,
    scenario: Path | None = None,
) -> dict[str, Any]:
    """Return what decides a server's answers, as its status page shows it: equal parameters, equal answers."""
    return {
        "as_of": as_of.astimezone(UTC).isoformat() if as_of else None,
        "plan": plan,
        "calls_per_minute": calls_per_minute,
        "replay": str(replay.resolve()) if replay else None,
        "scenario": str(scenario.resolve()) if scenario else None,
    }
