"""A read API in a process of its own, and connections that put load on it from this process.

Locust would cost as much as the API: a client here takes a twentieth.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import requests

from benchmarks.place import REPOSITORY
from market_data_pipeline.measure.scratch import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def running_api() -> Iterator[tuple[int, psutil.Process]]:
    """Start the read API as the environment says, yield its port and process, and stop it at the end."""
    [port] = free_ports(1)
    environment = {**os.environ, "MARKET_DATA_API_PORT": str(port)}
    command = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)  # noqa: S603 - our own module
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/openapi.json", timeout=60)
                break
            except requests.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


class HttpClient(asyncio.Protocol):
    """One connection that sends its next request as soon as it has an answer.

    Args:
        ask: returns the next request, None at the end.
        answered: called with the status of each answer.
    """

    def __init__(self, ask: Callable[[], bytes | None], answered: Callable[[int], None]) -> None:
        self._ask = ask
        self._answered = answered
        self._got = bytearray()
        self._whole = 0  # bytes of the answer, once its head has come
        self._transport: asyncio.WriteTransport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - narrows the type
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self._got += data
        if not self._whole:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._got[:end]).lower()
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._whole = end + 4 + int(length or 0)
        if len(self._got) >= self._whole:
            self._answered(int(self._got[9:12]))
            self._got.clear()
            self._whole = 0
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting for this client."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("The API closed a connection."))

    def _next(self) -> None:
        assert self._transport is not None  # noqa: S101 - as above
        request = self._ask()
        if request is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(request)
