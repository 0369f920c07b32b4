"""The read API behind real reverse proxies on its own machine."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from pydantic import SecretStr

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline_tests.serving.conftest import MovableClock, serve
from market_data_pipeline_tests.serving.proxies import caddy, nginx
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.serving.test_access import ADMIN, TOKEN

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def statuses(base: str, **headers: str) -> set[int]:
    return {requests.get(base + path, headers=headers, timeout=60).status_code for path in ADMIN}


@pytest.mark.usefixtures("dagster_instance")
def test_no_visitor_of_a_proxy_is_an_operator_without_the_token(
    settings: MovableClock, seed: Seed, tmp_path: Path
) -> None:
    seed.series("AAPL")
    seed.log("run", "AAPL", "5m", "failed", error="secret trouble")
    for token, refused in ((None, 403), (SecretStr(TOKEN), 401)):
        with serve(settings.model_copy(update={"api_token": token})) as api:
            port, (bare, usual) = urlsplit(api.base).port, free_ports(2)
            http = f"""
              server {{ listen 127.0.0.1:{bare}; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}
              server {{ listen 127.0.0.1:{usual}; location / {{
                proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Host localhost;
                proxy_set_header X-Real-IP $remote_addr; }} }}
            """
            with nginx(tmp_path, http, bare):
                for proxy in (bare, usual):
                    base = f"http://127.0.0.1:{proxy}"
                    assert statuses(base) == statuses(base, Host="localhost") == {refused}
                    page = requests.get(base + "/", timeout=60).text
                    assert ("AAPL" in page, "secret trouble" in page) == (True, False)
                    assert requests.get(f"{base}/api/v1/bars/AAPL?timeframe=5m", timeout=60).status_code == 200
                    if token:
                        assert statuses(base, **BEARER) == {200}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run nginx as a service does, as another user")
@pytest.mark.usefixtures("dagster_instance")
def test_a_proxy_that_leaves_no_trace_is_known_by_its_user(settings: MovableClock, seed: Seed, tmp_path: Path) -> None:
    seed.series("AAPL")
    seed.log("run", "AAPL", "5m", "failed", error="secret trouble")
    with serve(settings) as api:
        [port] = free_ports(1)
        # What nginx 1.30 does without further settings: HTTP/1.1, the Host replaced, and no header added.
        http = f"""server {{ listen 127.0.0.1:{port}; location / {{
          proxy_pass {api.base}; proxy_http_version 1.1; proxy_set_header Connection ''; }} }}"""
        with nginx(tmp_path, http, port, user="daemon"):
            assert statuses(f"http://127.0.0.1:{port}") == {403}
            assert "secret trouble" not in requests.get(f"http://127.0.0.1:{port}/", timeout=60).text
        assert statuses(api.base) == {200}


def test_no_visitor_of_caddy_is_an_operator_without_the_token(settings: MovableClock, tmp_path: Path) -> None:
    with serve(settings) as api:
        [port] = free_ports(1)
        file = f"http://127.0.0.1:{port} {{\n  reverse_proxy {urlsplit(api.base).netloc}\n}}\n"
        with caddy(tmp_path, file, port):
            assert statuses(f"http://127.0.0.1:{port}") == {403}


def test_a_proxy_may_take_the_path_prefix_off_or_not(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL")
    with serve(settings.model_copy(update={"api_url": "http://localhost/a/b"})) as api:
        for prefix in ("", "/a/b"):
            assert api.get(f"{prefix}/api/v1/bars/AAPL", timeframe="5m").status_code == 200
            assert 'href="../../static/style.css"' in api.get(f"{prefix}/series/AAPL/5m").text
            assert api.get(f"{prefix}/static/style.css").status_code == 200
        moved = api.session.get(f"{api.base}/a/b", allow_redirects=False, timeout=60)
        assert (moved.status_code, moved.headers["location"]) == (308, "b/")
        assert api.get("/a/bc").status_code == 404
