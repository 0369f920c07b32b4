"""A small load on a running server: what the generator measures, and what the report makes of it."""

from __future__ import annotations

import dagster as dg
import pytest

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.measure.load_generator import Measured
from market_data_pipeline.measure.loadtest import (
    QUIET,
    REFRESH,
    chosen,
    loadtest_document,
    measure,
    measured,
    scenarios,
    verdict,
)
from market_data_pipeline.measure.views import loadtest_chart
from market_data_pipeline_tests.serving.conftest import Api
from market_data_pipeline_tests.serving.seeding import Seed

SYMBOLS = ("AAPL", "MSFT")
BY_NAME = {one.name: one for one in scenarios(SYMBOLS, users=5)}


@pytest.mark.parametrize("name", ["cached_symbol", "uncached_mixed", "past_windows", "admin_endpoints"])
def test_every_request_under_load_succeeds(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance, name: str
) -> None:
    for symbol in SYMBOLS:
        for timeframe in ("5m", "15m", "1h", "4h", "1d"):
            seed.series(symbol, timeframe, count=1)
    api.wait_for_cache()
    for path in BY_NAME[name].paths:  # what may be kept is kept before the load begins
        assert api.get(path).status_code == 200
    before = api.hits()

    found = measure(api.base, BY_NAME[name], seconds=1.0)

    assert found["requests"] > 0
    assert (found["failures"], found["success_rate"], found["first_failure"]) == (0, 1.0, None)
    assert found["mean_ms"] > 0
    assert 0 <= found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]  # rounded to milliseconds
    assert (api.hits() - before > found["requests"] / 2) == (name == "cached_symbol")


def test_work_done_meanwhile_decides_how_long_is_measured(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1)
    done = []
    found = measure(api.base, BY_NAME["cached_symbol"], seconds=60.0, during=lambda: done.append(api.get("/docs")))
    assert done
    assert found["duration_seconds"] < 60


def test_failures_are_counted_and_the_first_is_reported(api: Api) -> None:
    found = measure(api.base, BY_NAME["cached_symbol"], seconds=0.5)  # AAPL is not tracked here
    assert found["failures"] == found["requests"] > 0
    assert found["verdict"] == "critical"
    assert "404" in found["first_failure"]


def statistics(ms: float, requests: int = 10, failures: int = 0, seconds: float = 1.0) -> Measured:
    """Return what Locust measures when every request takes `ms`."""
    return Measured(requests, failures, None, ms, ms, ms, ms, seconds)


def test_throughput_and_success_follow_from_the_counts() -> None:
    found = measured(BY_NAME["cached_symbol"], statistics(50.0, requests=100, failures=2, seconds=4.0))
    assert (found["throughput_per_second"], found["success_rate"]) == (25.0, pytest.approx(0.98))
    assert (found["mean_ms"], found["p50_ms"], found["p95_ms"], found["p99_ms"]) == (50.0, 50.0, 50.0, 50.0)


@pytest.mark.parametrize(
    ("p95_ms", "success", "expected"),
    [
        (1000.0, 1.0, "good"),
        (1000.1, 1.0, "warning"),
        (10.0, 0.995, "warning"),
        (3000.0, 1.0, "warning"),
        (3000.1, 1.0, "critical"),
        (10.0, 0.98, "critical"),
        (None, 0.0, "critical"),
    ],
)
def test_the_verdict_follows_time_and_failures(p95_ms: float | None, success: float, expected: str) -> None:
    assert verdict(p95_ms, success) == expected


def test_an_unknown_scenario_is_named_and_the_refresh_brings_its_comparison() -> None:
    with pytest.raises(UsageError, match="no scenario nothing; known are cached_symbol, uncached_mixed"):
        chosen(SYMBOLS, 5, ("nothing",))
    assert [one.name for one in chosen(SYMBOLS, 5, (REFRESH,))] == [QUIET, REFRESH]


def test_a_document_compares_the_refresh_with_quiet_and_becomes_a_chart() -> None:
    results = [measured(BY_NAME[QUIET], statistics(10.0)), measured(BY_NAME[REFRESH], statistics(30.0))]
    document = loadtest_document(results, tickers=SYMBOLS, days=5, memory_bytes=1)
    assert document["refresh_slows_p99_by"] == pytest.approx(3.0)
    assert document["verdict"] == "good"
    percentiles, throughput = loadtest_chart(document).to_dict()["hconcat"]
    assert len(percentiles["data"]["values"]) == 6
    assert [one["scenario"] for one in throughput["data"]["values"]] == [QUIET, REFRESH]
