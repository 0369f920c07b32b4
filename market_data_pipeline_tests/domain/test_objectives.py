"""The objectives that are promised, and that schedules and policies can keep them."""

from __future__ import annotations

from datetime import time, timedelta
from itertools import pairwise

import pytest

from market_data_pipeline.domain.objectives import (
    CACHE_LIFESPAN,
    DUE_GRACE,
    FRESHNESS,
    RECOVERY_OBJECTIVES,
    SETTLE_AFTER,
    SETTLED_AT,
    TIER_OBJECTIVES,
    Freshness,
    Outage,
)
from market_data_pipeline.domain.series import Tier

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def test_every_tier_keeps_the_recovery_point_and_the_schedule_that_were_promised() -> None:
    assert {tier: (o.rpo, o.cron) for tier, o in TIER_OBJECTIVES.items()} == {
        Tier.CRITICAL: (HOUR, "*/15 * * * *"),
        Tier.STANDARD: (4 * HOUR, "0 * * * *"),
        Tier.LOW_PRIORITY: (24 * HOUR, "30 0 * * *"),
    }


def test_every_outage_keeps_the_recovery_time_that_was_promised_and_says_what_to_do() -> None:
    assert {outage: objective.rto for outage, objective in RECOVERY_OBJECTIVES.items()} == {
        Outage.SCHEDULER_CRASH: 5 * MINUTE,
        Outage.POLYGON_API_RATE_LIMIT: 30 * MINUTE,
        Outage.DATABASE_CONNECTION_LOSS: 2 * MINUTE,
        Outage.FEATURE_COMPUTATION_FAILURE: MINUTE,
        Outage.SERVER_LOSS: 60 * MINUTE,
    }
    for objective in RECOVERY_OBJECTIVES.values():
        assert objective.symptom
        assert len(objective.procedure) >= 3
        assert all(step.endswith(".") for step in objective.procedure)


@pytest.mark.parametrize("tier", Tier)
def test_one_late_or_failed_refresh_does_not_make_the_freshness_policy_flap(tier: Tier) -> None:
    objective = TIER_OBJECTIVES[tier]
    missed = 1 if objective.cadence < timedelta(days=1) else 0
    assert objective.warn_after >= (1 + missed) * objective.cadence + min(objective.cadence / 2, 2 * HOUR)
    assert objective.warn_after < objective.fail_after


@pytest.mark.parametrize("tier", [Tier.CRITICAL, Tier.STANDARD])
def test_the_freshness_policy_fails_when_the_recovery_point_is_passed(tier: Tier) -> None:
    assert TIER_OBJECTIVES[tier].fail_after == TIER_OBJECTIVES[tier].rpo


def test_a_more_urgent_tier_is_promised_more_and_goes_first() -> None:
    assert list(TIER_OBJECTIVES) == list(Tier)
    for urgent, other in pairwise(TIER_OBJECTIVES.values()):
        assert urgent.rpo < other.rpo
        assert urgent.cadence < other.cadence
        assert urgent.run_priority > other.run_priority
        assert urgent.shard_symbols <= other.shard_symbols


def test_every_state_of_freshness_has_its_limit_and_its_action() -> None:
    assert list(FRESHNESS) == list(Freshness)
    assert [rule.up_to for rule in FRESHNESS.values()] == [HOUR, 6 * HOUR, None, None]
    assert all(rule.action for rule in FRESHNESS.values())
    assert "warning" not in FRESHNESS[Freshness.FRESH].action
    assert timedelta(hours=24) == CACHE_LIFESPAN


def test_bars_are_due_and_settle_when_the_contract_says() -> None:
    assert timedelta(minutes=2) == DUE_GRACE
    assert timedelta(minutes=15) == SETTLE_AFTER
    assert time(11) == SETTLED_AT


def test_objectives_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        TIER_OBJECTIVES[Tier.CRITICAL] = TIER_OBJECTIVES[Tier.STANDARD]  # type: ignore[index]
    with pytest.raises(AttributeError):
        TIER_OBJECTIVES[Tier.CRITICAL].rpo = HOUR  # type: ignore[misc]
