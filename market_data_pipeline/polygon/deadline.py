"""A total deadline for an HTTP exchange, which `requests` does not have.

Its read timeout starts anew with every byte, so a server that drips, in the header or in the body, never meets it. Here
a timer shuts the exchange's socket down, whatever the thread that waits on it is doing.

Add here: what has to reach below `requests` to end an exchange. Keep out: everything else about it (transport).
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any, Self

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Deadline:
    """Ends the exchange that this thread makes inside the `with` block through a `DeadlineAdapter`.

    Attributes:
        expired: the time was over before the block was left; what came in is not to be trusted.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        _thread.deadline = self
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _thread.deadline = None

    def watch(self, connected: socket.socket | None) -> None:
        """Take note of the socket that the exchange waits on."""
        self._socket = connected
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            with suppress(OSError):
                # An SSLSocket's own shutdown would drop its encryption state under the reader's feet.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class DeadlineAdapter(HTTPAdapter):
    """Gives requests the connections that a `Deadline` can end; through a proxy it has only the read timeout."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools; see HTTPAdapter."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Thread(threading.local):
    deadline: Deadline | None = None


_thread = _Thread()


class _WatchedHTTPConnection(HTTPConnection):
    def getresponse(self) -> Any:
        if _thread.deadline is not None:
            _thread.deadline.watch(self.sock)
        return super().getresponse()


class _WatchedHTTPSConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        if _thread.deadline is not None:
            _thread.deadline.watch(self.sock)
        return super().getresponse()


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection
