"""However many threads there are, no more symbols are fetched at once than the run is configured for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from market_data_pipeline.sandbox.view import Source
from market_data_pipeline_tests.conftest import _new_database
from market_data_pipeline_tests.ingest.faults.conftest import NOON
from market_data_pipeline_tests.ingest.faults.vendor import Exchange, FaultyVendor, anything
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld
from market_data_pipeline_tests.polygon.faulty_server import Answer, Handler, send

SYMBOLS = ("AAPL", "MSFT", "NVDA", "AMZN", "META", "TSLA", "SPY", "KO")


@contextmanager
def watched(postgres_url: str, template: str, source: Source) -> Iterator[tuple[FaultyWorld, list[tuple[str, float]]]]:
    """Give a world whose vendor takes a moment for each answer, and a list of the moments of requests and answers."""
    moments: list[tuple[str, float]] = []
    lock = threading.Lock()

    def slow(exchange: Exchange) -> Answer:
        def answer(handler: Handler) -> None:
            with lock:
                moments.append((exchange.symbol, time.monotonic()))
            handler.wait(0.02)
            with lock:
                moments.append((exchange.symbol, time.monotonic()))
            send(exchange.status, exchange.body)(handler)

        return answer

    with contextmanager(_new_database)(postgres_url, template) as url:
        world = FaultyWorld("http://127.0.0.1:9", url, NOON)
        with FaultyVendor(source, world.clock) as vendor:
            vendor.inject(slow, anything, 1_000)
            world.vendor = vendor
            yield world, moments


def test_no_more_symbols_are_in_flight_than_configured_from_their_first_request_to_their_last_answer(
    postgres_url: str, migrated_template: str, market: Source
) -> None:
    with watched(postgres_url, migrated_template, market) as (world, moments):
        outcomes = world.refresh(*SYMBOLS, history_days=9)  # so many that day bars are requested by symbol, too
        assert {(exchange.symbol, exchange.kind) for exchange in world.vendor.exchanges} > {
            (one, "1d") for one in SYMBOLS
        }
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    spans = {symbol: [at for one, at in moments if one == symbol] for symbol in SYMBOLS}
    changes = sorted([(min(times), 1) for times in spans.values()] + [(max(times), -1) for times in spans.values()])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    assert 1 < most <= world.threads
