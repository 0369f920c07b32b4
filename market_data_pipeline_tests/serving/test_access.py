"""Who may see the admin endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from market_data_pipeline.serving.app import create_app
from market_data_pipeline.serving.peer import user_of_peer
from market_data_pipeline_tests.serving.conftest import Api, MovableClock, dagster_state, serve
from market_data_pipeline_tests.serving.seeding import Seed

STALENESS = "/api/v1/admin/features/staleness"
ADMIN = [STALENESS, "/api/v1/admin/scheduler-health", "/api/v1/admin/scheduler/execution-history"]
TOKEN = "a-long-random-text"


def ask(
    settings: MovableClock, path: str, client: str | None, headers: dict[str, str], version: str = "1.1"
) -> tuple[int, dict[str, Any]]:
    """Return status and document of a request whose connection comes from `client`."""
    sent: list[Any] = []
    scope = {
        "type": "http", "http_version": version, "asgi": {"version": "3.0"}, "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "client": (client, 4711) if client else None, "server": ("127.0.0.1", 8000),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    # In a thread of its own: a browser's fixture leaves a running loop in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, create_app(settings, dagster_state(settings))(scope, receive, send)).result()
    body = b"".join(message.get("body", b"") for message in sent[1:])
    document = json.loads(body) if body.startswith(b"{") else {"text": body.decode()}
    return sent[0]["status"], document | {"headers": dict(sent[0]["headers"])}


@pytest.fixture
def with_token(settings: MovableClock) -> MovableClock:
    return settings.model_copy(update={"api_token": SecretStr(TOKEN)})


@pytest.mark.parametrize(
    ("client", "host"),
    [
        ("127.0.0.1", "localhost:8000"),
        ("127.8.8.8", "127.0.0.1"),
        ("::1", "[::1]:8000"),
        ("::ffff:127.0.0.1", "LOCALHOST"),
    ],
)
def test_this_machine_needs_the_token_only_when_one_is_set(
    settings: MovableClock, with_token: MovableClock, client: str, host: str
) -> None:
    assert ask(settings, STALENESS, client, {"Host": host})[0] == 200
    assert ask(with_token, STALENESS, client, {"Host": host})[0] == 401
    assert ask(with_token, STALENESS, client, {"Host": host, "Authorization": f"Bearer {TOKEN}"})[0] == 200


@pytest.mark.parametrize("path", ADMIN)
@pytest.mark.parametrize("client", ["203.0.113.9", "10.0.0.1", "::ffff:203.0.113.9", None])
def test_another_machine_is_refused_without_a_token(settings: MovableClock, path: str, client: str | None) -> None:
    status, document = ask(settings, path, client, {"Host": "localhost", "Authorization": "Bearer "})
    assert (status, document["title"]) == (403, "Only this machine has access")
    assert "MARKET_DATA_API_TOKEN" in document["detail"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer tökén", 401),
        ("", 401),
    ],
)
def test_another_machine_needs_the_token(with_token: MovableClock, authorization: str, status: int) -> None:
    found, document = ask(with_token, STALENESS, "203.0.113.9", {"Host": "api", "Authorization": authorization})
    assert found == status
    assert TOKEN not in str(document)
    if status == 401:
        assert document["headers"][b"www-authenticate"].startswith(b"Bearer")


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Anything",
        "Forwarded", "X-Real-IP", "Via", "CF-Connecting-IP", "CF-Ray", "True-Client-IP", "X-Client-IP",
        "X-Original-Forwarded-For", "X-Envoy-External-Address", "Fastly-Client-IP", "CDN-Loop",
    ],
)  # fmt: skip
def test_no_header_makes_a_client_this_machine(settings: MovableClock, header: str) -> None:
    assert ask(settings, STALENESS, "203.0.113.9", {"Host": "localhost", header: "127.0.0.1"})[0] == 403
    # What a proxy on this machine passes on comes from elsewhere, whatever it says.
    assert ask(settings, STALENESS, "127.0.0.1", {"Host": "localhost", header: "127.0.0.1"})[0] == 403
    assert ask(settings, STALENESS, "127.0.0.1", {"Host": "localhost", header: ""})[0] == 403


def test_a_proxy_that_adds_no_header_is_known_by_its_old_http(settings: MovableClock) -> None:
    assert ask(settings, STALENESS, "127.0.0.1", {"Host": "127.0.0.1:8000"}, "1.0")[0] == 403


def test_a_web_page_cannot_reach_this_machine_by_another_name(settings: MovableClock) -> None:
    assert ask(settings, STALENESS, "127.0.0.1", {"Host": "rebound.example"})[0] == 403


def test_the_page_shows_failures_only_to_operators(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL")
    seed.log("run", "AAPL", "5m", "failed", error="secret trouble")
    outside = ask(settings, "/", "203.0.113.9", {"Host": "api"})[1]["text"]
    inside = ask(settings, "/", "127.0.0.1", {"Host": "localhost"})[1]["text"]
    assert ("AAPL" in outside, "secret trouble" in outside) == (True, False)
    assert "secret trouble" in inside


@pytest.mark.parametrize(("listens_on", "asks"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")])
def test_the_kernel_knows_whose_program_is_at_the_other_end(listens_on: str, asks: str) -> None:
    family = socket.AF_INET6 if ":" in listens_on else socket.AF_INET
    with (
        socket.create_server((listens_on, 0), family=family, dualstack_ipv6=listens_on == "::") as server,
        socket.create_connection((asks, server.getsockname()[1])),
    ):
        accepted, client = server.accept()
        with accepted:
            assert user_of_peer(client[:2], accepted.getsockname()[:2]) == os.getuid()
            assert user_of_peer((client[0], 1), accepted.getsockname()[:2]) is None


def test_a_running_server_ignores_forwarding_headers(settings: MovableClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with serve(settings) as api:
        assert api.get(STALENESS).status_code == 200
        assert api.get(STALENESS, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403


def test_series_are_open_to_all(api: Api, seed: Seed, tmp_path: Path) -> None:
    seed.series("AAPL")
    response = api.get("/api/v1/features/quant/AAPL", timeframe="5m", headers={"X-Forwarded-For": "203.0.113.9"})
    assert response.status_code == 200
