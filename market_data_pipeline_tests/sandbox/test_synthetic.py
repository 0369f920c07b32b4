"""The synthetic market: the same everywhere and always, and like a real one where it matters."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from itertools import pairwise
from math import log
from typing import Any

import pytest
import yaml

from market_data_pipeline.sandbox.catalogue import INSTRUMENTS
from market_data_pipeline.settings import PACKAGED_UNIVERSE
from market_data_pipeline_tests.sandbox.vendor import HOUR, MINUTE, NEW_YORK, NOW, Vendor, clock, ms, vendor

UNIVERSE = sorted(s for tier in yaml.safe_load(PACKAGED_UNIVERSE.read_text())["tiers"].values() for s in tier)


def test_the_whole_packaged_universe_is_known() -> None:
    assert len(UNIVERSE) == 25
    assert set(UNIVERSE) <= set(INSTRUMENTS)


def test_two_servers_agree_whatever_is_requested_first_and_whatever_the_time() -> None:
    asked = [(t, per, m) for t in ("AAPL", "X:ETHUSD", "SYN0007") for per in ("5/minute", "1/day") for m in (3, 4, 5)]
    shuffled = random.Random(5).sample(asked, len(asked))

    def answers(client: Vendor, questions: list[tuple[str, str, int]]) -> dict[Any, Any]:
        return {q: client.bars(q[0], q[1], f"2026-{q[2]:02d}-02", f"2026-{q[2]:02d}-27") for q in questions}

    with vendor() as one, vendor(now=NOW + timedelta(days=40)) as other:
        assert answers(one, asked) == answers(other, shuffled)


@pytest.mark.parametrize("per", ["1/minute", "5/minute", "1/hour", "1/day"])
@pytest.mark.parametrize("ticker", ["AAPL", "KIMpL", "X:BTCUSD"])
def test_every_bar_is_plausible(market: Vendor, per: str, ticker: str) -> None:
    bars = market.bars(ticker, per, "2026-06-01", "2026-06-12")
    assert bars
    for bar in bars:
        assert 0 < bar["l"] <= min(bar["o"], bar["c"]) <= max(bar["o"], bar["c"]) <= bar["h"]
        assert bar["l"] <= bar["vw"] <= bar["h"]
        assert bar["v"] > 0
        assert bar["n"] >= 1
        assert all(round(bar[name], 4) == bar[name] for name in ("o", "h", "l", "c", "vw"))


@pytest.mark.parametrize("minutes_each", [5, 15, 60, 240])
def test_coarser_bars_are_exactly_the_minutes_they_span(market: Vendor, minutes_each: int) -> None:
    per, step = f"{minutes_each}/minute", minutes_each * MINUTE
    minutes: dict[int, list[dict[str, Any]]] = {}
    for bar in market.bars("AMD", "1/minute", "2026-10-07", "2026-10-14"):
        minutes.setdefault(bar["t"] // step * step, []).append(bar)
    coarse = market.bars("AMD", per, "2026-10-07", "2026-10-14")
    assert [bar["t"] for bar in coarse] == list(minutes)
    for bar in coarse:
        parts = minutes[bar["t"]]
        assert (bar["o"], bar["c"]) == (parts[0]["o"], parts[-1]["c"])
        assert (bar["h"], bar["l"]) == (max(p["h"] for p in parts), min(p["l"] for p in parts))
        assert bar["n"] == sum(p["n"] for p in parts)
        assert bar["v"] == pytest.approx(sum(p["v"] for p in parts), rel=1e-12)


def test_hours_and_sixty_minutes_are_the_same_bars(market: Vendor) -> None:
    for hours in (1, 4):
        by_hour = market.bars("JPM", f"{hours}/hour", "2026-11-02", "2026-11-06")
        assert by_hour == market.bars("JPM", f"{60 * hours}/minute", "2026-11-02", "2026-11-06")


def test_the_day_bar_cannot_be_derived_from_the_minutes(market: Vendor) -> None:
    days = market.bars("NVDA", "1/day", "2026-09-01", "2026-09-30")
    minutes = market.bars("NVDA", "1/minute", "2026-09-01", "2026-09-30")
    other_close = extended_outside = 0
    for day in days:
        held = [m for m in minutes if day["t"] <= m["t"] < day["t"] + 24 * HOUR]
        regular = [m for m in held if "09:30" <= clock(m["t"]) < "16:00"]
        assert day["v"] > sum(m["v"] for m in held)
        assert day["o"] == regular[0]["o"]
        assert abs(day["c"] - regular[-1]["c"]) < 0.04
        other_close += day["c"] != regular[-1]["c"]
        extended_outside += max(m["h"] for m in held) > day["h"] or min(m["l"] for m in held) < day["l"]
    assert other_close > len(days) / 2
    assert extended_outside


def test_extended_hours_run_from_four_to_eight_and_to_five_on_early_closes(market: Vendor) -> None:
    usual = market.bars("SPY", "5/minute", "2025-11-26", "2025-11-26")
    early = market.bars("SPY", "5/minute", "2025-11-28", "2025-11-28")  # the day after Thanksgiving
    assert (clock(usual[0]["t"]), clock(usual[-1]["t"])) == ("04:00", "19:55")
    assert (clock(early[0]["t"]), clock(early[-1]["t"])) == ("04:00", "16:55")
    day = market.bars("SPY", "1/day", "2025-11-28", "2025-11-28")[0]
    last_regular = [m for m in market.bars("SPY", "1/minute", "2025-11-28", "2025-11-28") if clock(m["t"]) < "13:00"]
    assert abs(day["c"] - last_regular[-1]["c"]) < 0.04
    assert market.bars("SPY", "5/minute", "2025-11-27", "2025-11-27") == []


@pytest.mark.parametrize(
    ("friday", "monday", "hours"), [((2026, 3, 6), (2026, 3, 9), 71), ((2026, 10, 30), (2026, 11, 2), 73)]
)
def test_day_bars_start_at_new_york_midnight_across_clock_changes(
    market: Vendor, friday: tuple[int, int, int], monday: tuple[int, int, int], hours: int
) -> None:
    days = market.bars("SPY", "1/day", ms(*friday), ms(*monday))
    assert [day["t"] for day in days] == [ms(*friday), ms(*monday)]
    assert days[1]["t"] - days[0]["t"] == hours * HOUR
    for day in (friday, monday):
        assert clock(market.bars("SPY", "5/minute", ms(*day), ms(*day, 23))[0]["t"]) == "04:00"


def test_crypto_pages_over_a_clock_change_follow_its_own_clock(market: Vendor) -> None:
    days = market.bars("X:BTCUSD", "1/day", "2026-10-30", "2026-11-03", limit=1)
    assert [day["t"] % (24 * HOUR) for day in days] == [0] * 5
    assert len(market.bars("X:BTCUSD", "5/minute", "2026-10-31", "2026-11-01")) == 2 * 288


def test_four_hour_bars_step_by_absolute_hours(market: Vendor) -> None:
    summer = {clock(bar["t"]) for bar in market.bars("SPY", "4/hour", "2026-07-06", "2026-07-10")}
    winter = {clock(bar["t"]) for bar in market.bars("SPY", "4/hour", "2026-01-05", "2026-01-09")}
    assert summer == {"04:00", "08:00", "12:00", "16:00"}
    assert winter == {"03:00", "07:00", "11:00", "15:00", "19:00"}


def test_liquid_names_trade_in_nearly_every_five_minutes_and_quiet_ones_do_not(market: Vendor) -> None:
    slots = 21 * 192  # October 2026 has 22 sessions; the range ends before the last
    for ticker in UNIVERSE:
        found = len(market.bars(ticker, "5/minute", "2026-10-01", "2026-10-29"))
        assert 0.98 * slots <= found <= slots, ticker
    minutes = market.bars("COST", "1/minute", "2026-10-01", "2026-10-29")
    assert len(minutes) < 0.9 * 5 * slots
    regular = [bar for bar in minutes if "09:30" <= clock(bar["t"]) < "16:00"]
    assert len(regular) == 21 * 390
    assert len(market.bars("KIMpL", "5/minute", "2026-10-01", "2026-10-29")) < 0.5 * slots


def test_volume_smiles_and_is_thin_outside_regular_hours(market: Vendor) -> None:
    volume: dict[str, float] = {}
    for bar in market.bars("MSFT", "1/hour", "2026-10-01", "2026-10-29"):
        volume[clock(bar["t"])] = volume.get(clock(bar["t"]), 0.0) + bar["v"]
    assert volume["10:00"] > volume["12:00"] < volume["15:00"]
    assert volume["05:00"] < volume["08:00"] < 0.2 * volume["12:00"]


def test_prices_are_continuous_at_every_boundary(market: Vendor) -> None:
    minutes = market.bars("PG", "1/minute", "2025-11-24", "2026-11-19")
    pairs = list(pairwise(minutes))
    steps = [abs(log(b["o"] / a["c"])) for a, b in pairs]
    inside = [step for step, (a, b) in zip(steps, pairs, strict=True) if b["t"] - a["t"] == MINUTE]
    assert max(inside) < 0.002
    assert max(steps) < 0.06  # over nights, weekends, months and New Year


def test_prices_are_at_their_real_level(market: Vendor) -> None:
    for ticker, level in (("AAPL", 262.0), ("SPY", 684.0), ("KO", 70.5), ("X:BTCUSD", 87_600.0)):
        close = market.bars(ticker, "1/day", "2026-01-05", "2026-01-05")[0]["c"]
        assert 0.7 * level < close < 1.4 * level


def test_raw_prices_fall_at_a_split_and_adjusted_ones_do_not(market: Vendor) -> None:
    raw, adjusted = (market.bars("NVDA", "1/day", "2026-06-04", "2026-06-09", adjusted=a) for a in ("false", "true"))
    executed = ms(2026, 6, 8)
    friday, monday = raw[1], raw[2]
    assert monday["t"] == executed
    assert 3.5 < friday["c"] / monday["o"] < 4.5
    for bar, shown in zip(raw, adjusted, strict=True):
        factor = 4 if bar["t"] < executed else 1
        assert shown["c"] == pytest.approx(bar["c"] / factor, abs=5e-5)
        assert shown["v"] == pytest.approx(bar["v"] * factor)
    intraday = market.bars("NVDA", "5/minute", "2026-06-05", "2026-06-08", adjusted="true")
    assert max(bar["h"] for bar in intraday) < friday["c"] / 2


@pytest.mark.parametrize("per", ["1/hour", "1/day"])
def test_a_split_multiplies_the_shares_that_are_traded_and_leaves_the_dollars(market: Vendor, per: str) -> None:
    def traded(adjusted: str) -> tuple[float, float]:
        bars = market.bars("NVDA", per, "2026-05-26", "2026-06-18", adjusted=adjusted)
        before, after = ([bar for bar in bars if (bar["t"] < ms(2026, 6, 8)) is side] for side in (True, False))
        dollars = [sum(bar["v"] * bar["vw"] for bar in some) for some in (before, after)]
        shares = [sum(bar["v"] for bar in some) for some in (before, after)]
        return shares[1] / shares[0], dollars[1] / dollars[0]

    shares, dollars = traded("false")
    assert 3.6 < shares < 4.4
    assert 0.85 < dollars < 1.15
    shares, dollars = traded("true")
    assert 0.9 < shares < 1.1
    assert 0.85 < dollars < 1.15


def test_volumes_are_at_their_real_level_before_and_after_every_split(market: Vendor) -> None:
    for year in (2005, 2015, 2026):
        days = market.bars("NVDA", "1/day", f"{year}-01-05", f"{year}-12-18", adjusted="false")
        mean = sum(day["v"] for day in days) / len(days)
        assert 185e6 / 4 < mean < 185e6 * 4, year


def test_adjustment_depends_on_the_servers_clock() -> None:
    with vendor(now=datetime(2026, 6, 7, 12, tzinfo=NEW_YORK)) as eve:
        raw, adjusted = (eve.bars("NVDA", "1/day", "2026-06-04", "2026-06-05", adjusted=a) for a in ("false", "true"))
        assert raw == adjusted


def test_splits_are_listed_two_weeks_ahead_and_page_with_a_cursor() -> None:
    def listed(client: Vendor, **asked: Any) -> list[tuple[str, str]]:
        page = client.get("/v3/reference/splits", **asked).json()
        assert list(page)[:3] == ["results", "status", "request_id"]
        rows: list[tuple[str, str]] = [(row["ticker"], row["execution_date"]) for row in page["results"]]
        while "next_url" in page:
            page = client.get(page["next_url"].removeprefix(client.url)).json()
            rows += [(row["ticker"], row["execution_date"]) for row in page["results"]]
        return rows

    with vendor(now=datetime(2026, 5, 25, 12, tzinfo=NEW_YORK)) as ahead:
        assert ("NVDA", "2026-06-08") in listed(ahead)
    with vendor(now=datetime(2026, 5, 24, 12, tzinfo=NEW_YORK)) as too_early:
        assert ("NVDA", "2026-06-08") not in listed(too_early)
    with vendor() as client:
        recent = listed(client, **{"execution_date.gte": "2025-11-20", "limit": 1000})
        assert recent == [("AMD", "2026-10-12"), ("NVDA", "2026-06-08")]
        every = listed(client, **{"execution_date.gte": "2010-01-01", "limit": 1000, "order": "asc"})
        assert listed(client, **{"execution_date.gte": "2010-01-01", "limit": 3, "order": "asc"}) == every
        assert {ticker for ticker, _ in listed(client, ticker="NVDA")} == {"NVDA"}
        row = client.get("/v3/reference/splits", ticker="NVDA", limit=1).json()["results"][0]
        assert (row["split_from"], row["split_to"]) == (1, 4)


def test_the_present_list_of_splits_says_the_same_and_more() -> None:
    asked = {"ticker": "NVDA", "execution_date.gte": "2010-01-01"}
    with vendor() as client:
        older = client.get("/v3/reference/splits", **asked, limit=1000, order="asc").json()["results"]
        page = client.get("/stocks/v1/splits", **asked, limit=2, sort="execution_date.asc").json()
        rows = list(page["results"])
        while "next_url" in page:
            page = client.get(page["next_url"].removeprefix(client.url)).json()
            rows += page["results"]
    assert [{name: row[name] for name in older[0]} for row in rows] == older
    assert {row["adjustment_type"] for row in rows} == {"forward_split"}
    assert rows[-1]["historical_adjustment_factor"] == 0.25
    assert rows[-2]["historical_adjustment_factor"] == 0.0625


def test_both_lists_of_dividends_say_the_same_once_they_are_declared() -> None:
    asked = {"ex_dividend_date.gte": "2026-05-01", "ex_dividend_date.lt": "2026-12-01"}
    with vendor(now=datetime(2026, 10, 28, 12, tzinfo=NEW_YORK)) as client:
        older = client.get("/v3/reference/dividends", **asked, ticker="AAPL", limit=1000, order="asc").json()["results"]
        several = {"ticker.any_of": "AAPL,XOM", "limit": 3, "sort": "ex_dividend_date.asc"}
        page = client.get("/stocks/v1/dividends", **asked, **several).json()
        rows = list(page["results"])
        while "next_url" in page:
            page = client.get(page["next_url"].removeprefix(client.url)).json()
            rows += page["results"]
    assert [row["ex_dividend_date"] for row in older] == [
        "2026-05-08",
        "2026-08-14",
    ]  # 13 November: declared on the 29th
    apple = [row for row in rows if row["ticker"] == "AAPL"]
    shared = older[0].keys() - {"dividend_type"}
    assert [{name: row[name] for name in shared} for row in apple] == [
        {name: row[name] for name in shared} for row in older
    ]
    assert {(row["distribution_type"], row["split_adjusted_cash_amount"]) for row in apple} == {("recurring", 0.26)}
    assert {row["dividend_type"] for row in older} == {"CD"}
    assert [row["ticker"] for row in rows] == ["AAPL", "XOM"] * 2


def test_the_whole_markets_day_comes_in_one_call_stamped_at_the_close(market: Vendor) -> None:
    page = market.get("/v2/aggs/grouped/locale/us/market/stocks/2026-11-18", adjusted="false").json()
    assert list(page) == ["queryCount", "resultsCount", "adjusted", "results", "status", "request_id", "count"]
    rows = {row["T"]: row for row in page["results"]}
    assert set(UNIVERSE) <= set(rows)
    assert not any(ticker.startswith("X:") for ticker in rows)
    assert {row["t"] for row in rows.values()} == {ms(2026, 11, 18, 16)}
    day = market.bars("AAPL", "1/day", "2026-11-18", "2026-11-18")[0]
    assert {**rows["AAPL"], "t": day["t"]} == {"T": "AAPL", **day}
    assert "results" not in market.get("/v2/aggs/grouped/locale/us/market/stocks/2026-11-15").json()


def test_prev_is_the_last_whole_day(market: Vendor) -> None:
    page = market.get("/v2/aggs/ticker/AAPL/prev", adjusted="false").json()
    day = market.bars("AAPL", "1/day", "2026-11-19", "2026-11-19")[0]
    assert page["results"] == [{"T": "AAPL", **day, "t": ms(2026, 11, 19, 16)}]
