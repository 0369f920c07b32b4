"""Bars as they are, as they were traded, and as they were known at an instant."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from market_data_pipeline_tests.serving.conftest import BARS, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed

TS = datetime.fromisoformat("2026-03-10T14:00:00Z")


def closes(api: Api, **params: object) -> list[float]:
    response = api.get(f"{BARS}/AAPL", timeframe="5m", **params)
    assert response.status_code == 200, response.text
    return [bar["close"] for bar in response.json()["bars"]]


def test_bars_are_adjusted_unless_raw_ones_are_requested(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1, first=TS, close=400.0)
    seed.split("AAPL", "2026-03-11", 1, 4)
    adjusted = api.get(f"{BARS}/AAPL", timeframe="5m").json()
    raw = api.get(f"{BARS}/AAPL", timeframe="5m", adjusted="false").json()
    assert (adjusted["adjusted"], raw["adjusted"]) == (True, False)
    assert [(b["close"], b["volume"]) for b in (*adjusted["bars"], *raw["bars"])] == [(100.0, 4000.0), (400.0, 1000.0)]
    assert list(raw["bars"][0]) == ["ts", "open", "high", "low", "close", "volume", "vwap", "trades"]


def test_all_adjusts_prices_for_dividends_too_by_the_closes_of_day_bars(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=2, first=TS, close=400.0)
    seed.series("AAPL", "1d", count=1, first=datetime.fromisoformat("2026-03-10T04:00:00Z"), close=404.0)
    seed.series("AAPL", "1h", count=1, first=TS - timedelta(hours=1))
    seed.split("AAPL", "2026-03-11", 1, 4)
    seed.dividend("AAPL", "2026-03-11", 1.01, seen=NOW - timedelta(hours=2))  # of 404 / 4
    answers = {
        name: api.get(f"{BARS}/AAPL", timeframe="5m", adjustment=name).json() for name in ("raw", "splits", "all")
    }
    assert {name: (one["bars"][0]["close"], one["bars"][0]["volume"]) for name, one in answers.items()} == {
        "raw": (400.0, 1000.0), "splits": (100.0, 4000.0), "all": (pytest.approx(99.0), 4000.0),
    }  # fmt: skip
    assert {name: (one["adjusted"], one["adjustment"]) for name, one in answers.items()} == {
        "raw": (False, "raw"), "splits": (True, "splits"), "all": (True, "all"),
    }  # fmt: skip
    before = (NOW - timedelta(hours=2, microseconds=1)).isoformat()
    seed.run("update market_data.bars set ingested_at = '2026-03-10T23:00Z'")
    assert closes(api, adjustment="all", as_of=before) == [100.0, 100.25]
    assert closes(api, adjustment="all", as_of=NOW.isoformat()) == pytest.approx([99.0, 99.2475])
    made = api.get(f"{BARS}/AAPL", timeframe="1h", adjustment="all", session="regular").json()["bars"]
    assert [bar["close"] for bar in made] == pytest.approx([99.2475])  # of the regular hours' 5m bars
    table = api.get(BARS, symbols="AAPL", timeframe="5m", adjustment="all", format="csv").text
    assert table.splitlines()[1].startswith("AAPL,5m,2026-03-10T14:00:00Z,99")


def test_adjusted_says_the_same_in_short_and_gives_way(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1, first=TS, close=400.0)
    seed.split("AAPL", "2026-03-11", 1, 4)
    assert closes(api, adjusted="true", adjustment="all") == closes(api, adjusted="true") == [100.0]
    assert closes(api, adjusted="false", adjustment="raw") == closes(api, adjusted="false") == [400.0]
    assert closes(api, adjusted="false", adjustment="splits") == [100.0]
    assert api.get(f"{BARS}/AAPL", timeframe="5m", adjustment="total").status_code == 422


def test_as_of_answers_with_the_values_known_at_that_instant(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=0)
    first, second, third = (NOW - timedelta(hours=h) for h in (9, 6, 3))
    seed.bar("AAPL", "5m", TS, 1.0, first)
    seed.correct("AAPL", "5m", TS, 2.0, second)
    seed.correct("AAPL", "5m", TS, 3.0, third)
    seed.bar("AAPL", "5m", TS + timedelta(minutes=5), 9.0, third)
    instant = timedelta(microseconds=1)
    known = {
        first - instant: [],
        first: [1.0],
        second - instant: [1.0],
        second: [2.0],
        third - instant: [2.0],
        third: [3.0, 9.0],
        NOW: [3.0, 9.0],
    }
    assert {at: closes(api, as_of=at.isoformat()) for at in known} == known
    assert closes(api) == [3.0, 9.0]


def test_as_of_takes_the_newest_of_what_was_known_then(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=0)
    for i in range(4):
        seed.bar("AAPL", "5m", TS + i * timedelta(minutes=5), float(i), NOW - timedelta(hours=8 - i))
    assert closes(api, as_of=(NOW - timedelta(hours=6)).isoformat(), limit=2) == [1.0, 2.0]


def test_as_of_adjusts_by_the_splits_known_then(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=0)
    seed.bar("AAPL", "5m", TS - timedelta(days=30), 400.0, NOW - timedelta(days=30))
    seed.split("AAPL", "2026-03-02", 1, 4, seen=datetime.fromisoformat("2026-03-05T12:00:00Z"))
    assert closes(api, as_of="2026-03-05T11:59:59Z") == [400.0]
    assert closes(api, as_of="2026-03-05T12:00:00Z") == [100.0]
    assert closes(api, as_of="2026-03-05T12:00:00Z", adjusted="false") == [400.0]


def test_as_of_adjusts_by_a_split_as_it_was_listed_before_its_correction(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=0)
    seed.bar("AAPL", "5m", TS - timedelta(days=30), 400.0, NOW - timedelta(days=30))
    seed.split("AAPL", "2026-03-02", 1, 4, seen=datetime.fromisoformat("2026-03-07T12:00:00Z"))
    seed.run(
        "insert into market_data.split_revisions values ('AAPL', '2026-03-02', 1, 8, %s, %s)",
        *("2026-03-05T12:00:00Z", "2026-03-07T12:00:00Z"),
    )
    assert closes(api, as_of="2026-03-05T11:59:59Z") == [400.0]
    assert closes(api, as_of="2026-03-07T11:59:59Z") == [50.0]
    assert closes(api, as_of="2026-03-07T12:00:00Z") == closes(api) == [100.0]


def test_a_listed_split_adjusts_from_the_day_it_takes_effect(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=0)
    seed.bar("AAPL", "5m", TS - timedelta(days=30), 400.0, NOW - timedelta(days=30))
    seed.split("AAPL", "2026-03-02", 1, 4, seen=datetime.fromisoformat("2026-02-20T12:00:00Z"))
    assert closes(api, as_of="2026-03-02T04:59:59Z") == [400.0]  # 23:59:59 in New York
    assert closes(api, as_of="2026-03-02T05:00:00Z") == [100.0]


def test_an_as_of_in_the_future_is_refused(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    response = api.get(f"{BARS}/AAPL", timeframe="5m", as_of=(NOW + timedelta(seconds=1)).isoformat())
    assert response.status_code == 422
    assert response.json()["errors"][0]["parameter"] == "as_of"


def test_bars_without_features_are_served_and_a_series_without_bars_is_queued(api: Api, seed: Seed) -> None:
    seed.series("AAPL", features_computed_at=None)
    seed.symbol("MSFT")
    assert api.get(f"{BARS}/AAPL", timeframe="5m").json()["freshness"]["status"] == "FRESH"
    missing = api.get(f"{BARS}/MSFT", timeframe="5m")
    assert (missing.status_code, missing.json()["backfill_request"]["status"]) == (404, "queued")


def test_an_answer_says_which_bars_may_still_change(api: Api, seed: Seed) -> None:
    midnight = NOW.replace(hour=4, minute=0, second=0, microsecond=0)
    seed.series("AAPL", settled_until=midnight)
    answer = api.get(f"{BARS}/AAPL", timeframe="5m")
    assert datetime.fromisoformat(answer.json()["freshness"]["settled_until"]) == midnight
    table = api.get(f"{BARS}/AAPL", timeframe="5m", headers={"Accept": "text/csv"})
    assert table.headers["x-settled-until"] == answer.json()["freshness"]["settled_until"]


@pytest.mark.parametrize("symbol", ["X:BTCUSD", "BRK.B"])
def test_a_ticker_may_hold_punctuation(api: Api, seed: Seed, symbol: str) -> None:
    seed.series(symbol)
    assert api.get(f"{BARS}/{symbol}", timeframe="5m").json()["symbol"] == symbol


@pytest.mark.parametrize("symbol", ["BRK.B", "KIMpL", "X:BTCUSD"])
def test_a_ticker_is_taken_as_the_vendor_spells_it(api: Api, seed: Seed, symbol: str) -> None:
    seed.series(symbol, count=2, first=TS)
    for path in (f"{BARS}/{symbol}", f"{BARS}/{symbol.replace(':', '%3A')}", f"/api/v1/features/quant/{symbol}"):
        answer = api.get(path, timeframe="5m")
        assert (answer.status_code, answer.json()["symbol"]) == (200, symbol)
    other_case = "KIMPL" if symbol == "KIMpL" else symbol[:-1] + symbol[-1].lower()
    assert api.get(f"{BARS}/{other_case}", timeframe="5m").status_code == 404


def test_a_former_ticker_leads_to_the_symbol_of_its_security(api: Api, seed: Seed) -> None:
    seed.series("META", count=2, first=TS)
    for ticker, since, until in (("FB", None, "2022-06-09"), ("META", "2022-06-09", None)):
        seed.connection.execute(
            "insert into market_data.symbol_history (security, symbol, valid_from, valid_until, source, first_seen_at)"
            " values ('BBG000MM2P62', %s, %s, %s, 'events', %s)",
            (ticker, since, until, NOW - timedelta(hours=1)),
        )
    answer = api.get(f"{BARS}/FB", timeframe="5m", limit=1)
    assert [each.status_code for each in answer.history] == [307]
    assert (answer.json()["symbol"], answer.json()["records_returned"]) == ("META", 1)
    before = (NOW - timedelta(hours=2)).isoformat()
    assert api.get(f"{BARS}/FB", timeframe="5m", as_of=before).status_code == 404
    assert api.get(f"{BARS}/FB2", timeframe="5m").status_code == 404


def test_former_tickers_among_several_lead_to_the_symbols_of_their_securities(api: Api, seed: Seed) -> None:
    for symbol, former in (("META", "FB"), ("BRK.B", None)):
        seed.series(symbol, count=2, first=TS)
        for ticker in filter(None, (former, symbol)):
            seed.connection.execute(
                "insert into market_data.symbol_history (security, symbol, valid_until, source, first_seen_at)"
                " values (%s, %s, %s, 'events', %s)",
                (f"BBG{symbol}", ticker, "2022-06-09" if ticker == former else None, NOW - timedelta(hours=1)),
            )
    answer = api.get(BARS, symbols="BRK/B,FB,META", timeframe="5m", limit=1)
    assert [each.status_code for each in answer.history] == [307]
    assert [(one["symbol"], one["records_returned"]) for one in answer.json()["series"]] == [("BRK.B", 1), ("META", 1)]
    quant = api.get("/api/v1/features/quant", symbols="FB", timeframe="5m")
    assert [one["symbol"] for one in quant.json()["series"]] == ["META"]
    refused = api.get(BARS, symbols="FB,ZZZZ", timeframe="5m")
    assert (refused.status_code, refused.json()["symbols"]) == (404, ["ZZZZ"])
    before = (NOW - timedelta(hours=2)).isoformat()
    assert api.get(BARS, symbols="FB", timeframe="5m", as_of=before).status_code == 404
