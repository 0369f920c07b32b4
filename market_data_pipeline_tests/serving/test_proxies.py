"""The read API behind real reverse proxies on its own machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from pydantic import SecretStr

from market_data_pipeline_tests.serving.conftest import MovableClock, serve
from market_data_pipeline_tests.serving.proxies import caddy, free_port, nginx
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.serving.test_access import ADMIN, TOKEN

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def statuses(base: str, **headers: str) -> set[int]:
    return {requests.get(base + path, headers=headers, timeout=10).status_code for path in ADMIN}


@pytest.mark.usefixtures("dagster_instance")
def test_no_visitor_of_a_proxy_is_an_operator_without_the_token(
    settings: MovableClock, seed: Seed, tmp_path: Path
) -> None:
    seed.series("AAPL")
    seed.log("run", "AAPL", "5m", "failed", error="secret trouble")
    for token, refused in ((None, 403), (SecretStr(TOKEN), 401)):
        with serve(settings.model_copy(update={"api_token": token})) as api:
            port, bare, usual = urlsplit(api.base).port, free_port(), free_port()
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
                    page = requests.get(base + "/", timeout=10).text
                    assert ("AAPL" in page, "secret trouble" in page) == (True, False)
                    assert requests.get(f"{base}/api/v1/bars/AAPL?timeframe=5m", timeout=10).status_code == 200
                    if token:
                        assert statuses(base, **BEARER) == {200}


def test_no_visitor_of_caddy_is_an_operator_without_the_token(settings: MovableClock, tmp_path: Path) -> None:
    with serve(settings) as api:
        port = free_port()
        file = f"http://127.0.0.1:{port} {{\n  reverse_proxy {urlsplit(api.base).netloc}\n}}\n"
        with caddy(tmp_path, file, port):
            assert statuses(f"http://127.0.0.1:{port}") == {403}
