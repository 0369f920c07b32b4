"""What the server refuses, and how it says so."""

from __future__ import annotations

import re

import pytest
import requests

from market_data_pipeline_tests.sandbox.vendor import Vendor, vendor

BARS = "/v2/aggs/ticker/AAPL/range/5/minute/2026-11-18/2026-11-18"


def refused(reply: requests.Response, status: int, name: str, key: str) -> str:
    """Check a refusal's shape; return its text."""
    assert reply.status_code == status
    assert list(reply.json()) == ["status", "request_id", key]
    assert reply.json()["status"] == name
    text: str = reply.json()[key]
    return text


def test_the_key_is_taken_from_the_header_or_the_query(market: Vendor) -> None:
    assert requests.get(market.url + BARS, params={"apiKey": "sandbox"}, timeout=30).status_code == 200
    assert requests.get(market.url + BARS, headers={"Authorization": "Bearer sandbox"}, timeout=30).status_code == 200


def test_an_unknown_key_is_401(market: Vendor) -> None:
    reply = requests.get(market.url + BARS, headers={"Authorization": "Bearer wrong"}, timeout=30)
    assert refused(reply, 401, "ERROR", "error") == "Unknown API Key"
    assert refused(requests.get(market.url + BARS, timeout=30), 401, "ERROR", "error") == "API Key was not provided"


@pytest.mark.parametrize(
    ("path", "parameters", "names"),
    [
        ("/v2/aggs/ticker/AAPL/range/5/minute/yesterday/2026-11-18", {}, "'from'"),
        ("/v2/aggs/ticker/AAPL/range/5/minute/2026-11-18/2026-13-01", {}, "'to'"),
        ("/v2/aggs/ticker/AAPL/range/5/minute/2026-11-18/2026-11-17", {}, "'to'"),
        ("/v2/aggs/ticker/AAPL/range/0/minute/2026-11-18/2026-11-18", {}, "'multiplier'"),
        ("/v2/aggs/ticker/AAPL/range/1/fortnight/2026-11-18/2026-11-18", {}, "'timespan'"),
        (BARS, {"limit": "many"}, "'limit'"),
        (BARS, {"sort": "up"}, "'sort'"),
        (BARS, {"adjusted": "perhaps"}, "'adjusted'"),
        (BARS, {"cursor": "%%%"}, "'cursor'"),
        ("/v2/aggs/grouped/locale/us/market/stocks/soon", {}, "'date'"),
        ("/v3/reference/splits", {"execution_date.gte": "soon"}, "'execution_date.gte'"),
    ],
)
def test_a_parameter_that_cannot_be_parsed_is_400_and_named(
    market: Vendor, path: str, parameters: dict[str, str], names: str
) -> None:
    assert names in refused(market.get(path, **parameters), 400, "ERROR", "error")


def test_a_bad_time_is_refused_in_the_vendors_words(market: Vendor) -> None:
    reply = market.get("/v2/aggs/ticker/AAPL/range/5/minute/x/2026-11-18")
    assert reply.json()["error"].startswith("Could not parse the time parameter: 'from'. ")


def test_an_unknown_path_is_404(market: Vendor) -> None:
    assert "/v9/nothing" in refused(market.get("/v9/nothing"), 404, "NOT_FOUND", "message")


def test_a_range_wholly_older_than_the_plans_history_is_403() -> None:
    with vendor(plan="starter") as starter:
        reply = starter.get("/v2/aggs/ticker/AAPL/range/1/day/2020-01-01/2020-12-31")
        assert "upgrade your plan" in refused(reply, 403, "NOT_AUTHORIZED", "message")
        assert starter.get("/v2/aggs/grouped/locale/us/market/stocks/2020-06-01").status_code == 403


def test_more_calls_a_minute_than_the_plan_allows_are_429() -> None:
    with vendor(plan="basic") as basic:
        replies = [basic.get(BARS) for _ in range(7)]
        assert [reply.status_code for reply in replies] == [200] * 5 + [429] * 2
        text = refused(replies[-1], 429, "ERROR", "error")
        assert text.startswith("You've exceeded the maximum requests per minute")
        assert 1 <= int(replies[-1].headers["Retry-After"]) <= 60
        status = basic.get("/_sandbox/status").json()
        assert status["answered"] == {"200": 5, "429": 2}


def test_the_status_page_needs_no_key_and_counts_answers(market: Vendor) -> None:
    status = requests.get(market.url + "/_sandbox/status", timeout=30).json()
    assert status["plan"] == "advanced"
    assert status["clock"] == "2026-11-20T14:33:20-05:00"
    assert re.match("synthetic market of", status["sandbox"])
    before = status["answered"].get("404", 0)
    market.get("/v9/nothing")
    assert requests.get(market.url + "/_sandbox/status", timeout=30).json()["answered"]["404"] == before + 1
