"""Everything that acts on an objective uses the one in `domain/objectives.py`: Dagster, the API, reports, the page."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.objectives import (
    CACHE_LIFESPAN,
    FRESHNESS,
    TIER_OBJECTIVES,
    Freshness,
    TierObjective,
)
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.checks.freshness import evaluation
from market_data_pipeline.orchestration.jobs.refresh import run_tags
from market_data_pipeline.orchestration.partitions import bars_key, features_key
from market_data_pipeline.orchestration.runs import tier_run_requests
from market_data_pipeline.reports.freshness import tier_freshness
from market_data_pipeline.reports.objectives import objectives_markdown, span
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.conftest import REPOSITORY
from market_data_pipeline_tests.serving.conftest import FEATURES, Api
from market_data_pipeline_tests.serving.seeding import NOW, Seed

A_SECOND = timedelta(seconds=1)
TIERS = pytest.mark.parametrize(("tier", "objective"), TIER_OBJECTIVES.items())


def test_the_published_page_matches_the_objectives() -> None:
    published = (REPOSITORY / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert published == objectives_markdown(), "run: market-data objectives --markdown docs/objectives.md"


def test_every_tier_has_its_schedule_and_no_other_schedule_refreshes_one() -> None:
    schedules = build_defs().get_repository_def().schedule_defs
    refreshing = {s.job_name: s for s in schedules if s.job_name.endswith("_refresh")}
    assert {
        job: (s.name, s.cron_schedule, s.execution_timezone, s.default_status) for job, s in refreshing.items()
    } == {
        f"{tier}_refresh": (f"{tier}_schedule", o.cron, o.cron_timezone, dg.DefaultScheduleStatus.RUNNING)
        for tier, o in TIER_OBJECTIVES.items()
    }
    assert sum(s.job_name.endswith("_refresh") for s in schedules) == len(TIER_OBJECTIVES)


@TIERS
def test_both_assets_of_a_tier_have_its_freshness_policy(tier: Tier, objective: TierObjective) -> None:
    graph = build_defs().resolve_asset_graph()
    policy = dg.FreshnessPolicy.time_window(fail_window=objective.fail_after, warn_window=objective.warn_after)
    assert graph.get(bars_key(tier)).freshness_policy == policy
    assert graph.get(features_key(tier)).freshness_policy == policy


@TIERS
def test_runs_have_their_tiers_priority_and_size(tier: Tier, objective: TierObjective) -> None:
    symbols = [f"S{number:04}" for number in range(objective.shard_symbols + 1)]
    assert len(tier_run_requests(symbols[:-1], tier)) == 1
    assert len(tier_run_requests(symbols, tier)) == 2
    assert run_tags(tier)["dagster/priority"] == str(objective.run_priority)


@TIERS
def test_sensors_checks_and_reports_call_a_series_late_when_its_rpo_has_passed(
    api: Api,
    seed: Seed,
    database_url: str,
    tier: Tier,
    objective: TierObjective,
) -> None:
    seed.series("KEPT", tier=tier, late=objective.rpo)
    seed.series("LATE", tier=tier, late=objective.rpo + A_SECOND)
    held = engine(database_url, as_of=NOW)
    with held.begin() as connection:  # the other timeframes would count as missing
        connection.exec_driver_sql(
            "insert into market_data.series_state"
            " (symbol, timeframe, tier, verified_at, features_computed_at, next_due_at)"
            " select symbol, t, tier, verified_at, verified_at, now() + interval '100 years'"
            " from market_data.series_state,"
            " unnest(array['15m', '1h', '4h', '1d']) as t"
        )
    found = tier_freshness(held)[tier]
    held.dispose()
    assert [late.series.symbol for late in found.late_series] == ["LATE"]
    assert not evaluation(tier, found, None).passed
    report = api.get("/api/v1/admin/features/staleness").json()["by_status"]
    within = {
        one["symbol"]: one["within_rpo"]
        for state in report.values()
        for one in state
        if one["timeframe"] == "5m" and one["tier"] == tier
    }
    assert within == {"KEPT": True, "LATE": False}


def test_the_api_answers_by_the_states_of_freshness(api: Api, seed: Seed) -> None:
    fresh, aging = FRESHNESS[Freshness.FRESH].up_to, FRESHNESS[Freshness.AGING].up_to
    assert fresh is not None
    assert aging is not None
    edges = {
        "FRESH": (fresh, "FRESH"),
        "AGED": (fresh + A_SECOND, "AGING"),
        "AGING": (aging, "AGING"),
        "STALE": (aging + A_SECOND, "STALE"),
        "PASSED": (CACHE_LIFESPAN + A_SECOND, "STALE"),
    }
    for symbol, (late, _) in edges.items():
        seed.series(symbol, late=late, count=1)
    blocks = {symbol: api.get(f"{FEATURES}/{symbol}", timeframe="5m").json()["freshness"] for symbol in edges}
    assert {symbol: block["status"] for symbol, block in blocks.items()} == {
        symbol: state for symbol, (_, state) in edges.items()
    }
    assert "warning" not in blocks["FRESH"]
    assert all(blocks[symbol]["warning"] for symbol in ("AGED", "AGING", "STALE", "PASSED"))
    left = (CACHE_LIFESPAN - aging - A_SECOND).total_seconds()
    assert [blocks[symbol].get("cache_lifespan_seconds") for symbol in ("AGING", "STALE", "PASSED")] == [None, left, 0]
    seed.symbol("NEVER")
    missing = api.get(f"{FEATURES}/NEVER", timeframe="5m")
    assert missing.status_code == 404
    assert missing.json()["backfill_request"]["status"] == "queued"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.4, "under 1 s"), (45, "45 s"), (720, "12 min"), (12_000, "3 h 20 min"), (86_400, "24 h"),
     (93_600, "26 h"), (187_200, "2 d 4 h")],
)  # fmt: skip
def test_durations_read_as_a_person_would_say_them(seconds: float, said: str) -> None:
    assert span(seconds) == said
