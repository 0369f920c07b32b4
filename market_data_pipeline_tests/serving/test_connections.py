"""Clients that are slow, idle, or send too much, over real sockets: they are disconnected, and others do not notice."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import pytest

from market_data_pipeline.serving import connections
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.waiting import until

GET = b"GET /api/v1/bars/AAPL?timeframe=5m HTTP/1.1\r\nHost: localhost\r\n"


@contextmanager
def connected(api: Api) -> Iterator[socket.socket]:
    with closing(_connect(api)) as client:
        yield client


def _connect(api: Api) -> socket.socket:
    address = urlsplit(api.base)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 0), timeout=20)


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    pieces = []
    try:
        while piece := client.recv(65_536):
            pieces.append(piece)
    except ConnectionResetError:
        pass  # closed while we were still sending
    return b"".join(pieces)


def refusal(answer: bytes) -> int:
    """Return the status of an answer that is one problem document on a closed connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    document = json.loads(body)
    assert document["detail"]
    assert head.startswith(b"HTTP/1.1 %d " % document["status"])
    status: int = document["status"]
    return status


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"no request at all\r\n\r\n", 400),
        (b"GET /health?a=" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (GET + b"X-Long: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (GET + b"X-Many: a\r\n" * 5_000 + b"\r\n", 431),
        (GET + b"X-Endless: " + b"a" * 40_000, 431),
        (GET + b"Content-Length: 65537\r\n\r\n", 413),
        (b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ],
)
def test_too_much_is_refused_with_a_problem_document(api: Api, request_: bytes, status: int) -> None:
    with connected(api) as client:
        client.sendall(request_)
        assert refusal(read_all(client)) == status
    assert api.get("/openapi.json").status_code == 200


def test_an_endless_body_ends_the_connection(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    with connected(api) as client:
        client.sendall(GET + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall((b"1000\r\n" + b"a" * 0x1000 + b"\r\n") * 10_000)


def test_a_small_unexpected_body_does_no_harm(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    assert api.session.get(f"{api.base}{BARS}/AAPL?timeframe=5m", json={}, timeout=60).status_code == 200


@pytest.mark.parametrize("begun", [b"", b"GET", GET, GET + b"Content-Length: 5\r\n\r\n12", b"\r\n"])
def test_a_request_that_is_never_completed_ends_the_connection(
    api: Api, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    with connected(api) as client:
        client.sendall(begun)
        answer = read_all(client)
        if begun in (b"GET", GET) and answer:  # none when nothing had arrived in time
            assert refusal(answer) == 408


@pytest.mark.parametrize("begun", [b"GET", GET])
def test_a_second_request_that_is_never_completed_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    with connected(api) as client:
        client.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"</svg>\n"):
            received += client.recv(65_536)
        monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)  # from the first byte, however late it comes
        client.sendall(begun)
        assert refusal(read_all(client)) == 408


def test_a_thousand_idle_connections_and_slow_requests_delay_no_other_client(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    connections.allow_many_connections()
    with ExitStack() as stack:
        for number in range(1_000):
            client = stack.enter_context(connected(api))
            if number % 2:
                client.sendall(GET)  # and nothing else
        for _ in range(20):
            assert api.get(f"{FEATURES}/AAPL", timeframe="5m").status_code == 200


def test_clients_that_do_not_read_are_disconnected_and_delay_no_other_client(
    api: Api, seed: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed.long_series("AAPL", 10_000)
    whole = api.get(f"{BARS}/AAPL", timeframe="5m", limit=10_000)
    assert whole.json()["records_returned"] == 10_000
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(api)) for _ in range(20)]
        for client in clients:
            # Several at once: the system's invisible buffers take the first.
            client.sendall((GET.replace(b"timeframe=5m", b"timeframe=5m&limit=10000") + b"\r\n") * 8)
        for _ in range(20):
            assert api.get(f"{BARS}/AAPL", timeframe="5m", limit=1).status_code == 200
        for client in clients:
            until(lambda client=client: _is_cut_off(client))  # type: ignore[misc]
            assert len(read_all(client)) < 8 * len(whole.content)


def _is_cut_off(client: socket.socket) -> bool:
    """Return whether the server has given the connection up; nothing is read from it."""
    try:
        client.sendall(b"\r\n")
    except OSError:
        return True
    return False


def test_a_client_that_reads_slowly_gets_its_whole_answer(
    api: Api, seed: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "LEAST_READ", 1)
    seed.long_series("AAPL", 10_000)
    with connected(api) as client:
        client.sendall(GET.replace(b"timeframe=5m", b"timeframe=5m&limit=10000") + b"Connection: close\r\n\r\n")
        pieces = []
        while piece := client.recv(20_000):
            pieces.append(piece)
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(json.loads(body)["bars"]) == 10_000
