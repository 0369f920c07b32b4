"""What may be seen at an instant: bars in progress, the plan's delay and history."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from market_data_pipeline_tests.sandbox.vendor import MINUTE, NEW_YORK, NOW, Vendor, clock, ms, vendor

TODAY = "2026-11-20"
LATER = NOW + timedelta(days=3)


def test_a_bar_in_progress_is_returned_unmarked_and_still_changes(market: Vendor) -> None:
    now_bar = market.bars("SPY", "5/minute", TODAY, TODAY)[-1]
    assert clock(now_bar["t"]) == "14:30"
    with vendor(now=LATER) as later:
        final = next(bar for bar in later.bars("SPY", "5/minute", TODAY, TODAY) if bar["t"] == now_bar["t"])
    assert list(now_bar) == list(final)
    assert now_bar["o"] == final["o"]
    assert now_bar["v"] < final["v"]
    assert now_bar["n"] < final["n"]


def test_bars_that_are_over_are_final(market: Vendor) -> None:
    with vendor(now=LATER) as later:
        for per in ("1/minute", "5/minute", "1/hour"):
            over = market.bars("SPY", per, "2026-11-17", TODAY)[:-1]
            assert later.bars("SPY", per, "2026-11-17", TODAY)[: len(over)] == over


def test_the_day_bar_in_progress_is_made_of_the_minutes_so_far(market: Vendor) -> None:
    day = market.bars("SPY", "1/day", TODAY, TODAY)[0]
    minutes = market.bars("SPY", "1/minute", TODAY, TODAY)
    regular = [bar for bar in minutes if bar["t"] >= ms(2026, 11, 20, 9, 30)]
    assert (day["o"], day["c"]) == (regular[0]["o"], regular[-1]["c"])
    assert (day["h"], day["l"]) == (max(bar["h"] for bar in regular), min(bar["l"] for bar in regular))
    assert day["v"] == pytest.approx(sum(bar["v"] for bar in minutes))


def test_before_the_open_the_day_bar_holds_the_pre_market() -> None:
    with vendor(now=datetime(2026, 11, 20, 8, 15, tzinfo=NEW_YORK)) as early:
        minutes = early.bars("SPY", "1/minute", TODAY, TODAY)
        day = early.bars("SPY", "1/day", TODAY, TODAY)
        assert len(day) == 1
        assert day[0]["v"] == pytest.approx(sum(bar["v"] for bar in minutes))


def test_on_the_minute_no_trade_of_the_next_minute_is_shown() -> None:
    with vendor(now=datetime(2026, 11, 20, 14, 30, tzinfo=NEW_YORK)) as exact:
        assert clock(exact.bars("SPY", "5/minute", TODAY, TODAY)[-1]["t"]) == "14:25"


def test_delayed_plans_are_fifteen_minutes_behind_and_say_so() -> None:
    with vendor(plan="starter") as starter:
        page = starter.page("SPY", "5/minute", TODAY, TODAY)
        assert page["status"] == "DELAYED"
        assert clock(page["results"][-1]["t"]) == "14:15"  # 14:18:20 is seen at 14:33:20


def test_end_of_day_plans_show_nothing_of_today_before_midnight() -> None:
    with vendor(plan="basic") as basic:
        assert basic.page("SPY", "5/minute", TODAY, TODAY)["resultsCount"] == 0
        assert basic.page("SPY", "1/day", "2026-11-19", TODAY)["resultsCount"] == 1
    with vendor(plan="basic", now=datetime(2026, 11, 21, tzinfo=NEW_YORK)) as midnight:
        assert clock(midnight.bars("SPY", "5/minute", TODAY, TODAY)[-1]["t"]) == "19:55"


def test_a_range_partly_older_than_the_history_is_silently_clamped() -> None:
    with vendor(plan="basic") as basic, vendor() as advanced:
        first = datetime(2024, 11, 20, tzinfo=NEW_YORK)
        for per in ("1/day", "1/hour"):
            clamped = basic.bars("SPY", per, "2024-11-01", "2024-11-29")
            whole = advanced.bars("SPY", per, "2024-11-01", "2024-11-29")
            assert clamped == [bar for bar in whole if bar["t"] >= first.timestamp() * 1000]
            assert 0 < len(clamped) < len(whole)


def test_a_fully_settled_day_has_more_volume_than_its_minutes() -> None:
    evening = datetime(2026, 11, 20, 20, 0, tzinfo=NEW_YORK)
    with vendor(now=evening) as after, vendor(now=evening - timedelta(minutes=1)) as before:
        done, so_far = (client.bars("SPY", "1/day", TODAY, TODAY)[0] for client in (after, before))
        assert done["v"] > sum(bar["v"] for bar in after.bars("SPY", "1/minute", TODAY, TODAY)) > so_far["v"]


def test_a_multi_hour_bar_in_progress_joins_what_is_over_with_what_is_not(market: Vendor) -> None:
    last = market.bars("SPY", "4/hour", TODAY, TODAY)[-1]
    minutes = [bar for bar in market.bars("SPY", "1/minute", TODAY, TODAY) if bar["t"] >= last["t"]]
    assert last["t"] % (240 * MINUTE) == 0
    assert last["v"] == pytest.approx(sum(bar["v"] for bar in minutes))
    assert last["c"] == minutes[-1]["c"]
