"""Limits of one connection and of the process: request size, time, unread bytes, open files, memory.

uvicorn alone gives a client all the time and memory that it takes.
"""

from __future__ import annotations

import ctypes
import resource
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from market_data_pipeline.serving.problems import PROBLEM, Problem, problem_document

if TYPE_CHECKING:
    import asyncio
    import socket

    import uvicorn

LONGEST_ADDRESS: Final = 8_192  # bytes; servers should accept 8,000 (RFC 9110, section 4.1), and ours need 200
LONGEST_HEAD: Final = 32_768  # bytes of address and headers, as other servers accept
LARGEST_BODY: Final = 65_536  # bytes; none is read, but a client library may send a small one
REQUEST_SECONDS: Final = 10.0  # from the first byte, or from connecting, to the last one

# An answer of 10,000 records is 6 MB; a client that takes fewer than LEAST_READ bytes in UNREAD_SECONDS is not reading.
UNREAD_SECONDS: Final = 20.0
LEAST_READ: Final = 131_072
# When more bytes than this are unread in all, the connection that has stalled longest is closed.
MOST_UNREAD: Final = 64 * 2**20
STALLED_SECONDS: Final = 2.0

# uvloop accepts one connection of a listening socket per round of its loop, and a round answers every pending request:
# of 100 clients connecting at once the last one's first answer took 0.3 s, and seconds on a busy machine. So the socket
# is listened to this many times: 100 clients are accepted after 7 rounds, and a connection costs as many system calls
# of a microsecond each.
ACCEPTED_A_ROUND: Final = 16

# glibc's <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# An answer of 500 records is 300 kB and is copied several times on its way. A block above the first bound is a fresh
# mapping, whose pages the kernel zeroes: 0.16 ms each time here. Below it a freed block is reused.
_LARGE_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 8 << 20  # of free memory at an arena's end, for the next answer
_ARENAS: Final = 2

_REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "This is not an HTTP request.",
    HTTPStatus.REQUEST_TIMEOUT: f"The request did not arrive within {REQUEST_SECONDS:.0f} s.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"A body may have at most {LARGEST_BODY} bytes; this API needs none.",
    HTTPStatus.REQUEST_URI_TOO_LONG: f"An address may have at most {LONGEST_ADDRESS} bytes.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"Address and headers may have at most {LONGEST_HEAD} bytes.",
}


class _RefusedError(Exception):
    """Raised inside the parser, which passes it on as an error of its own."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with bounds; a request beyond one gets a problem document, and is disconnected."""

    # Unread bytes by connection, the one that has waited longest first, and since when (the loop's time).
    unread: ClassVar[dict[BoundedConnection, tuple[int, float]]] = {}

    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _refusal: HTTPStatus = HTTPStatus.BAD_REQUEST
    _received: int = 0  # bytes of a head that is not complete
    _in_head: bool = True
    _body: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the data, unless the head grows beyond the bound."""
        if self._deadline is None:
            self._wait()
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._received += len(data)
            if self._received > LONGEST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head, self._body = True, 0
        if self._deadline is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Start the request, unless it is too large."""
        self._in_head, self._received = False, 0
        if len(self.url) > LONGEST_ADDRESS:
            self._stop(HTTPStatus.REQUEST_URI_TOO_LONG)
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > LONGEST_HEAD:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        for name, value in self.headers:
            if name == b"content-length" and int(value) > LARGEST_BODY:  # the parser lets only digits pass
                self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body, which is not read."""
        self._body += len(body)
        if self._body > LARGEST_BODY:
            self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser could not read, or that `_stop` ended in it."""
        del msg
        self._refuse(self._refusal)

    def pause_writing(self) -> None:
        """Start watching whether the client reads."""
        super().pause_writing()
        self.unread[self] = (self.transport.get_write_buffer_size(), self.loop.time())
        self._reading = self.loop.call_later(UNREAD_SECONDS, self._check_reading)
        if sum(size for size, _ in self.unread.values()) > MOST_UNREAD:
            self._make_room()

    def resume_writing(self) -> None:
        """Stop watching: the client has read."""
        self._read()
        super().resume_writing()

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self._received or not self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:  # it never sent anything
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop(self, status: HTTPStatus) -> None:
        self._refusal = status
        raise _RefusedError

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer with a problem, unless an answer has begun, and close."""
        if self.cycle is None or self.cycle.response_complete:
            body = problem_document(Problem(status, _REFUSALS[status]), "/")
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {PROBLEM}\r\n"
                f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _check_reading(self) -> None:
        before, since = self.unread[self]
        left = self.transport.get_write_buffer_size()
        if before - left < LEAST_READ:
            self.transport.abort()
            return
        self.unread[self] = (left, since)
        self._reading = self.loop.call_later(UNREAD_SECONDS, self._check_reading)

    def _read(self) -> None:
        self.unread.pop(self, None)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    @classmethod
    def _make_room(cls) -> None:
        longest = next(iter(cls.unread))
        if longest.loop.time() - cls.unread[longest][1] > STALLED_SECONDS:
            longest.transport.abort()


def allow_many_connections() -> None:
    """Raise the number of files that this process may open, often 1,024, to what the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def return_memory() -> None:
    """Give the memory of a large answer back to the system once it is sent, and let all threads share two arenas.

    By default glibc stops giving back blocks of a size that was freed once: 20 MB more here after a minute of answers
    of 300 kB. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


def listening(config: uvicorn.Config) -> list[socket.socket]:
    """Return the bound socket of `config`, as many times as `uvicorn.Server.serve` listens to it.

    When it cannot be bound, uvicorn logs why and ends the process.
    """
    bound = config.bind_socket()
    return [bound, *(bound.dup() for _ in range(ACCEPTED_A_ROUND - 1))]


def server_options() -> dict[str, Any]:
    """Return uvicorn's options, the same wherever the API is served."""
    return {
        "http": BoundedConnection,
        "loop": "uvloop",
        "ws": "none",
        "access_log": False,  # /metrics counts requests; a line for each would cost more than the answer
        "proxy_headers": False,  # the admin endpoints go by the connection's address, which no header may replace
        "server_header": False,
        "timeout_keep_alive": 30,  # seconds; a client that polls every few seconds keeps its connection
    }
