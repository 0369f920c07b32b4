"""A scenario on top of a market: which bars exist, and what an answer says of them at which instant."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Scenario, read_scenario
from market_data_pipeline.sandbox.staged import StagedMarket
from market_data_pipeline_tests.sandbox.vendor import MINUTE, NEW_YORK, NOW, Vendor, clock, ms, vendor

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "nine_nights.toml"
MARKET = SyntheticMarket()


def at(*local: int) -> datetime:
    return datetime(*local, tzinfo=NEW_YORK)  # type: ignore[misc,arg-type]


class Stage:
    """A server of the synthetic market with a scenario on top, whose clock a test moves."""

    def __init__(self, scenario: Scenario, now: datetime) -> None:
        self.now = now
        self.source = StagedMarket(MARKET, scenario, lambda: self.now)

    def seen(self, ticker: str, day: str, per: str = "5/minute", last: str = "") -> list[dict[str, Any]]:
        with vendor(self.source, self.now) as client:
            return client.bars(ticker, per, day, last or day)

    def client(self) -> Any:
        return vendor(self.source, self.now)


@pytest.fixture(scope="module")
def nine_nights() -> Scenario:
    return read_scenario(EXAMPLE)


def true_bars(market: Vendor, ticker: str, day: str, per: str = "5/minute") -> list[dict[str, Any]]:
    bars = market.bars(ticker, per, day, day)
    assert bars
    return bars


def test_a_ticker_has_bars_and_is_known_from_its_listing_to_its_delisting(
    nine_nights: Scenario, market: Vendor
) -> None:
    stage = Stage(nine_nights, at(2026, 11, 16, 12))
    assert stage.seen("PLTR", "2026-10-16") == []
    assert stage.seen("PLTR", "2026-10-01", "1/day", "2026-10-19") == true_bars(market, "PLTR", "2026-10-19", "1/day")
    assert stage.seen("PFE", "2026-11-13") == true_bars(market, "PFE", "2026-11-13")
    assert stage.seen("PFE", "2026-11-16") == stage.seen("PFE", "2026-11-14", "1/day", "2026-11-16") == []

    with stage.client() as client:
        assert client.get("/v3/reference/tickers/PLTR").json()["results"]["list_date"] == "2026-10-19"
        gone = client.get("/v3/reference/tickers/PFE")
        assert (gone.status_code, gone.json()["message"]) == (404, "Ticker not found.")
        assert client.get("/v3/reference/tickers", ticker="PFE").json()["results"] == []
        (row,) = client.get("/v3/reference/tickers", ticker="PFE", active="false").json()["results"]
        assert (row["active"], row["delisted_utc"]) == (False, "2026-11-14T05:00:00Z")
        assert client.get("/v3/reference/tickers/NOSUCH").status_code == 404
    stage.now = at(2026, 11, 13, 12)
    with stage.client() as client:
        assert client.get("/v3/reference/tickers/PFE").json()["results"]["active"] is True
        listed = client.get("/v3/reference/tickers", market="stocks", limit=1000).json()["results"]
        assert {"PFE", "PLTR"} <= {row["ticker"] for row in listed}


def test_an_unscheduled_closing_leaves_no_stock_a_bar_and_crypto_all_of_them(nine_nights: Scenario) -> None:
    stage = Stage(nine_nights, at(2026, 11, 20, 12))
    for per in ("5/minute", "1/day"):
        assert stage.seen("MSFT", "2026-11-12", per) == []
        assert stage.seen("X:BTCUSD", "2026-11-12", per)
    with stage.client() as client:
        page = client.get("/v2/aggs/grouped/locale/us/market/stocks/2026-11-12", adjusted="false").json()
        assert page["resultsCount"] == 0


def test_a_halt_takes_only_the_bars_of_its_hours(nine_nights: Scenario, market: Vendor) -> None:
    stage = Stage(nine_nights, at(2026, 11, 20, 12))
    stop, resume = ms(2026, 11, 10, 11), ms(2026, 11, 10, 14)
    truth = true_bars(market, "MSFT", "2026-11-10")
    in_session = [bar for bar in stage.seen("MSFT", "2026-11-10") if bar["t"] < ms(2026, 11, 10, 20)]
    assert in_session == [bar for bar in truth if not stop <= bar["t"] < resume]
    assert stage.seen("MSFT", "2026-11-10", "1/day") == true_bars(market, "MSFT", "2026-11-10", "1/day")


def test_a_split_moves_prices_from_its_day_on_and_is_listed_from_its_instant_on(
    nine_nights: Scenario, market: Vendor
) -> None:
    stage = Stage(nine_nights, at(2026, 11, 16, 7, 59))

    def listed() -> list[Any]:
        with stage.client() as client:
            rows = client.get("/v3/reference/splits", ticker="KO", limit=100).json()["results"]
        return [(row["execution_date"], row["split_from"], row["split_to"]) for row in rows]

    assert listed() == []
    stage.now = at(2026, 11, 16, 8)
    assert listed() == [("2026-11-16", 1, 4)]
    stage.now = at(2026, 11, 20, 12)
    for day, factor in (("2026-11-13", 1), ("2026-11-16", 4)):
        truth, seen = true_bars(market, "KO", day), stage.seen("KO", day)
        assert [bar["t"] for bar in seen] == [bar["t"] for bar in truth]
        assert [bar["c"] for bar in seen] == pytest.approx([bar["c"] / factor for bar in truth], abs=1e-4)
        assert [bar["v"] for bar in seen] == pytest.approx([bar["v"] * factor for bar in truth])


def test_a_dividend_is_corrected_by_one_that_takes_its_place(nine_nights: Scenario, market: Vendor) -> None:
    stage = Stage(nine_nights, at(2026, 11, 17, 11, 59))

    def listed() -> list[Any]:
        with stage.client() as client:
            rows = client.get("/stocks/v1/dividends", **{"ticker": "KO", "ex_dividend_date.gte": "2026-11-14"}).json()
        return [(row["ex_dividend_date"], row["cash_amount"], row["currency"]) for row in rows["results"]]

    assert listed() == [("2026-11-16", 0.53, "USD")]
    stage.now = at(2026, 11, 17, 12)
    assert listed() == [("2026-11-16", 0.1325, "USD")]


def test_a_cancelled_split_leaves_the_list_and_moves_no_price(market: Vendor) -> None:
    scenario = Scenario.model_validate(
        {"splits": [{"ticker": "KO", "day": "2026-11-16", "split_to": 4, "cancelled": "2026-11-16T08:30:00-05:00"}]}
    )
    stage = Stage(scenario, at(2026, 11, 16, 8))
    assert [split.ticker for split in stage.source.splits() if split.execution_date == date(2026, 11, 16)] == ["KO"]
    stage.now = at(2026, 11, 20, 12)
    assert [split for split in stage.source.splits() if split.execution_date == date(2026, 11, 16)] == []
    assert stage.seen("KO", "2026-11-16") == true_bars(market, "KO", "2026-11-16")


def test_withheld_bars_are_missing_only_while_they_are_withheld(nine_nights: Scenario, market: Vendor) -> None:
    stage = Stage(nine_nights, at(2026, 11, 13, 7, 45))
    assert [clock(bar["t"]) for bar in stage.seen("KIMpL", "2026-11-13")] == ["07:10", "07:25"]
    stage.now = at(2026, 11, 13, 7, 50)
    assert stage.seen("KIMpL", "2026-11-13") == []

    stage.now = at(2026, 11, 19, 5, 59)
    assert stage.seen("MSFT", "2026-11-17", "1/day", "2026-11-18") == stage.seen("KO", "2026-11-18") == []
    stage.now = at(2026, 11, 19, 6)
    assert stage.seen("MSFT", "2026-11-17") == true_bars(market, "MSFT", "2026-11-17")

    stage.now = at(2026, 11, 11, 11, 20)
    monday = true_bars(market, "MSFT", "2026-11-09")
    assert stage.seen("MSFT", "2026-11-09") == monday[::2]
    stage.now = at(2026, 11, 11, 11, 45)
    assert stage.seen("MSFT", "2026-11-09") == monday


def test_a_repeated_bar_is_listed_twice_and_may_differ(market: Vendor) -> None:
    truth = true_bars(market, "KO", "2026-11-10")
    ten = next(bar for bar in truth if clock(bar["t"]) == "10:00")
    for close in (None, 99.0):
        event = {"ticker": "KO", "bar": "2026-11-10T10:00:00-05:00", **({"close": close} if close else {})}
        seen = Stage(Scenario.model_validate({"repeated": [event]}), at(2026, 11, 20, 12)).seen("KO", "2026-11-10")
        again = [bar for bar in seen if bar["t"] == ten["t"]]
        assert again == [ten, ten | {"c": 99.0, "h": 99.0} if close else ten]
        assert [bar for bar in seen if bar["t"] != ten["t"]] == [bar for bar in truth if bar != ten]


def test_stray_bars_lie_outside_of_sessions(nine_nights: Scenario) -> None:
    stage = Stage(nine_nights, at(2026, 11, 20, 12))
    evening = [bar for bar in stage.seen("MSFT", "2026-11-10") if bar["t"] >= ms(2026, 11, 10, 20)]
    assert [(clock(bar["t"]), bar["c"]) for bar in evening] == [("21:00", 400.5)]
    assert clock(stage.seen("MSFT", "2026-11-11")[0]["t"]) == "03:30"
    days = stage.seen("KO", "2026-11-13", "1/day", "2026-11-16")
    assert [(bar["t"] - days[0]["t"]) // (24 * 60 * MINUTE) for bar in days] == [0, 1, 3]
    assert days[1]["h"] == 499.0


def test_without_events_nothing_changes(market: Vendor) -> None:
    stage = Stage(Scenario(), NOW)
    for per in ("1/minute", "5/minute", "1/hour", "4/hour", "1/day"):
        assert stage.seen("AAPL", "2026-11-18", per, "2026-11-20") == market.bars(
            "AAPL", per, "2026-11-18", "2026-11-20"
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[halts]]\nticker = 'A'", "has a mistake in halts.0.start: Field required"),
        ("[[closing]]\nday = 2026-11-12", "has a mistake in closing"),
        ("[[closings]]\nday = soon", "is not TOML"),
        (
            "[[halts]]\nticker = 'A'\nstart = 2026-11-10T11:00:00Z\nend = 2026-11-10T11:00:00Z",
            "is not after the start",
        ),
    ],
)
def test_a_mistake_in_a_scenario_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_scenario(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_scenario(tmp_path / "missing.toml")
