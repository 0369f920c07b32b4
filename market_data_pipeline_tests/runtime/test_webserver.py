"""Dagster's UI as `up` starts it: it obeys its own pages and programs, and no other web page."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, WebSocket

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.runtime.ui_guard import UiGuard
from market_data_pipeline_tests.serving.proxies import caddy, documented, nginx
from market_data_pipeline_tests.waiting import until

pytestmark = pytest.mark.dagster

PREFIX = "/dagster"
VERSION = "{ version }"
CHANGE = "mutation { reloadWorkspace { __typename } }"


class Ui:
    """A running webserver on this machine, which people reach at `url` through a proxy."""

    def __init__(self, port: int, public_port: int) -> None:
        self.port = port
        self.public_port = public_port
        self.local = f"http://127.0.0.1:{port}{PREFIX}"
        self.url = f"https://localhost:{public_port}{PREFIX}"

    def query(self, text: str, **headers: str) -> int:
        return requests.post(f"{self.local}/graphql", json={"query": text}, headers=headers, timeout=30).status_code

    def get(self, path: str, headers: dict[str, str] | None = None, **params: str) -> requests.Response:
        return requests.get(self.local + path, params=params, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    folder = tmp_path_factory.mktemp("ui")
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (folder / "workspace.yaml").write_text("load_from: []\n")
    found = Ui(*free_ports(2))
    environment = {
        **os.environ, "DAGSTER_HOME": str(folder), "MARKET_DATA_PROJECT_ROOT": str(folder),
        "MARKET_DATA_UI_PORT": str(found.port), "MARKET_DATA_UI_URL": found.url,
    }  # fmt: skip
    command = [sys.executable, "-m", "market_data_pipeline.runtime.webserver", "--workspace", "workspace.yaml"]
    log = folder / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return found.get("/server_info").ok
        except requests.RequestException:
            return False

    until(answers)
    yield found
    process.terminate()
    process.wait(30)


def test_its_own_pages_and_programs_are_answered(ui: Ui) -> None:
    own = f"http://127.0.0.1:{ui.port}"
    assert ui.query(CHANGE) == 200  # a program
    assert ui.query(CHANGE, Origin=own, **{"Sec-Fetch-Site": "same-origin"}) == 200
    assert ui.query(CHANGE, Host=f"localhost:{ui.public_port}", Origin=f"https://localhost:{ui.public_port}") == 200
    assert ui.query(CHANGE, Origin=f"https://localhost:{ui.public_port}") == 200  # a proxy that replaces the Host
    assert ui.get("/graphql", query=VERSION).json()["data"]["version"]
    assert "__PATH_PREFIX__" not in ui.get("/assets").text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:3000", "localhost.evil.example", "203.0.113.9", ""])
def test_a_foreign_host_is_refused(ui: Ui, host: str) -> None:
    answer = ui.get("/assets", {"Host": host})
    assert answer.status_code in ({421} if host else {400, 421})
    assert ui.query(VERSION, Host=host) != 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_is_refused(ui: Ui, headers: dict[str, str]) -> None:
    assert ui.query(CHANGE, **headers) == ui.query(VERSION, **headers) == 403
    assert ui.get("/graphql", headers, query=VERSION).status_code == 403
    assert ui.get("/server_info", headers).status_code == 403
    report = f"{ui.local}/report_asset_materialization/AAPL"
    assert requests.post(report, headers=headers, timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "websocket"}, 403),
        ({}, 101),
    ],
)
def test_a_websocket_is_opened_to_its_own_pages_only(ui: Ui, headers: dict[str, str], status: int) -> None:
    upgrade = {
        "Host": f"127.0.0.1:{ui.port}", "Connection": "Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "graphql-ws",
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", ui.port, timeout=30)
    connection.request("GET", f"{PREFIX}/graphql", headers=upgrade | headers)
    assert connection.getresponse().status == status
    connection.close()


def test_a_link_on_another_page_opens_a_page_but_no_frame_and_no_query(ui: Ui) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    opened = ui.get("/runs", link)
    assert (opened.status_code, opened.headers["x-frame-options"]) == (200, "SAMEORIGIN")
    assert ui.get("/runs", {**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert ui.get("/graphql", link, query=VERSION).status_code == 403
    form = requests.post(f"{ui.local}/graphql", data="", headers=link, timeout=30)
    assert form.status_code == 403


@pytest.mark.parametrize("text", [CHANGE, f"query A {VERSION} {CHANGE}", "subscription { locationStateChangeEvents }"])
def test_a_get_only_queries(ui: Ui, text: str) -> None:
    answer = ui.get("/graphql", query=text, operationName="")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert ui.get("/graphql/", query=text).status_code == 405
    twice = requests.get(f"{ui.local}/graphql", params=[("query", VERSION), ("query", text)], timeout=30)
    assert twice.status_code == 405


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", "application/graphql", None],
)
def test_a_body_that_is_not_json_is_refused(ui: Ui, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for body in (f'{{"query": "{CHANGE}"}}'.encode(), b""):
        answer = requests.post(f"{ui.local}/graphql", params={"query": CHANGE}, data=body, headers=headers, timeout=30)
        assert answer.status_code == 415


@pytest.mark.parametrize(
    ("listens_on", "host", "passes"),
    [
        ("0.0.0.0", "192.0.2.7:3000", True),  # the address at which the connection arrived
        ("0.0.0.0", "192.0.2.8:3000", False),
        ("0.0.0.0", f"{socket.gethostname()}:3000", True),
        ("0.0.0.0", "rebound.example:3000", False),
        ("127.0.0.1", "192.0.2.7:3000", False),
        ("127.0.0.1", "[::1]:3000", True),
        ("127.0.0.1", "tools.example", True),  # of MARKET_DATA_UI_URL
    ],
)
def test_a_ui_for_other_machines_answers_under_its_own_addresses(listens_on: str, host: str, passes: bool) -> None:
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        assert message["status" if "status" in message else "type"] in {421, "http.response.body"}

    scope = {
        "type": "http", "method": "GET", "path": "/runs", "query_string": b"", "server": ("192.0.2.7", 3000),
        "headers": [(b"host", host.encode())],
    }  # fmt: skip
    guard = UiGuard(app, listens_on, "https://tools.example/dagster")
    with ThreadPoolExecutor(1) as thread:  # a browser's fixture leaves a running loop in this one
        thread.submit(asyncio.run, guard(scope, send, send)).result()
    assert bool(reached) == passes


@pytest.fixture(params=["nginx", "caddy"])
def proxied(request: pytest.FixtureRequest, ui: Ui, tmp_path: Path) -> Iterator[str]:
    """The address of the UI behind a proxy that is set up as the documents say."""
    recipe = documented(tmp_path, listens_on=ui.public_port, ui=ui.port, api=free_ports(1)[0])
    run, text = {"nginx": (nginx, recipe.nginx), "caddy": (caddy, recipe.caddy)}[request.param]
    with run(tmp_path, text, ui.public_port):
        yield ui.url


def test_the_ui_works_in_a_browser_behind_the_documented_proxies(
    browser: Browser, proxied: str, tmp_path: Path
) -> None:
    login = {"username": "operator", "password": "secret"}
    assert (
        requests.get(proxied + "/server_info", verify=str(tmp_path / "certificate.pem"), timeout=30).status_code == 401
    )
    context = browser.new_context(ignore_https_errors=True, http_credentials=login)
    page = context.new_page()
    page.set_default_timeout(30_000)
    answered: list[int] = []
    received: list[Any] = []

    def follow(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: received.append(frame))

    page.on("websocket", follow)
    page.on("response", lambda response: answered.append(response.status))
    with page.expect_response(lambda response: f"{proxied}/graphql" in response.url and response.ok):
        page.goto(f"{proxied}/runs")
    page.wait_for_selector("text=Runs")
    until(lambda: any("connection_ack" in str(frame) for frame in _pumped(page, received)))
    assert max(answered) < 400
    context.close()


def _pumped(page: Page, received: list[Any]) -> list[Any]:
    page.evaluate("0")  # lets Playwright deliver its events
    return received
