"""A webhook that receives alerts over real HTTP, as Apprise's `json://` addresses send them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec


class AlertReceiver:
    """Answers every request with `status`, and keeps what it has received with 200.

    Attributes:
        received: the messages, each with the `path` that it was sent to and, as `at`, when it arrived: seconds of the
            monotonic clock.
    """

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.status == 200:
                    outer.received.append(body | {"path": self.path, "at": time.monotonic()})
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep the screen as it is."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def address(self, path: str = "hook") -> str:
        """Return the Apprise address of this receiver, with `path`, where the secret of Slack's addresses is."""
        return f"json://127.0.0.1:{self.server.server_port}/{path}"

    def titles(self) -> list[str]:
        """Return the titles received since the last call."""
        titles = [message["title"] for message in self.received]
        self.received.clear()
        return titles


@contextmanager
def alert_receiver() -> Iterator[AlertReceiver]:
    """Run a receiver."""
    made = AlertReceiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()
