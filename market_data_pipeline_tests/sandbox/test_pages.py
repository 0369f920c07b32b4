"""Pages of bars on the wire: their text, their bounds, and how one follows another."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from market_data_pipeline_tests.sandbox.vendor import HOUR, MINUTE, Vendor, clock, ms

YEAR = ("2025-11-21", "2026-11-19")


def test_the_keys_of_page_and_bar_come_in_the_vendors_order(market: Vendor) -> None:
    page = market.page("AAPL", "5/minute", "2026-11-16", "2026-11-19", limit=1000)
    assert list(page) == [
        "ticker", "queryCount", "resultsCount", "adjusted", "results", "status", "request_id", "count", "next_url",
    ]  # fmt: skip
    assert {tuple(bar) for bar in page["results"]} == {("v", "vw", "o", "c", "h", "l", "t", "n")}
    assert page["ticker"] == "AAPL"
    assert page["resultsCount"] == page["count"] == len(page["results"])
    assert page["adjusted"] is True
    assert page["status"] == "OK"
    assert re.fullmatch("[0-9a-f]{32}", page["request_id"])


def test_volumes_from_one_million_up_have_an_exponent(market: Vendor) -> None:
    text = market.get("/v2/aggs/ticker/AAPL/range/1/day/2025-12-01/2025-12-05").text
    volumes = re.findall(r'"v":([^,]+),', text)
    assert len(volumes) == 5
    assert all(re.fullmatch(r"[1-9]\.\d*[1-9]e\+07", volume) for volume in volumes)
    small = re.findall(r'"v":([^,]+),', market.get("/v2/aggs/ticker/KIMpL/range/1/minute/2025-12-01/2025-12-05").text)
    assert small
    assert all(re.fullmatch(r"\d{1,6}", volume) for volume in small)


def test_volumes_have_fractions_of_a_share_since_2026(market: Vendor) -> None:
    assert all(bar["v"] == int(bar["v"]) for bar in market.bars("MSFT", "1/minute", "2025-12-30", "2025-12-31"))
    assert any(bar["v"] != int(bar["v"]) for bar in market.bars("MSFT", "1/minute", "2026-01-02", "2026-01-02"))


@pytest.mark.parametrize(
    ("ticker", "day"),
    [
        ("NOPE", "2026-11-18"),
        ("kimpl", "2026-11-18"),
        ("AAPL", "2026-11-15"),
        ("AAPL", "2025-12-25"),
        ("AAPL", "2027-01-04"),
    ],
    ids=["unknown", "other case", "Sunday", "holiday", "future"],
)
def test_nothing_to_show_is_an_empty_success_without_results(market: Vendor, ticker: str, day: str) -> None:
    page = market.page(ticker, "5/minute", day, day)
    assert list(page) == ["ticker", "queryCount", "resultsCount", "adjusted", "status", "request_id"]
    assert (page["queryCount"], page["resultsCount"], page["status"]) == (0, 0, "OK")


def test_tickers_are_case_sensitive_and_may_carry_dot_or_colon(market: Vendor) -> None:
    for ticker in ("KIMpL", "BRK.B", "X:BTCUSD", "SYN0042"):
        assert market.page(ticker, "1/day", "2026-11-16", "2026-11-18")["resultsCount"] == 3


def test_the_limit_counts_base_bars_and_leaves_a_cut_bar_to_the_next_page(market: Vendor) -> None:
    minutes = market.bars("AAPL", "1/minute", "2026-11-18", "2026-11-19")
    hours = market.bars("AAPL", "1/hour", "2026-11-18", "2026-11-19")
    for limit in (700, 800, 900, 1000, 1100):
        page = market.page("AAPL", "1/hour", "2026-11-18", "2026-11-19", limit=limit, adjusted="false")
        shown = page["resultsCount"]
        assert page["results"] == hours[:shown]
        assert page["queryCount"] == sum(minute["t"] < hours[shown]["t"] for minute in minutes) <= limit
        assert sum(minute["t"] < hours[shown + 1]["t"] for minute in minutes) > limit
        assert page["next_url"].split("/")[-2] == str(hours[shown - 1]["t"] + HOUR)


def test_a_limit_that_ends_with_a_bar_keeps_it(market: Vendor) -> None:
    minutes = market.bars("AAPL", "1/minute", "2026-11-18", "2026-11-18")
    by_ten = sum(clock(minute["t"]) < "10:00" for minute in minutes)
    for limit, last in ((by_ten, "09:00"), (by_ten - 1, "08:00"), (by_ten + 1, "09:00")):
        page = market.page("AAPL", "1/hour", "2026-11-18", "2026-11-18", limit=limit)
        assert clock(page["results"][-1]["t"]) == last
    whole = market.page("AAPL", "1/hour", "2026-11-18", "2026-11-18", limit=len(minutes))
    assert "next_url" not in whole
    assert whole["queryCount"] == len(minutes)


def test_five_minute_bars_cost_as_many_calls_as_one_minute_bars(market: Vendor) -> None:
    pages = {}
    for per in ("1/minute", "5/minute"):
        page, pages[per] = market.page("SPY", per, *YEAR, limit=50_000, adjusted="false"), 1
        while "next_url" in page:
            following = urlsplit(page["next_url"])
            page = market.get(f"{following.path}?{following.query}").json()
            pages[per] += 1
    assert pages == {"1/minute": 5, "5/minute": 5}


def test_the_default_limit_is_5000_base_bars_and_50000_the_most(market: Vendor) -> None:
    assert market.page("SPY", "1/minute", *YEAR)["queryCount"] == 5_000
    assert market.page("SPY", "1/minute", *YEAR, limit=60_000)["queryCount"] == 50_000


def test_day_bars_count_days(market: Vendor) -> None:
    page = market.page("AAPL", "1/day", "2026-10-26", "2026-11-06", limit=3)
    assert page["queryCount"] == page["resultsCount"] == 3
    assert len(market.bars("AAPL", "1/day", "2026-10-26", "2026-11-06", limit=3)) == 10


def test_next_url_is_the_same_path_with_a_later_from_and_a_cursor_without_key_or_adjusted(market: Vendor) -> None:
    page = market.page("AAPL", "5/minute", *YEAR, limit=2_000, adjusted="false")
    following = urlsplit(page["next_url"])
    assert f"{following.scheme}://{following.netloc}" == market.url
    start = page["results"][-1]["t"] + 5 * MINUTE
    assert following.path == f"/v2/aggs/ticker/AAPL/range/5/minute/{start}/{YEAR[1]}"
    assert re.fullmatch(r"cursor=[\w-]+", following.query)
    assert market.get(f"{following.path}?{following.query}").json()["adjusted"] is True
    again = market.get(f"{following.path}?{following.query}&adjusted=false").json()
    assert again["adjusted"] is False
    assert again["queryCount"] <= 2_000


@pytest.mark.parametrize("per", ["1/minute", "5/minute", "7/minute", "1/hour", "4/hour", "26/hour", "1/day", "3/day"])
@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_pages_joined_equal_one_big_query(market: Vendor, per: str, sort: str) -> None:
    whole = market.bars("AAPL", per, "2026-10-26", "2026-11-06", sort=sort)
    limit = 1_700 if "day" not in per else 2
    assert market.bars("AAPL", per, "2026-10-26", "2026-11-06", sort=sort, limit=limit) == whole
    starts = [bar["t"] for bar in whole]
    assert starts == sorted(set(starts), reverse=sort == "desc")


def test_descending_is_ascending_reversed(market: Vendor) -> None:
    up = market.bars("TSLA", "5/minute", "2026-11-02", "2026-11-20")
    assert market.bars("TSLA", "5/minute", "2026-11-02", "2026-11-20", sort="desc") == up[::-1]


def test_both_bounds_are_inclusive_and_snapped_outward_to_whole_bars(market: Vendor) -> None:
    start = ms(2026, 11, 18, 10, 0)
    inside = market.bars("SPY", "5/minute", start + 2 * MINUTE, start + 16 * MINUTE)
    assert [clock(bar["t"]) for bar in inside] == ["10:00", "10:05", "10:10", "10:15"]
    assert [clock(bar["t"]) for bar in market.bars("SPY", "5/minute", start, start + 5 * MINUTE)] == ["10:00", "10:05"]
    half_open = market.bars("SPY", "5/minute", start, start + 5 * MINUTE - 1)
    assert [clock(bar["t"]) for bar in half_open] == ["10:00"]
    assert half_open[0] == inside[0]
    day = market.bars("SPY", "1/day", start, start)
    assert [bar["t"] for bar in day] == [ms(2026, 11, 18)]


def test_a_date_is_a_new_york_day(market: Vendor) -> None:
    by_date = market.bars("SPY", "5/minute", "2026-11-18", "2026-11-18")
    assert by_date == market.bars("SPY", "5/minute", ms(2026, 11, 18), ms(2026, 11, 19) - 1)
    assert (clock(by_date[0]["t"]), clock(by_date[-1]["t"])) == ("04:00", "19:55")


def test_a_key_is_never_repeated_in_an_answer(market: Vendor) -> None:
    reply = market.get("/v2/aggs/ticker/AAPL/range/1/minute/2026-11-16/2026-11-19", apiKey="sandbox", limit=100)
    page: dict[str, Any] = json.loads(reply.text)
    assert "next_url" in page
    assert "sandbox" not in reply.text
    assert "apiKey" not in reply.text
