"""Faults on the wire: the client retries, and either returns the truth or says what was wrong."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from market_data_pipeline.domain.errors import (
    DataError,
    RateLimitedError,
    TransientError,
    VendorRequestError,
    VendorUnreachableError,
)
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.polygon.client import PolygonClient
from market_data_pipeline.polygon.rate_limit import UnlimitedLimiter
from market_data_pipeline.polygon.retry import CUT_OFF_AFTER
from market_data_pipeline.polygon.transport import Limits
from market_data_pipeline_tests.polygon.faulty_server import (
    Answer,
    FaultyServer,
    Seen,
    drip,
    reset,
    send,
    send_and_close,
    send_chunked,
    send_gzip,
    send_json,
    send_short,
    stall,
)
from market_data_pipeline_tests.polygon.vendor import KEY, TRUTH, WHOLE, QuickClient, cost, page, rows
from market_data_pipeline_tests.waiting import until

GOOD = json.dumps(page(TRUTH)).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
HASTY = Limits(read=0.1, total=0.15)  # for answers that never come

PASSING = {
    "429 with Retry-After and a body": send_json(
        {"status": "ERROR", "error": "You've exceeded the maximum requests per minute"}, 429, {"Retry-After": "7"}
    ),
    "429 with an empty body": send(429),
    "429 as HTML": send(429, b"<html>slow down</html>"),
    "408": send(408),
    "500 as HTML": send(500, b"<html><h1>Internal Server Error</h1></html>"),
    "502 with an empty body": send(502),
    "503 that claims to be gzip": send(503, b"plain", {"Content-Encoding": "gzip"}),
    "a reset before the header": reset(),
    "a reset in the header": reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "a reset in the body": reset(HEAD + GOOD[:100]),
    "a reset in the body of a 500": reset(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\nsorry"),
    "silence before the header": stall(),
    "silence in the header": stall(b"HTTP/1.1 200 OK\r\nContent"),
    "silence in the body": stall(HEAD + GOOD[:100]),
    "a header that drips": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "a body that drips": drip(HEAD, b" ", 0.05),
    "a body without length that drips": drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" ", 0.05),
    "a chunked body that drips": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n", b" ", 0.05),
    "gzip that is cut short": send_gzip(GOOD, keep=120),
    "gzip without its checksum": send_gzip(GOOD, keep=-8),
    "gzip that is not gzip": send(200, GOOD, {"Content-Encoding": "gzip"}),
    "gzip with a damaged middle": send(
        200, gzip.compress(GOOD)[:60] + b"\0" * 40 + gzip.compress(GOOD)[100:], {"Content-Encoding": "gzip"}
    ),
    "an encoding that was not requested": send(200, GOOD, {"Content-Encoding": "br"}),
    "JSON that is cut short": send(200, GOOD[:-30]),
    "JSON twice": send(200, GOOD + GOOD),
    "JSON that is nested without end": send(200, b'{"status":"OK","more":' + b"[" * 100_000),
    "HTTP/1.0 that closes early": send_and_close(GOOD[:-30]),
    "an empty body": send(200),
    "HTML with 200": send(200, b"<html>maintenance</html>"),
    "NAN, which is not JSON": send(200, GOOD.replace(b"101.0", b"NAN", 1)),
    "bytes that are not UTF-8": send(200, GOOD.replace(b"OK", b"\xff\xfe", 1)),
    "fewer bytes than Content-Length": send_short(GOOD, missing=10),
    "a Content-Length that cuts the body": send(200, GOOD, {"Content-Length": str(len(GOOD) - 20)}),
    "chunks without an end": send_chunked(GOOD, ended=False),
    "an internal error inside 200": send_json({"status": "ERROR", "error": "Internal server error"}),
    "rate refused inside 200": send_json(
        {"status": "ERROR", "error": "You've exceeded the maximum requests per minute, please wait."}
    ),
}


FAULTS = pytest.mark.parametrize(
    ("fault", "limits"),
    [
        pytest.param(fault, HASTY if "silence" in name or "drips" in name else Limits(), id=name)
        for name, fault in PASSING.items()
    ],
)


@FAULTS
def test_a_transient_fault_leaves_the_truth(fault: Answer, limits: Limits) -> None:
    with FaultyServer(fault, send_json(page(TRUTH))) as server:
        quick = QuickClient(server.url, limits=limits, sleep=lambda _: be_patient(quick))
        fetched = quick.bars()
    assert rows(fetched.bars) == TRUTH
    assert fetched.usage.requests == 2


def be_patient(quick: QuickClient) -> None:
    """Let what follows take as long as a busy machine needs."""
    quick.client._sender.transport._limits = Limits()


@FAULTS
def test_a_fault_that_stays_ends_as_a_transient_error_that_carries_its_cost(fault: Answer, limits: Limits) -> None:
    with FaultyServer(fault) as server:
        quick = QuickClient(server.url, limits=limits, max_attempts=2)
        with pytest.raises(TransientError, match=r"AAPL 5m.* Gave up after 2 attempts") as caught:
            quick.bars()
        until(lambda: len(server.seen) == 2)  # it may read a request after the client has given up
    assert cost(caught.value).requests == 2


def test_five_attempts_back_off_exponentially_and_no_more_are_made() -> None:
    with FaultyServer(send(503)) as server:
        quick = QuickClient(server.url)
        with pytest.raises(TransientError, match=r"HTTP 503.*5 attempts"):
            quick.bars()
    assert len(server.seen) == 5
    assert quick.slept == [1, 2, 4, 8]


def test_the_jitter_is_drawn_from_nothing_to_the_whole_backoff() -> None:
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.25

    with FaultyServer(send(503)) as server, pytest.raises(TransientError):
        QuickClient(server.url, uniform=uniform).bars()
    assert drawn == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16)]


DATE = "Tue, 02 Jan 2024 10:00:00 GMT"


@pytest.mark.parametrize(
    ("status", "retry_after", "slept"),
    [
        (429, "7", 7),
        (503, "7", 7),
        (429, "0", 1),
        (429, "86400", 300),
        (429, "soon", 1),
        (429, "", 1),
        (429, "7.5", 7.5),
        (429, "-5", 1),
        (429, "1e3", 1),
        (429, "Tue, 02 Jan 2024 10:00:42 GMT", 42),
        (429, "Tue, 02 Jan 2024 09:00:00 GMT", 1),
        (429, "Wed, 03 Jan 2024 10:00:00 GMT", 300),
    ],
)
def test_retry_after_is_honoured_up_to_300_seconds(status: int, retry_after: str, slept: float) -> None:
    def fault(handler: object) -> None:
        handler.send_response_only(status)  # type: ignore[attr-defined]
        send_headers = {"Content-Length": "0", "Date": DATE, "Retry-After": retry_after}
        for name, value in send_headers.items():
            handler.send_header(name, value)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]

    with FaultyServer(fault, send_json(page(TRUTH))) as server:
        quick = QuickClient(server.url)
        quick.bars()
    assert quick.slept == [slept]


def test_each_429_is_counted_and_pauses_all_senders_and_a_503_does_not() -> None:
    storm = [send(429), send(429, headers={"Retry-After": "9"}), send(503), send(429)]
    with FaultyServer(*storm, send_json(page(TRUTH))) as server:
        quick = QuickClient(server.url)
        fetched = quick.bars()
    assert (fetched.usage.requests, fetched.usage.rate_limited) == (5, 3)
    assert quick.limiter.pauses == [1, 9, 8]
    assert len(quick.limiter.priorities) == 5


def test_a_storm_of_429_ends_as_a_rate_limited_error_with_every_refusal_counted() -> None:
    with FaultyServer(send(429)) as server:
        quick = QuickClient(server.url)
        with pytest.raises(RateLimitedError) as caught:
            quick.bars()
    assert cost(caught.value).rate_limited == 5
    assert len(quick.limiter.pauses) == 5


class Minutes(FaultyServer):
    """Answers five calls in any 60 seconds of a clock and refuses all others, without a Retry-After."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.answered: list[float] = []

    def next_answer(self, seen: Seen) -> Answer:
        now = self.clock()
        if sum(then > now - 60 for then in self.answered) >= 5:
            return send(429)
        self.answered.append(now)
        return send_json(page(TRUTH))


def test_a_key_with_five_calls_a_minute_gets_through_where_the_plan_is_configured_as_unlimited() -> None:
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds

    with Minutes(lambda: passed[0]) as server:
        limiter = UnlimitedLimiter(sleep=sleep, monotonic=lambda: passed[0])
        client = PolygonClient(server.url, KEY, limiter=limiter, sleep=sleep, uniform=lambda low, high: low)
        for _ in range(12):
            assert rows(client.bars("AAPL", Timeframe.M5, WHOLE).bars) == TRUTH
    assert 120 <= passed[0] < 180


def test_all_senders_wait_as_long_as_retry_after_says() -> None:
    came = []

    class Watched(FaultyServer):
        def next_answer(self, seen: Seen) -> Answer:
            came.append(time.monotonic())
            return super().next_answer(seen)

    limiter = UnlimitedLimiter()
    with Watched(send(429, headers={"Retry-After": "1"}), send_json(page(TRUTH))) as server:
        with pytest.raises(RateLimitedError):
            PolygonClient(server.url, KEY, limiter=limiter, max_attempts=1).bars("AAPL", Timeframe.M5, WHOLE)
        PolygonClient(server.url, KEY, limiter=limiter).bars("AAPL", Timeframe.M5, WHOLE)
    refused, answered = came
    assert answered - refused >= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda body: send(200, body),
        lambda body: send_gzip(body),
        lambda body: send_chunked(body),
        lambda body: send(200, gzip.compress(body[:100]) + gzip.compress(body[100:]), {"Content-Encoding": "gzip"}),
        send_and_close,
        lambda body: send(200, b"\xef\xbb\xbf" + body),
    ],
    ids=["plain", "gzip", "chunked", "gzip of two members", "HTTP/1.0", "a byte order mark"],
)
def test_every_usual_way_to_send_a_body_is_understood(make: Callable[[bytes], Answer]) -> None:
    with FaultyServer(make(GOOD)) as server:
        fetched = QuickClient(server.url).bars()
    assert rows(fetched.bars) == TRUTH


@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_beyond_the_cap_is_refused_without_another_attempt(compressed: bool) -> None:
    body = b'{"status": "OK", "filler": "' + b"x" * 300_000 + b'"}'
    with FaultyServer(send_gzip(body) if compressed else send(200, body)) as server:
        with pytest.raises(DataError, match="larger than 100000 bytes"):
            QuickClient(server.url, limits=Limits(body=100_000)).bars()
        assert len(server.seen) == 1


def test_a_server_that_is_not_there_is_a_transient_error_and_uses_one_call() -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    quick = QuickClient(url)
    with pytest.raises(
        VendorUnreachableError, match=f"{url} cannot be reached .connection refused.*5 attempts"
    ) as info:
        quick.bars()
    assert isinstance(info.value, TransientError)
    assert not info.value.stops_run
    assert len(quick.limiter.priorities) == cost(info.value).requests == 1
    assert quick.slept == [1, 2, 4, 8]


def test_a_server_that_stays_away_stops_the_run_and_one_that_comes_back_does_not() -> None:
    [port] = free_ports(1)
    quick = QuickClient(f"http://127.0.0.1:{port}")
    stops = []
    for _ in range(CUT_OFF_AFTER):
        with pytest.raises(VendorUnreachableError) as info:
            quick.bars()
        stops.append(info.value.stops_run)
    assert stops == [False] * (CUT_OFF_AFTER - 1) + [True]
    with FaultyServer(send_json(page(TRUTH)), port=port):
        assert rows(quick.bars().bars) == TRUTH
    quick.client.close()  # the connection that is still open
    with pytest.raises(VendorUnreachableError) as info:
        quick.bars()
    assert not info.value.stops_run


def test_an_unknown_host_name_is_given_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(VendorUnreachableError, match="its host name is unknown"):
        QuickClient("http://vendor.invalid").bars()


def test_a_redirect_is_an_error_and_not_followed() -> None:
    with FaultyServer(send_json(page(TRUTH))) as elsewhere:
        redirect = send(302, headers={"Location": elsewhere.url + "/v2/aggs"})
        with FaultyServer(redirect) as server, pytest.raises(VendorRequestError, match="must not go"):
            QuickClient(server.url).bars()
        assert elsewhere.seen == []


def test_threads_share_a_client_and_each_has_its_own_answer_and_cost() -> None:
    together = threading.Barrier(4)

    def ask(symbol: str) -> object:
        together.wait()
        return quick.bars(symbol=symbol)

    def echo(handler: object) -> None:
        symbol = handler.path.split("/")[4]  # type: ignore[attr-defined]
        send_json(page(TRUTH, ticker=symbol))(handler)  # type: ignore[arg-type]

    symbols = ["AAPL", "MSFT", "SPY", "TSLA"]
    with FaultyServer(echo) as server:
        quick = QuickClient(server.url)
        with ThreadPoolExecutor(4) as pool:
            fetched = list(pool.map(ask, symbols))
    assert [answer.usage.requests for answer in fetched] == [1, 1, 1, 1]  # type: ignore[attr-defined]
    assert quick.client.usage.requests == 4
    seconds = [answer.usage.fetch_seconds for answer in fetched]  # type: ignore[attr-defined]
    assert min(seconds) > 0
    assert quick.client.usage.fetch_seconds == pytest.approx(sum(seconds))
