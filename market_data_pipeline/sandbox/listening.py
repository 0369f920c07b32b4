"""Where a sandbox listens, and what tells two of them apart.

Light to import: whoever only wants to find a sandbox needs no numpy and no web server.
"""

from __future__ import annotations

import socket
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.failures import ConfigurationError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

SANDBOX_KEY: Final = "sandbox"
HOST: Final = "127.0.0.1"
PORT: Final = 8790
STATUS_PATH: Final = "/_sandbox/status"


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one.

    Raises:
        ConfigurationError: the port is taken, or the host is not this machine.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Without it a restart would have to wait for the last connections of the server before.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its connections have it, too. Or a small answer's body waits 40 ms for the client's word of its headers.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"The sandbox cannot listen on {host}:{port} ({error.strerror}); "
            "stop what uses the port or choose another with --port."
        ) from None
    return listening


def parameters(as_of: datetime | None, plan: str, calls_per_minute: int | None, replay: Path | None) -> dict[str, Any]:
    """Return what makes two servers give the same answers, as the status page shows it."""
    return {
        "as_of": as_of.astimezone(UTC).isoformat() if as_of else None,
        "plan": plan,
        "calls_per_minute": calls_per_minute,
        "replay": str(replay.resolve()) if replay else None,
    }
