"""A vendor that misbehaves as the real one has been seen to: a real HTTP server that answers from a script.

Each request takes the next answer of the script; the last one repeats. An answer is a function that writes whatever it
likes to the connection, so it can also break it.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

Answer = Callable[["Handler"], None]


class Seen(NamedTuple):
    """A request as it arrived."""

    target: str
    headers: Mapping[str, str]


class FaultyServer:
    """Serves while the `with` block runs, on a free local port unless one is given; by HTTPS with a context."""

    def __init__(self, *script: Answer, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.seen: list[Seen] = []
        self.released = threading.Event()  # set at the end: an answer that stalls stops
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", port), Handler)
        self._http.owner = self
        self._scheme = "https" if tls else "http"
        if tls:  # the handshake is the handler thread's, so that a client that hangs up stops no one else
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def next_answer(self, seen: Seen) -> Answer:
        with self._lock:
            self.seen.append(seen)
            return self.script[min(len(self.seen), len(self.script)) - 1]


class _Server(ThreadingHTTPServer):
    owner: FaultyServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up on a server like this one."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the acknowledgement of its header

    def do_GET(self) -> None:
        self.server.owner.next_answer(Seen(self.path, dict(self.headers)))(self)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def wait(self, seconds: float) -> bool:
        """Wait, and return whether the server is being closed."""
        return self.server.owner.released.wait(seconds)


def send(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """An ordinary answer; `headers` replace the usual ones, and the length may lie."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def send_json(page: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return send(status, json.dumps(page).encode(), {"Content-Type": "application/json", **(headers or {})})


def send_gzip(body: bytes, keep: int | None = None) -> Answer:
    """A compressed answer of which only the first `keep` bytes exist, with a length that fits them."""
    return send(200, gzip.compress(body)[:keep], {"Content-Encoding": "gzip"})


def send_short(body: bytes, missing: int) -> Answer:
    """An answer whose length promises `missing` bytes more than arrive before the connection closes."""

    def answer(handler: Handler) -> None:
        send(200, body, {"Content-Length": str(len(body) + missing)})(handler)
        handler.close_connection = True

    return answer


def send_chunked(body: bytes, *, ended: bool = True) -> Answer:
    """A chunked answer, without its last chunk unless `ended`."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if ended else b""))
        handler.close_connection = not ended

    return answer


def send_and_close(body: bytes) -> Answer:
    """An answer of HTTP/1.0 without a length: the body ends with the connection."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        handler.close_connection = True

    return answer


def reset(after: bytes = b"") -> Answer:
    """A connection that is reset after the given bytes."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(after)
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return answer


def stall(after: bytes = b"") -> Answer:
    """Silence after the given bytes."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(after)
        handler.wfile.flush()
        handler.wait(60)
        handler.close_connection = True

    return answer


def drip(head: bytes, piece: bytes, pause: float) -> Answer:
    """The given bytes, then one piece after another without end."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        handler.wfile.flush()
        while not handler.wait(pause):
            handler.wfile.write(piece)
            handler.wfile.flush()

    return answer
