"""What the plans allow, and from when a bar is served."""

from __future__ import annotations

import datetime as dt

import pytest

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.polygon.plans import PLANS, available_at, plan_named

STOCKS = calendar_for(AssetClass.US_EQUITY)
CRYPTO = calendar_for(AssetClass.CRYPTO)


def utc(*fields: int) -> dt.datetime:
    return dt.datetime(*fields, tzinfo=dt.UTC)  # type: ignore[arg-type,misc]


def test_the_plans_are_the_vendors() -> None:
    assert list(PLANS) == ["basic", "starter", "developer", "advanced"]
    assert [plan.calls_per_minute for plan in PLANS.values()] == [5, None, None, None]
    assert [plan.history and plan.history.days // 365 for plan in PLANS.values()] == [2, 5, 10, None]


def test_an_unknown_plan_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'gold'.*basic, starter, developer, advanced"):
        plan_named("gold")


def test_the_limit_of_the_environment_replaces_the_plans() -> None:
    basic = plan_named("basic")
    assert basic.limited_to(None) is basic
    assert basic.limited_to(0).calls_per_minute is None
    assert plan_named("advanced").limited_to(300).calls_per_minute == 300


@pytest.mark.parametrize(
    ("plan", "bar_end", "served"),
    [
        ("advanced", utc(2024, 1, 2, 15, 5), utc(2024, 1, 2, 15, 5)),
        ("starter", utc(2024, 1, 2, 15, 5), utc(2024, 1, 2, 15, 20)),
        ("basic", utc(2024, 1, 2, 9, 5), utc(2024, 1, 3, 5)),
        ("basic", utc(2024, 1, 3, 1), utc(2024, 1, 3, 5)),  # 20:00 New York, the session's end
        ("basic", utc(2024, 1, 3, 5), utc(2024, 1, 3, 5)),  # the day bar's end
        ("basic", utc(2024, 3, 8, 21), utc(2024, 3, 9, 5)),  # the clocks change on the 10th
        ("basic", utc(2024, 3, 11, 20), utc(2024, 3, 12, 4)),
        ("developer", utc(2024, 1, 3, 5), utc(2024, 1, 3, 5, 15)),
    ],
)
def test_a_bar_is_served_after_the_delay_and_on_basic_after_its_day(
    plan: str, bar_end: dt.datetime, served: dt.datetime
) -> None:
    assert available_at(plan_named(plan), STOCKS, bar_end) == served


def test_a_crypto_day_ends_at_midnight_utc() -> None:
    assert available_at(plan_named("basic"), CRYPTO, utc(2024, 1, 2, 15, 5)) == utc(2024, 1, 3)
