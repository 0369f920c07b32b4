"""What a reader of features relies on: records, ranges, freshness, and what happens to a series without any."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from market_data_pipeline.domain.features.definitions import FEATURES as DEFINED
from market_data_pipeline_tests.serving.conftest import FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed


def test_the_answer_holds_bars_with_all_17_features_in_ascending_time(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=12)

    answer = api.get(f"{FEATURES}/AAPL", timeframe="5m", limit=3).json()

    assert set(answer) == {
        "symbol", "timeframe", "records_returned", "truncated", "next", "cursor", "date_range", "freshness", "features",
        "timestamp",
    }  # fmt: skip
    assert (answer["symbol"], answer["timeframe"], answer["records_returned"]) == ("AAPL", "5m", 3)
    assert answer["date_range"] == {"start": "2026-03-11T14:15:00Z", "end": "2026-03-11T14:25:00Z"}
    assert answer["timestamp"] == "2026-03-11T15:00:00Z"
    assert [record["ts"] for record in answer["features"]] == [
        "2026-03-11T14:15:00Z", "2026-03-11T14:20:00Z", "2026-03-11T14:25:00Z"
    ]  # fmt: skip
    newest = answer["features"][-1]
    bar = ["ts", "open", "high", "low", "close", "volume", "vwap", "trades"]
    assert list(newest) == [*bar, *(feature.name for feature in DEFINED)]
    assert (newest["close"], newest["trades"], newest["vwap"]) == (111.0, 10, None)
    assert (newest["log_return"], newest["hh"], newest["trend_direction"]) == (0.11, False, "up")


def test_a_value_without_its_window_is_null(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=2)
    first = api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"][0]
    assert {first[feature.name] for feature in DEFINED} == {None}


def test_the_default_is_500_day_bars(api: Api, seed: Seed) -> None:
    seed.series("AAPL", "1d", count=505, first=datetime.fromisoformat("2024-06-01T04:00:00Z"))
    answer = api.get(f"{FEATURES}/AAPL").json()
    assert (answer["timeframe"], answer["records_returned"]) == ("1d", 500)
    assert answer["date_range"]["end"] == "2025-10-18T04:00:00Z"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2026-03-11T13:40:00Z", "2026-03-11T13:50:00Z", ["13:40", "13:45"]),
        ("2026-03-11T09:40:00-04:00", "2026-03-11T09:50:00-04:00", ["13:40", "13:45"]),
        ("2026-03-11T14:25:00Z", None, ["14:25"]),
        ("2026-03-11T13:40:00 00:00", "2026-03-11T13:45:00 00:00", ["13:40"]),  # a + that was not escaped
        ("2026-03-12", None, []),
        ("2026-03-11T13:40:00Z", "2026-03-11T13:40:00Z", []),
    ],
)
def test_a_range_is_half_open(api: Api, seed: Seed, start: str, end: str | None, expected: list[str]) -> None:
    seed.series("AAPL")
    params = {"start": start} | ({"end": end} if end else {})
    answer = api.get(f"{FEATURES}/AAPL", timeframe="5m", **params).json()
    assert [record["ts"][11:16] for record in answer["features"]] == expected
    assert (answer["date_range"] is None) is (not expected)


def test_a_date_is_midnight_where_the_symbol_trades(api: Api, seed: Seed) -> None:
    first = datetime.fromisoformat("2026-03-10T23:00:00Z")
    seed.series("AAPL", "1h", count=8, first=first)
    seed.series("X:BTCUSD", "1h", count=8, first=first)
    starts = {
        symbol: api.get(f"{FEATURES}/{symbol}", timeframe="1h", start="2026-03-11").json()["date_range"]["start"]
        for symbol in ("AAPL", "X:BTCUSD")
    }
    assert starts == {"AAPL": "2026-03-11T04:00:00Z", "X:BTCUSD": "2026-03-11T00:00:00Z"}


def test_prices_beside_features_are_adjusted_for_splits(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1, close=400.0)
    seed.split("AAPL", "2026-03-11", 1, 4)  # in force since midnight: before that bar
    assert api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["features"][0]["close"] == 400.0
    seed.series("MSFT", count=1, close=400.0, first=datetime.fromisoformat("2026-03-10T14:00:00Z"))
    seed.split("MSFT", "2026-03-11", 1, 4)
    record = api.get(f"{FEATURES}/MSFT", timeframe="5m").json()["features"][0]
    assert (record["close"], record["volume"]) == (100.0, 4000.0)


@pytest.mark.parametrize(
    ("late", "status", "warning", "lifespan"),
    [
        (timedelta(minutes=-3), "FRESH", None, None),
        (timedelta(hours=1), "FRESH", None, None),
        (timedelta(hours=1, seconds=1), "AGING", "1 h", None),
        (timedelta(hours=6), "AGING", "6 h", None),
        (timedelta(hours=7), "STALE", "7 h", "17 h left of 24 h"),
        (timedelta(hours=30), "STALE", "30 h", "the lifespan of 24 h has passed"),
    ],
)
def test_freshness_follows_from_when_the_next_bar_fell_due(
    api: Api, seed: Seed, late: timedelta, status: str, warning: str | None, lifespan: str | None
) -> None:
    seed.series("AAPL", late=late)

    response = api.get(f"{FEATURES}/AAPL", timeframe="5m")

    fresh = response.json()["freshness"]
    assert (response.status_code, fresh["status"]) == (200, status)
    assert fresh["staleness_seconds"] == max(late.total_seconds(), 0)
    assert (fresh["verified_at"], fresh["age_seconds"]) == ("2026-03-11T14:58:00Z", 120.0)
    assert ("warning" in fresh) is (warning is not None)
    assert (warning or "") in fresh.get("warning", "")
    assert fresh.get("cache_lifespan") == lifespan
    assert fresh.get("cache_lifespan_seconds") == (max(24 * 3600 - late.total_seconds(), 0) if lifespan else None)
    assert response.headers["X-Freshness"] == status


def test_a_series_never_computed_is_explained_and_its_backfill_queued_once(api: Api, seed: Seed) -> None:
    seed.symbol("AAPL")

    first = api.get(f"{FEATURES}/AAPL", timeframe="5m")
    second = api.get(f"{FEATURES}/AAPL", timeframe="5m")

    assert (first.status_code, second.status_code) == (404, 404)
    assert first.headers["Content-Type"] == "application/problem+json"
    assert "never been computed" in first.json()["detail"]
    assert "queued just now" in first.json()["detail"]
    assert "already requested at 2026-03-11T15:00:00Z" in second.json()["detail"]
    assert first.json()["backfill_request"]["id"] == second.json()["backfill_request"]["id"]
    assert seed.run(
        "select symbol, timeframe, requested_at, requested_by, status from market_data.backfill_requests"
    ) == [("AAPL", "5m", NOW, "api", "queued")]


def test_a_failed_backfill_may_be_requested_again(api: Api, seed: Seed) -> None:
    seed.symbol("AAPL")
    api.get(f"{FEATURES}/AAPL")
    seed.run("update market_data.backfill_requests set status = 'failed'")
    assert "queued just now" in api.get(f"{FEATURES}/AAPL").json()["detail"]


@pytest.mark.parametrize(
    ("life", "looked", "why", "next_look"),
    [
        ("trading", "2026-03-11T14:58:00Z", "the vendor has no bars of it yet", "2026-03-11T15:13:00Z"),
        ("unknown", "2026-03-11T09:00:00Z", "unknown to the vendor", "2026-03-12T09:00:00Z"),
    ],
)
def test_a_series_of_which_the_vendor_has_nothing_is_a_404_that_queues_nothing_until_the_next_look(
    api: Api, seed: Seed, life: str, looked: str, why: str, next_look: str
) -> None:
    seed.symbol("AAPL")
    seed.run(
        "insert into market_data.series_state (symbol, timeframe, tier, verified_at, life)"
        " values ('AAPL', '5m', 'critical', '2026-03-11T14:58:00Z', %s)",
        life,
    )
    seed.run(
        "insert into market_data.listings (symbol, asked_at, known) values ('AAPL', '2026-03-11T09:00:00Z', false)"
    )
    for _ in range(3):
        problem = api.get(f"{FEATURES}/AAPL", timeframe="5m")
        assert problem.status_code == 404
        document = problem.json()
        assert (document["looked_at"], document["next_look_at"]) == (looked, next_look)
        assert why in document["detail"]
        assert int(problem.headers["Retry-After"]) == (datetime.fromisoformat(next_look) - NOW).total_seconds() + 1
    assert seed.run("select count(*) from market_data.backfill_requests") == [(0,)]

    # A schedule that did not come in time is made up for.
    seed.run("update market_data.series_state set verified_at = verified_at - interval '1 hour'")
    seed.run("update market_data.listings set asked_at = asked_at - interval '2 days'")
    assert "queued just now" in api.get(f"{FEATURES}/AAPL", timeframe="5m").json()["detail"]


@pytest.mark.parametrize("symbol", ["NOPE", "nope", "a b", "%00", "A" * 60, "DELISTED"])
def test_an_untracked_symbol_is_not_found_and_nothing_is_queued(api: Api, seed: Seed, symbol: str) -> None:
    seed.symbol("DELISTED", active=False)
    response = api.get(f"{FEATURES}/{symbol}")
    assert response.status_code == 404
    assert "not tracked" in response.json()["detail"]
    assert seed.run("select count(*) from market_data.backfill_requests") == [(0,)]


def test_a_symbol_in_the_wrong_case_is_corrected(api: Api, seed: Seed) -> None:
    seed.symbol("KIMpL")
    assert "Did you mean KIMpL?" in api.get(f"{FEATURES}/KIMPL").json()["detail"]


def test_a_removed_symbol_keeps_its_history(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    seed.run("update market_data.symbols set active = false")
    assert api.get(f"{FEATURES}/AAPL", timeframe="5m").status_code == 200
