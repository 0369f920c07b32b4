"""The sandbox server: HTTP around `wire`, with keys, the plan's rate limit and a status page.

`python -m market_data_pipeline.sandbox.server --help` shows how to run one. It listens on the loopback interface, keeps
connections alive, and answers from one thread: a page costs about 20 ms of CPU. Its clock is the real one or stands
still (`--as-of`). runtime.sandbox starts one on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import uvicorn

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.polygon.plans import Plan, plan_named
from market_data_pipeline.sandbox import flat_files
from market_data_pipeline.sandbox.query import refused
from market_data_pipeline.sandbox.view import Source, View
from market_data_pipeline.sandbox.wire import Answer, answer
from market_data_pipeline.settings.sandbox import HOST, PORT, SANDBOX_KEY, STATUS_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_MINUTE: Final = 60.0  # seconds
_TOO_MANY: Final = (
    "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to continue. "
    "https://polygon.io/pricing"
)


@dataclass
class Sandbox:
    """One server's behaviour and counters.

    Every answer waits `latency` seconds, without delaying others. `gzip` compresses for clients that accept it; it is
    off by default, because on one machine it costs more than it saves. `gone` are the paths of endpoints that it
    answers with 404, as the vendor does once it has retired one; they may change while it runs.
    """

    source: Source
    clock: Callable[[], datetime]
    plan: Plan = field(default_factory=lambda: plan_named("advanced"))
    key: str = SANDBOX_KEY
    latency: float = 0.0
    gzip: bool = False
    gone: Collection[str] = frozenset()
    parameters: dict[str, Any] = field(default_factory=dict)
    answered: Counter[int] = field(default_factory=Counter)
    sent_bytes: int = 0
    last_request: float = field(default_factory=time.monotonic)
    _recent: deque[float] = field(default_factory=deque)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request (ASGI)."""
        del receive
        headers = dict(scope["headers"])
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        extra: list[tuple[bytes, bytes]] = []
        self.last_request = time.monotonic()
        if scope["path"] == STATUS_PATH:
            reply = Answer(200, json.dumps(self.status()).encode())
        else:
            if self.latency:
                await asyncio.sleep(self.latency)
            if scope["path"] == flat_files.PATH or scope["path"].startswith(f"{flat_files.PATH}/"):
                await self._file(scope, query, headers, send)
                return
            root = f"{scope['scheme']}://{headers.get(b'host', b'').decode('latin-1')}"
            reply, extra = self._reply(scope["method"], scope["path"], query, headers, root)
            self.answered[reply.status] += 1
        body = reply.body
        if self.gzip and len(body) > 1024 and b"gzip" in headers.get(b"accept-encoding", b""):
            packer = zlib.compressobj(1, wbits=31)
            body = packer.compress(body) + packer.flush()
            extra = [*extra, (b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        self.sent_bytes += len(body)
        length = str(len(body)).encode()
        start = [(b"content-type", b"application/json"), (b"content-length", length), *extra]
        await send({"type": "http.response.start", "status": reply.status, "headers": start})
        await send({"type": "http.response.body", "body": body})

    async def _file(self, scope: Any, query: dict[str, str], headers: dict[bytes, bytes], send: Any) -> None:
        """Answer a request for a flat file, or a list of them; they do not count towards the limit of calls."""
        view = View(self.source, self.plan, self.clock())
        signed = headers.get(b"authorization", b"").decode("latin-1")
        reply = flat_files.answer(view, scope["path"], query, signed, self.key)
        if scope["method"] not in ("GET", "HEAD"):
            reply = flat_files.StoreAnswer(405, b"")
        self.answered[reply.status] += 1
        body = b"" if scope["method"] == "HEAD" else reply.body
        self.sent_bytes += len(body)
        length = (b"content-length", str(len(reply.body)).encode())
        await send({"type": "http.response.start", "status": reply.status, "headers": [length, *reply.headers]})
        await send({"type": "http.response.body", "body": body})

    def status(self) -> dict[str, Any]:
        """Return the content of the status page."""
        return {
            "sandbox": self.source.description,
            "clock": self.clock().isoformat(),
            "plan": self.plan.name,
            "calls_per_minute": self.plan.calls_per_minute,
            "requests": self.answered.total(),
            "answered": {str(status): count for status, count in sorted(self.answered.items())},
            "sent_bytes": self.sent_bytes,
            "parameters": self.parameters,
        }

    def _reply(
        self, method: str, path: str, query: dict[str, str], headers: dict[bytes, bytes], root: str
    ) -> tuple[Answer, list[tuple[bytes, bytes]]]:
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = query.pop("apiKey", None) or (bearer.strip() if scheme.lower() == "bearer" else "")
        if key != self.key:
            return Answer(401, refused(401, "Unknown API Key" if key else "API Key was not provided")), []
        if (wait := self._wait()) > 0:
            return Answer(429, refused(429, _TOO_MANY)), [(b"retry-after", str(int(wait) + 1).encode())]
        if method != "GET" or path in self.gone:
            return Answer(404, refused(404, f"There is no endpoint {method} {path}.")), []
        return answer(View(self.source, self.plan, self.clock()), path, query, root), []

    def _wait(self) -> float:
        """Count a call; return the seconds until the plan allows one, 0 when it allows this one."""
        most, now = self.plan.calls_per_minute, time.monotonic()
        if most is None:
            return 0.0
        while self._recent and self._recent[0] <= now - _MINUTE:
            self._recent.popleft()
        if len(self._recent) >= most:
            return self._recent[0] + _MINUTE - now
        self._recent.append(now)
        return 0.0


def run_server(
    source: Source,
    *,
    host: str = HOST,
    port: int = PORT,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    plan: Plan | None = None,
    key: str = SANDBOX_KEY,
    latency: timedelta = timedelta(0),
    gzip: bool = False,
    gone: Collection[str] = frozenset(),
    access_log: bool = False,
    idle: timedelta | None = None,
    listening: socket.socket | None = None,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until no request has come for `idle`, if given.

    Args:
        source: where bars come from.
        host: address to listen on.
        port: port to listen on.
        clock: the server's now, aware UTC.
        plan: the plan to simulate; `advanced` by default.
        key: the only accepted API key.
        latency: wait before every answer.
        gzip: whether to compress answers for clients that accept it.
        gone: paths of endpoints that are answered with 404.
        access_log: whether to log each request.
        idle: how long to run without a request.
        listening: a socket to use instead of `host` and `port`.
        parameters: what the server was started with, shown on its status page.

    Raises:
        ConfigurationError: the port is taken.
    """
    sandbox = Sandbox(
        source, clock, plan or plan_named("advanced"), key, latency.total_seconds(), gzip, gone, parameters or {}
    )
    server = _server(sandbox, access_log=access_log)
    # uvicorn raises the signal that stopped it once more: ignore it, so that the process ends with code 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt), listening or bind(host, port) as chosen:
        asyncio.run(_serve(server, sandbox, chosen, idle))


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one.

    Raises:
        ConfigurationError: the port is taken, or the host is not this machine.
    """
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"The sandbox cannot listen on {host}:{port} ({error.strerror}); "
            "stop what uses the port or choose another with --port."
        ) from None
    # Its connections inherit this. Otherwise the body of a small answer waits 40 ms until the headers are acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@contextlib.contextmanager
def running_server(
    source: Source, clock: Callable[[], datetime], *, plan: str = "advanced", **options: Any
) -> Iterator[str]:
    """Serve from a thread on a free port while the block runs, and yield the base URL. For tests."""
    with bind(HOST, 0) as listening:
        server = _server(Sandbox(source, clock, plan_named(plan), **options), access_log=False)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _server(sandbox: Sandbox, *, access_log: bool) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            sandbox,
            lifespan="off",
            ws="none",
            access_log=access_log,
            log_level="info" if access_log else "warning",
            server_header=False,
            timeout_keep_alive=120,
            timeout_graceful_shutdown=2,
        )
    )


async def _serve(server: uvicorn.Server, sandbox: Sandbox, listening: socket.socket, idle: timedelta | None) -> None:
    watch = asyncio.create_task(_stop_when_idle(server, sandbox, idle)) if idle else None
    await server.serve([listening])
    if watch:
        watch.cancel()


async def _stop_when_idle(server: uvicorn.Server, sandbox: Sandbox, idle: timedelta) -> None:
    while (left := sandbox.last_request + idle.total_seconds() - time.monotonic()) > 0:
        await asyncio.sleep(left)
    server.should_exit = True


if __name__ == "__main__":
    from market_data_pipeline.sandbox.main import main

    main()
