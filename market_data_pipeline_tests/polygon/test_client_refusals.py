"""Refusals: which fail a request, which stop the run, and what the message tells the reader to do."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from market_data_pipeline.domain.errors import PipelineError, VendorRefusedError, VendorRequestError
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, send, send_json
from market_data_pipeline_tests.polygon.vendor import WHOLE, QuickClient, cost

REFUSALS = {
    "400": (
        {"status": "ERROR", "error": "Could not parse the time parameter: 'from'."},
        400,
        VendorRequestError,
        "Could not parse the time parameter",
    ),
    "404": ({"status": "NOT_FOUND", "message": "Ticker not found."}, 404, VendorRequestError, "Ticker not found"),
    "410": ({}, 410, VendorRequestError, "HTTP 410"),
    "401": (
        {"status": "ERROR", "error": "Unknown API Key"},
        401,
        VendorRefusedError,
        "Unknown API Key.*POLYGON_API_KEY",
    ),
    "403 for everything": (
        {"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data. Please upgrade your plan"},
        403,
        VendorRefusedError,
        "not entitled.*POLYGON_PLAN",
    ),
    "403 for the range": (
        {"status": "NOT_AUTHORIZED", "message": "Your plan doesn't include this data timeframe."},
        403,
        VendorRequestError,
        "not in the plan",
    ),
    "403 for a day that is not over": (
        {"status": "NOT_AUTHORIZED", "message": "Attempted to request today's data before end of day. Please upgrade"},
        403,
        VendorRequestError,
        "not in the plan yet.*POLYGON_PLAN",
    ),
    "401 inside 200": ({"status": "ERROR", "error": "Unknown API Key"}, 200, VendorRefusedError, "POLYGON_API_KEY"),
    "403 inside 200": (
        {"status": "NOT_AUTHORIZED", "message": "Not entitled."},
        200,
        VendorRefusedError,
        "Not entitled",
    ),
    "404 inside 200": ({"status": "NOT_FOUND", "message": "Gone."}, 200, VendorRequestError, "Gone"),
    "an error inside 200": ({"status": "ERROR", "error": "Bad."}, 200, VendorRequestError, "Bad"),
    "an unknown status": ({"status": "PERHAPS"}, 200, VendorRequestError, "HTTP 400"),
}


@pytest.mark.parametrize(("answer", "status", "kind", "named"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_final_at_once(answer: Any, status: int, kind: type[PipelineError], named: str) -> None:
    with FaultyServer(send_json(answer, status)) as server:
        with pytest.raises(kind, match=named) as caught:
            QuickClient(server.url).bars()
        assert len(server.seen) == 1
    assert type(caught.value) is kind
    assert caught.value.stops_run is (kind is VendorRefusedError)
    assert cost(caught.value).requests == 1


def test_a_403_for_bars_older_than_the_plans_history_is_about_that_request_only() -> None:
    refusal = send(403)
    plan = plan_named("basic")
    inside = WHOLE.end + dt.timedelta(days=729)
    beyond = WHOLE.end + dt.timedelta(days=730)
    with FaultyServer(refusal) as server:
        with pytest.raises(VendorRequestError, match="less history"):
            QuickClient(server.url, plan=plan, clock=lambda: beyond).bars()
        with pytest.raises(VendorRefusedError):
            QuickClient(server.url, plan=plan, clock=lambda: inside).bars()
        with pytest.raises(VendorRefusedError):
            QuickClient(server.url, plan=plan_named("advanced"), clock=lambda: beyond).bars()


@pytest.mark.parametrize("symbol", ["I:SPX", "C:EURUSD", "X:BTCUSD"])
def test_a_403_for_a_market_that_is_sold_apart_is_about_its_symbols_only(symbol: str) -> None:
    refusal = {"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}
    with FaultyServer(send_json(refusal, 403)) as server:
        client = QuickClient(server.url)
        with pytest.raises(VendorRequestError, match="apart from US stocks") as caught:
            client.bars(symbol=symbol)
        with pytest.raises(VendorRefusedError):
            client.bars()
    assert symbol in str(caught.value)


def test_what_the_vendor_says_cannot_act_on_a_terminal_or_a_log() -> None:
    said = "gone\x1b[2J\x1b]0;owned\x07 \u202etxt.exe\r\nERROR: forged line \x9b31m\x00"
    with (
        FaultyServer(send_json({"error": said}, 400)) as server,
        pytest.raises(VendorRequestError) as caught,
    ):
        QuickClient(server.url).bars()
    assert r"gone\x1b[2J\x1b]0;owned\x07 \u202etxt.exe ERROR: forged line \x9b31m\x00" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_long_refusal_is_cut_and_on_one_line() -> None:
    with (
        FaultyServer(send_json({"error": "so\nit\tis " * 1000}, 400)) as server,
        pytest.raises(VendorRequestError) as caught,
    ):
        QuickClient(server.url).bars()
    assert "so it is so it is" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
