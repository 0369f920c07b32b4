"""Proxies of the environment and this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from market_data_pipeline.settings.network import prepare_network

CLOSED = "http://127.0.0.1:9"  # the port `discard`, where nothing listens
# Asks the addresses in its arguments, as the libraries that our processes use do.
CLIENTS = """
import sys, urllib.request
import httpx, requests
for address in sys.argv[1:]:
    print(requests.get(address, timeout=30).text)
    print(urllib.request.urlopen(address, timeout=30).read().decode())
    print(httpx.get(address, timeout=30).text)
"""


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


def test_a_request_to_this_machine_never_goes_through_the_proxy() -> None:
    environment = {"PATH": os.environ["PATH"], "http_proxy": CLOSED, "HTTP_PROXY": CLOSED, "all_proxy": CLOSED}
    prepare_network(environment)
    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        addresses = [f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost")]
        done = subprocess.run(
            [sys.executable, "-c", CLIENTS, *addresses], env=environment, capture_output=True, text=True
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.split() == ["hello"] * 6, done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intranet.example"}, "intranet.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost, 10.0.0.0/8"}, "localhost,10.0.0.0/8,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_what_the_environment_excludes_already_stays(before: dict[str, str], after: str) -> None:
    variables = dict(before)
    prepare_network(variables)
    assert variables["no_proxy"] == variables["NO_PROXY"] == after
    prepare_network(variables)
    assert variables["no_proxy"] == variables["NO_PROXY"] == after


def test_a_list_of_grpcs_own_is_completed_too() -> None:
    variables = {"no_grpc_proxy": "intranet.example"}
    prepare_network(variables)
    assert variables["no_grpc_proxy"] == "intranet.example,127.0.0.1,localhost,::1"
