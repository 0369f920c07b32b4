"""A refused key or plan ends the run at once: the other symbols fail with the same reason, without a request."""

from __future__ import annotations

from datetime import timedelta

import pytest

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline_tests.ingest.faults.conftest import DAYS
from market_data_pipeline_tests.ingest.faults.repertoire import always
from market_data_pipeline_tests.ingest.faults.vendor import ALWAYS, Exchange, anything
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld
from market_data_pipeline_tests.polygon.faulty_server import Answer, send, send_json

SYMBOLS = ("AAPL", "MSFT", "NVDA", "AMZN", "META", "TSLA")
REFUSALS = {
    "401": (send_json({"status": "ERROR", "error": "Unknown API Key"}, 401), "Correct POLYGON_API_KEY"),
    "401 inside 200": (send_json({"status": "ERROR", "error": "Unknown API Key"}), "Correct POLYGON_API_KEY"),
    "403": (
        send_json({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}, 403),
        "Check POLYGON_PLAN",
    ),
    "403 inside 200": (
        send_json({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}),
        "Check POLYGON_PLAN",
    ),
}


@pytest.mark.parametrize("began", [False, True], ids=["at the first request", "in mid-run"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_stops_the_run_and_every_other_symbol_fails_without_a_request(
    world: FaultyWorld, refusal: str, began: bool
) -> None:
    made, advice = REFUSALS[refusal]
    world.threads = 1
    if began:  # the market's splits were read today: the first symbol's bars are what is refused
        world.refresh(SYMBOLS[0], history_days=DAYS)
        world.now += timedelta(minutes=5)
    before = len(world.vendor.seen)
    world.vendor.inject(always(made), anything, ALWAYS)
    outcomes = world.refresh(*SYMBOLS, history_days=DAYS)
    # What is refused of reference data may be allowed of bars: of a plan a security is asked about, then the lists of
    # splits and dividends at both addresses, and then the first bars. A key that is refused once is refused for all.
    sent = {False: 6, True: 4}[began] if refusal.startswith("403") else 1
    assert len(world.vendor.seen) - before == sent
    assert len(outcomes) == len(SYMBOLS) * len(Timeframe)
    assert {outcome.error_class for outcome in outcomes.values()} == {"VendorRefusedError"}
    assert len({outcome.error for outcome in outcomes.values()}) == 1
    assert advice in str(outcomes["TSLA|1d"].error)
    logged = world.log()
    assert {(row["status"], row["error"]) for row in logged} == {("failed", outcomes["TSLA|1d"].error)}
    assert {(row["symbol"], row["timeframe"]) for row in logged} == {
        (outcome.series.symbol, str(outcome.series.timeframe)) for outcome in outcomes.values()
    }
    assert sum(int(row["requests"]) for row in logged) == sent  # type: ignore[call-overload]


def test_symbols_in_flight_side_by_side_cost_a_request_each_at_most(world: FaultyWorld) -> None:
    world.refresh("AAPL", history_days=DAYS)
    world.now += timedelta(minutes=5)
    before = len(world.vendor.seen)
    world.vendor.inject(always(REFUSALS["401"][0]), anything, ALWAYS)
    outcomes = world.refresh(*SYMBOLS, history_days=DAYS)
    assert 1 <= len(world.vendor.seen) - before <= world.threads + 1  # dividends
    assert {outcome.error_class for outcome in outcomes.values()} == {"VendorRefusedError"}


def test_a_403_for_one_range_fails_that_series_alone(world: FaultyWorld) -> None:
    def intraday_of_msft(exchange: Exchange) -> bool:
        return exchange.kind == "5m" and exchange.symbol == "MSFT"

    said = {"status": "NOT_AUTHORIZED", "message": "Your plan doesn't include this data timeframe."}
    world.vendor.inject(always(send_json(said, 403)), intraday_of_msft, ALWAYS)
    outcomes = world.refresh("MSFT", "AAPL", history_days=DAYS)
    assert {key for key, outcome in outcomes.items() if outcome.failed} == {
        "MSFT|5m",
        "MSFT|15m",
        "MSFT|1h",
        "MSFT|4h",
    }
    assert outcomes["MSFT|5m"].error_class == "VendorRequestError"
    assert "Request less history" in str(outcomes["MSFT|5m"].error)


GONE = {
    "403": send_json({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}, 403),
    "404": send_json({"status": "NOT_FOUND"}, 404),
    "410": send_json({"status": "ERROR", "error": "This endpoint was retired."}, 410),
    "a redirect": send(301, headers={"Location": "https://elsewhere.example/splits"}),
}


@pytest.mark.parametrize("of_both", [False, True], ids=["one list", "both lists"])
@pytest.mark.parametrize("gone", GONE.values(), ids=GONE)
def test_a_list_of_splits_that_is_refused_stops_no_bars(world: FaultyWorld, gone: Answer, of_both: bool) -> None:
    def is_refused(exchange: Exchange) -> bool:
        return exchange.kind == "splits" and (of_both or exchange.target.startswith("/stocks/v1/"))

    world.vendor.inject(always(gone), is_refused, ALWAYS)
    outcomes = world.refresh("AAPL", history_days=DAYS, timeframes=(Timeframe.D1,))
    warning = outcomes["AAPL|1d"].warning
    assert outcomes["AAPL|1d"].status == "ok"
    assert "The market's splits could not be read" in str(warning) if of_both else warning is None
