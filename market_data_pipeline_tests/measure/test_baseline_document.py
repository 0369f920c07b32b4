"""What a baseline concludes from its figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from market_data_pipeline.measure.baseline_document import RunTimes, baseline_document
from market_data_pipeline.measure.views import baseline_chart, print_baseline
from market_data_pipeline.reports.completeness import SeriesCost

T0 = datetime(2026, 11, 20, 12, tzinfo=UTC)
HERE: dict[str, Any] = {
    "symbols": ["AAPL"],
    "timeframes": ["5m", "1d"],
    "days": 30,
    "plan": "advanced",
    "calls_per_minute": None,
    "max_concurrent_symbols": 3,
    "processors": 2,
    "processors_busy_percent": 40.0,
}


def cost(timeframe: str = "5m", begin: float = 0, end: float = 10, /, symbol: str = "AAPL", **more: Any) -> SeriesCost:
    """Return the cost of a series that is refreshed from second `begin` to `end`."""
    values: dict[str, Any] = {
        "symbol": symbol, "timeframe": timeframe, "tier": "critical", "run_id": "run", "status": "ok",
        "started_at": T0 + timedelta(seconds=begin), "finished_at": T0 + timedelta(seconds=end), "requests": 1,
        "rate_limited": 0, "bytes": 100, "rows_fetched": 1_000, "rows_inserted": 1_000, "features_written": 1_000,
        "fetch_seconds": 0.0, "store_seconds": 0.0, "compute_seconds": 0.0, "error": None,
    }  # fmt: skip
    return SeriesCost(**{**values, **more})


def document(*costs: SeriesCost, duration: float = 10.0, runs: int = 1, **here: Any) -> dict[str, Any]:
    began = T0.timestamp()
    made = [RunTimes(str(number), "critical_refresh", "SUCCESS", began, began + 1, began + 9) for number in range(runs)]
    return baseline_document(costs, made, duration=duration, preparation=2.0, circumstances={**HERE, **here})


def percents(made: dict[str, Any]) -> dict[str, float]:
    return {part: value["percent"] for part, value in made["split"].items()}


def test_the_split_adds_up_to_the_wall_clock_and_the_rest_is_dagsters() -> None:
    # Two series side by side from 2 to 6 and 4 to 8, of 10 seconds.
    made = document(
        cost("5m", 2, 6, fetch_seconds=2.0, store_seconds=1.0, compute_seconds=1.0),
        cost("1d", 4, 8, fetch_seconds=1.0, store_seconds=2.0, compute_seconds=1.0),
    )
    assert percents(made) == {"vendor": 22.5, "database": 22.5, "computation": 15.0, "dagster": 40.0}
    assert sum(value["seconds"] for value in made["split"].values()) == pytest.approx(made["duration_seconds"])
    assert made["split"]["vendor"]["recorded_seconds"] == 3.0


def test_counts_rates_and_the_slowest_follow_from_the_series() -> None:
    made = document(
        cost("5m", fetch_seconds=3.0, rows_inserted=900),
        cost("1d", fetch_seconds=1.0, status="failed", error="refused", rows_inserted=0),
        timeframes=["15m", "1d"],  # 15m includes 5m
        duration=30.0,
    )
    assert made["jobs"] == {"total": 3, "completed": 1, "failed": 1, "never_begun": 1, "success_rate": 1 / 3}
    assert made["records"]["per_second"] == 30.0
    assert (made["slowest"]["job"]["timeframe"], made["slowest"]["timeframe"]["timeframe"]) == ("5m", "5m")
    assert [one["timeframe"] for one in made["timeframes_in_all"]] == ["5m", "1d"]
    assert made["series"][1]["error"] == "refused"


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [
        ({"fetch_seconds": 6.2, "store_seconds": 3.8}, "API bound"),
        ({"fetch_seconds": 3.8, "store_seconds": 6.2}, "database bound"),
        ({"compute_seconds": 6.2, "store_seconds": 3.8}, "computation bound"),
        ({"fetch_seconds": 6.0, "store_seconds": 4.0}, "balanced"),
        ({"fetch_seconds": 4.0, "store_seconds": 6.0}, "balanced"),
        ({"fetch_seconds": 3.0, "store_seconds": 4.0, "compute_seconds": 3.0}, "balanced"),
    ],
)
def test_what_takes_more_than_60_percent_is_the_bottleneck(seconds: dict[str, float], kind: str) -> None:
    made = document(cost(**seconds))
    assert made["bottleneck"]["kind"] == kind
    assert made["bottleneck"]["recommendations"]


def test_time_without_a_series_at_work_is_dagsters() -> None:
    few = document(cost("5m", 0, 3, fetch_seconds=3.0))
    assert few["bottleneck"]["kind"] == "Dagster bound"
    assert "measure with more symbols" in few["bottleneck"]["recommendations"][-1]
    many = document(cost("5m", 0, 3, fetch_seconds=3.0), runs=12)
    assert "MARKET_DATA_SHARD_SYMBOLS" in many["bottleneck"]["recommendations"][-1]


def advice(**more: Any) -> str:
    here = {name: more.pop(name) for name in list(more) if name in HERE}
    return " ".join(document(cost(**more), **here)["bottleneck"]["recommendations"])


def test_recommendations_fit_what_was_measured() -> None:
    slow_vendor = {"fetch_seconds": 10.0, "requests": 20}
    assert "20 requests at 120 a minute take 10 s" in advice(**slow_vendor, calls_per_minute=120)
    unlimited = advice(**slow_vendor)
    assert "0.50 s on average" in unlimited
    assert "raise MARKET_DATA_MAX_CONCURRENT_SYMBOLS from 3" in unlimited
    assert "more processors" in advice(**slow_vendor, processors_busy_percent=96.0)
    assert "7 of 20 requests were refused" in advice(**slow_vendor, rate_limited=7)
    assert "takes 10000.0 ms" in advice(store_seconds=10.0)
    assert "MARKET_DATA_FEATURES_MODULE" in advice(compute_seconds=10.0)


@pytest.mark.parametrize("costs", [(), (cost(fetch_seconds=1.0), cost("1d", store_seconds=1.0))])
def test_every_baseline_can_be_printed_and_drawn(costs: tuple[...]) -> None:
    made, said = document(*costs), []
    print_baseline(made, lambda columns, rows, title: said.append(title), said.append)
    assert any("jobs completed" in line for line in said)
    titles = str(baseline_chart(made).to_dict())
    assert made["bottleneck"]["kind"] in titles
