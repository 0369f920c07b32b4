"""A webhook that receives what Apprise's json:// addresses send, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """A receiver that answers every request with `status`."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.received.append(json.loads(body) | {"path": self.path})
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def address(self, secret: str = "hook") -> str:
        """Return the Apprise address of this receiver, with a secret in its path as Slack's have."""
        return f"json://127.0.0.1:{self.server.server_port}/{secret}"

    def titles(self) -> list[str]:
        """Return the titles received since the last call."""
        titles = [message["title"] for message in self.received]
        self.received.clear()
        return titles


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Run a receiver."""
    made = Webhook()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()
