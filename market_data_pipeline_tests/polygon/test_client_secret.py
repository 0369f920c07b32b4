"""The key goes into one header for one host, and shows nowhere else."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator

import pytest

from market_data_pipeline.domain.errors import ConfigurationError, PipelineError
from market_data_pipeline.polygon.client import PolygonClient
from market_data_pipeline.polygon.transport import Limits
from market_data_pipeline_tests.polygon.faulty_server import (
    Answer,
    FaultyServer,
    reset,
    send,
    send_gzip,
    send_json,
    send_short,
    stall,
)
from market_data_pipeline_tests.polygon.vendor import KEY, TRUTH, NoWait, QuickClient, page

GOOD = json.dumps(page(TRUTH)).encode()

# Each fault quotes the key where the vendor, a proxy or a library could quote it.
FAULTS = {
    "401": send_json({"status": "ERROR", "error": f"Unknown API Key {KEY}"}, 401),
    "403": send_json({"status": "NOT_AUTHORIZED", "message": f"Bearer {KEY} is not entitled"}, 403),
    "400": send_json({"status": "ERROR", "error": f"apiKey={KEY} is not a parameter"}, 400),
    "429": send_json({"status": "ERROR", "error": f"{KEY} exceeded the maximum requests"}, 429),
    "500": send_json({"status": "ERROR", "error": f"panic: {KEY}"}, 500),
    "a refusal inside 200": send_json({"status": "ERROR", "error": f"bad {KEY}"}),
    "a ticker": send_json(page(TRUTH, ticker=KEY)),
    "a next_url": send_json(page(TRUTH, next_url=f"https://x/{KEY}?apiKey={KEY}")),
    "a redirect": send(301, headers={"Location": f"https://evil.example/?apiKey={KEY}"}),
    "a bad header": reset(f"HTTP/1.1 {KEY}\r\n".encode()),
    "an encoding": send(200, GOOD, {"Content-Encoding": KEY}),
    "a reset": reset(),
    "a reset in the body": reset(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"),
    "silence": stall(),
    "truncated JSON": send(200, GOOD[:50] + KEY.encode()),
    "truncated gzip": send_gzip(GOOD, keep=50),
    "a short body": send_short(GOOD, missing=5),
}


def errors_behind(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            queue += [one.__cause__, one.__context__]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_no_failure_shows_the_key(fault: Answer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), FaultyServer(fault) as server:
        quick = QuickClient(server.url, limits=Limits(read=0.1), max_attempts=2)
        with pytest.raises(PipelineError) as caught:
            quick.bars()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert KEY not in "".join(shown.format(chain=True))
    for error in errors_behind(caught.value):
        assert KEY not in f"{error!s} {error!r} {error.args!r} {vars(error)!r}"
        # An exception of requests drags along the request, header and all.
        assert getattr(error, "request", None) is None
    assert KEY not in caplog.text
    assert KEY not in repr(quick.client)


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    for key in ("", "two words", "line\nbreak", "ümlaut"):
        with pytest.raises(ConfigurationError) as caught:
            PolygonClient("https://api.polygon.io", key, limiter=NoWait())
        assert not key or key not in str(caught.value)


@pytest.mark.parametrize("address", ["", "api.polygon.io", "ftp://api.polygon.io", "https://user:pass@api.polygon.io"])
def test_an_unusable_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="POLYGON_BASE_URL") as caught:
        PolygonClient(address, KEY, limiter=NoWait())
    assert "pass" not in str(caught.value)


def test_a_login_in_netrc_does_not_replace_the_key(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultyServer(send(200, GOOD)) as server:
        QuickClient(server.url.replace("127.0.0.1", "localhost")).bars()
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with FaultyServer(send(200, GOOD)) as server:
        QuickClient(server.url).bars()
    assert len(server.seen) == 1


def test_closing_the_client_closes_its_limiter_and_leaves_it_usable() -> None:
    with FaultyServer(send(200, GOOD)) as server:
        quick = QuickClient(server.url)
        quick.bars()
        quick.client.close()
        assert quick.limiter.closed
        assert len(quick.bars().bars) == 4
