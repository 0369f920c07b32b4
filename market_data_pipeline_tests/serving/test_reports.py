"""What the reports answer: staleness, executions, the scheduler's health, reachability, metrics."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.orchestration.dagster_internals import HEARTBEAT_TOLERANCE_SECONDS, StoredDagsterState
from market_data_pipeline.reports.freshness import series_freshness, staleness_report, tier_counts
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.serving.conftest import Api, beat, evaluate
from market_data_pipeline_tests.serving.seeding import NOW, Seed

STALENESS = "/api/v1/admin/features/staleness"
HISTORY = "/api/v1/admin/scheduler/execution-history"
HEALTH = "/api/v1/admin/scheduler-health"


@dg.op
def nothing() -> None:
    pass


@dg.op
def refuse() -> None:
    raise dg.Failure("The vendor refuses the key.\nMore of it.")


@dg.job
def critical_refresh() -> None:
    nothing()


@dg.job(name="standard_refresh")
def failing_refresh() -> None:
    refuse()


def seed_universe(seed: Seed) -> None:
    seed.series("AAPL")
    seed.series("MSFT", late=timedelta(hours=2))
    seed.series("NVDA", late=timedelta(hours=9), last_error="no answer", last_error_class="TransientError",
                consecutive_failures=3)  # fmt: skip
    seed.series("TSLA", late=timedelta(hours=30), tier="low_priority")
    seed.symbol("GONE", active=False)


def test_staleness_counts_every_series_and_lists_the_worst_first(api: Api, seed: Seed) -> None:
    seed_universe(seed)

    report = api.get(STALENESS).json()

    assert report["timestamp"] == "2026-03-11T15:00:00Z"
    assert report["summary"] == {
        "fresh_count": 1, "aging_count": 1, "stale_count": 2, "missing_count": 16, "silent_count": 0,
        "not_expected_count": 0, "total_monitored": 20
    }  # fmt: skip
    stale = report["by_status"]["stale"]
    assert [(one["symbol"], one["staleness_seconds"], one["within_rpo"]) for one in stale] == [
        ("TSLA", 30 * 3600, False), ("NVDA", 9 * 3600, False)
    ]  # fmt: skip
    assert (stale[1]["consecutive_failures"], stale[1]["last_error"]) == (3, "no answer")
    assert report["by_status"]["fresh"][0]["age_seconds"] == 120
    assert {one["staleness_seconds"] for one in report["by_status"]["missing"]} == {None}


def test_staleness_caps_the_lists_and_not_the_counts(api: Api, seed: Seed) -> None:
    seed_universe(seed)
    report = api.get(STALENESS, limit=1).json()
    assert [len(report["by_status"][status]) for status in ("fresh", "aging", "stale", "missing")] == [1, 1, 1, 1]
    assert report["by_status"]["stale"][0]["symbol"] == "TSLA"
    assert report["summary"]["missing_count"] == 16


def test_what_the_limit_cuts_of_staleness_is_on_the_next_pages(api: Api, seed: Seed) -> None:
    seed_universe(seed)
    whole = api.get(STALENESS).json()
    assert (whole["truncated"], whole["next"]) == (False, None)
    found: dict[str, list[str]] = {status: [] for status in whole["by_status"]}
    answer = api.get(STALENESS, limit=5)
    for _ in range(10):
        for status, series in answer.json()["by_status"].items():
            found[status] += [f"{one['symbol']} {one['timeframe']}" for one in series]
        if not answer.json()["truncated"]:
            break
        assert answer.links["next"]["url"] == answer.json()["next"]
        answer = api.get(answer.json()["next"])
    assert found == {
        status: [f"{one['symbol']} {one['timeframe']}" for one in series]
        for status, series in whole["by_status"].items()
    }


def test_staleness_is_of_the_symbols_tier_and_status_that_are_asked_for(api: Api, seed: Seed) -> None:
    seed_universe(seed)
    for timeframe in ("15m", "1h", "4h", "1d"):
        seed.series("MSFT", timeframe, late=timedelta(minutes=5 if timeframe == "1d" else -5))
    report = api.get(STALENESS, symbol="sf", limit=2).json()
    assert report["summary"] == {
        "fresh_count": 4, "aging_count": 1, "stale_count": 0, "missing_count": 0, "silent_count": 0,
        "not_expected_count": 0, "total_monitored": 5
    }  # fmt: skip
    fresh = [one["timeframe"] for one in report["by_status"]["fresh"]]
    assert fresh == ["1d", "15m"]
    rest = api.get(report["next"]).json()
    assert [one["timeframe"] for one in rest["by_status"]["fresh"]] == ["1h", "4h"]
    assert (rest["summary"], rest["truncated"]) == (report["summary"], False)
    stale = api.get(STALENESS, tier="low_priority", status="stale", limit=1).json()
    assert [one["symbol"] for one in stale["by_status"]["stale"]] == ["TSLA"]
    assert (stale["truncated"], stale["by_status"]["missing"], stale["summary"]["missing_count"]) == (False, [], 4)
    assert api.get(STALENESS, tier="vital").status_code == 422
    assert api.get(STALENESS, status="rotten").status_code == 422


def test_counts_are_those_of_the_series_one_by_one(api: Api, seed: Seed, database_url: str) -> None:
    seed_universe(seed)
    for symbol, life in (("IBM", "delisted"), ("KO", "silent"), ("PEP", "halted")):
        seed.series(symbol, late=timedelta(days=9), life=life, tier="standard")
    seed.series("V", late=timedelta(minutes=9), tier="standard")
    seed.series("MA", tier="standard", consecutive_failures=2, last_error="no answer")
    seed.series("UNH", tier="standard")
    seed.run("update market_data.series_state set features_computed_at = null where symbol = 'UNH'")
    source = engine(database_url, as_of=NOW)
    with source.connect() as connection:
        everything = series_freshness(connection)
        counts = tier_counts(connection)
    whole, page = staleness_report(source, None), staleness_report(source, 3)
    source.dispose()
    assert whole.summary == page.summary
    for tier in Tier:
        of_tier = [one for one in everything if one.tier == tier]
        expected = [one for one in of_tier if one.life in {"trading", "silent"}]
        found = counts[tier]
        assert found.symbols == len({one.symbol for one in of_tier})
        assert (found.series, found.not_expected) == (len(expected), len(of_tier) - len(expected))
        for status in ("FRESH", "AGING", "STALE", "MISSING"):
            assert getattr(found, status.lower()) == sum(one.status == status for one in expected), (tier, status)
        assert found.outside == sum(not one.within_rpo for one in of_tier)
        assert found.failing == sum(one.consecutive_failures > 0 for one in of_tier)
        assert found.worst_seconds == max(one.staleness_seconds or 0 for one in expected)
    listed = whole.by_status
    assert [one.symbol for one in listed.not_expected if one.timeframe == "5m"] == ["IBM", "PEP"]
    assert [f"{one.symbol} {one.timeframe}" for one in listed.fresh] == ["V 5m", "MA 5m", "AAPL 5m"]
    assert page.by_status.fresh == listed.fresh  # one of them by a statement of its own


def test_a_new_symbol_has_its_rpo_to_be_loaded_in_every_report(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance
) -> None:
    seed.symbol("NEW")
    seed.symbol("LATE")
    seed.run("update market_data.symbols set added_at = %s where symbol = 'NEW'", NOW - timedelta(minutes=59))
    seed.run("update market_data.symbols set added_at = %s where symbol = 'LATE'", NOW - timedelta(minutes=61))
    missing = api.get(STALENESS).json()["by_status"]["missing"]
    assert {(one["symbol"], one["within_rpo"]) for one in missing} == {("NEW", True), ("LATE", False)}
    attained = [one for one in api.get(HEALTH).json()["rpo_attainment"] if one["tier"] == "critical"]
    assert [one["series_outside"] for one in attained] == [5, 5]
    page = api.get("/").text
    assert 'data-label="Within RPO now" class="number">5 of 10<' in page
    assert "5 of 10 series, the furthest behind first" in page


def test_staleness_of_thousands_of_series_is_one_quick_statement(seed: Seed, database_url: str) -> None:
    seed.run("insert into market_data.symbols select 'S' || i, 'standard', 'us_equity', true, now()"
             " from generate_series(1, 1000) i")  # fmt: skip
    seed.run(
        "insert into market_data.series_state (symbol, timeframe, tier, next_due_at, features_computed_at)"
        " select symbol, unnest(array['5m', '15m', '1h', '4h', '1d']), tier, now(), now() from market_data.symbols"
    )
    source = engine(database_url)
    assert staleness_report(source).summary.total_monitored == 5000
    source.dispose()


def test_executions_join_dagsters_runs_with_the_audit_log(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance
) -> None:
    seed_universe(seed)
    good = critical_refresh.execute_in_process(
        instance=dagster_instance, tags={"dagster/schedule_name": "critical_schedule"}
    ).run_id
    bad = failing_refresh.execute_in_process(instance=dagster_instance, raise_on_error=False).run_id
    seed.log(good, "AAPL", "5m", "ok", rows_inserted=10, rows_updated=2)
    seed.log(good, "AAPL", "1d", "unchanged")
    seed.log(good, "MSFT", "5m", "failed", error_class="DataError", error="prices below zero")

    report = api.get(HISTORY).json()

    newest, older = report["executions"]
    assert (newest["execution_id"], newest["job"], newest["status"]) == (bad, "standard_refresh", "FAILURE")
    assert (newest["error_message"], newest["success_rate"], newest["trigger"]) == (
        "The vendor refuses the key.", None, "manual"
    )  # fmt: skip
    assert older["execution_id"] == good
    assert older["trigger"] == "schedule:critical_schedule"
    assert (older["total_symbols"], older["successful_symbols"], older["failed_symbols"]) == (2, 1, 1)
    assert (older["total_records_processed"], older["success_rate"]) == (12, 0.5)
    assert older["error_message"] == "MSFT 5m: prices below zero"
    assert older["duration_seconds"] >= 0
    assert older["started_at"].endswith("Z")
    assert len(api.get(HISTORY, limit=1).json()["executions"]) == 1


def test_scheduler_health_says_what_is_wrong(api: Api, seed: Seed, dagster_instance: dg.DagsterInstance) -> None:
    seed_universe(seed)
    beat(dagster_instance, "SCHEDULER", time.time() - HEARTBEAT_TOLERANCE_SECONDS - 1)
    run = critical_refresh.execute_in_process(instance=dagster_instance).run_id
    seed.log(run, "AAPL", "5m", "ok", requests=30, rate_limited=3)
    seed.log(run, "NVDA", "5m", "failed", requests=10, error_class="TransientError", error="no answer")
    seed.log("long-ago", "NVDA", "5m", "failed", at=NOW - timedelta(days=3), requests=500)

    report = api.get(HEALTH).json()

    assert report["status"] == "degraded"
    assert "The scheduler daemon is not running." in report["reasons"]
    assert "2 of 20 series are stale." in report["reasons"]
    assert {d["name"]: d["alive"] for d in report["daemons"]}["scheduler"] is False
    assert [s["name"] for s in report["schedules"]] == [
        "critical_schedule", "standard_schedule", "low_priority_schedule"
    ]  # fmt: skip
    last = report["last_execution"]
    assert (last["execution_id"], last["status"]) == (run, "SUCCESS")
    assert (last["successful_symbols"], last["failed_symbols"]) == (1, 1)
    assert report["stale_features_count"] == 2
    assert [f["error"] for f in report["recent_failures"]] == ["no answer"]
    assert report["rate_limit"] == {
        "window_hours": 24, "total_requests": 40, "rate_limited": 3, "rate": 0.075
    }  # fmt: skip
    assert report["total_symbols_monitored"] == 4


def test_scheduler_health_is_reported_without_dagster(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    report = api.get(HEALTH).json()
    assert (report["status"], report["daemons"], report["last_execution"]) == ("degraded", [], None)
    assert "Dagster's storage cannot be read." in report["reasons"]


def test_scheduler_health_tells_of_a_list_of_dividends_too(api: Api, seed: Seed) -> None:
    seed.run("insert into market_data.reference_failures values ('dividends', %s, 'HTTP 404')", NOW - timedelta(days=2))
    (reason,) = [reason for reason in api.get(HEALTH).json()["reasons"] if "dividends" in reason]
    assert reason.startswith("The market's dividends have been unreadable since 2026-03-09 15:00 UTC, so adjusted")


def test_scheduler_health_tells_of_a_list_of_splits_that_is_more_than_a_day_old(api: Api, seed: Seed) -> None:
    seed.run("insert into market_data.reference_failures values ('splits', %s, 'HTTP 404')", NOW - timedelta(hours=23))
    assert not [reason for reason in api.get(HEALTH).json()["reasons"] if "splits" in reason]
    seed.run("update market_data.reference_failures set since = since - interval '2 hours'")
    (reason,) = [reason for reason in api.get(HEALTH).json()["reasons"] if "splits" in reason]
    assert reason == (
        "The market's splits have been unreadable since 2026-03-10 14:00 UTC, so adjusted prices may lack one: HTTP 404"
    )


def test_health_is_200_while_everything_answers(api: Api, dagster_instance: dg.DagsterInstance) -> None:
    evaluate(dagster_instance)
    response = api.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "healthy")
    assert response.json()["database"]["reachable"] is True
    assert response.json()["dagster_daemon"]["reachable"] is True


@pytest.mark.parametrize(("ago", "late"), [(timedelta(seconds=80), False), (timedelta(minutes=4), True)])
def test_health_is_503_while_nothing_is_evaluated_although_every_daemon_beats(
    api: Api, dagster_instance: dg.DagsterInstance, ago: timedelta, late: bool
) -> None:
    at = datetime.now(UTC) - ago
    evaluate(dagster_instance, sensors_at=at)  # a schedule may have fallen due since, if this is the minute of one
    response = api.get("/health")
    assert response.status_code == (503 if late else 200)
    said = f"staleness_sensor is not evaluated: due every 30 s, last evaluated at {at:%Y-%m-%d %H:%M:%S} UTC."
    assert (said in response.json()["dagster_daemon"]["detail"]) is late
    report = api.get(HEALTH).json()
    assert (said in report["reasons"]) is late
    assert {one["name"] for one in report["evaluations"]} >= {"critical_schedule", "prune_schedule", "staleness_sensor"}
    late_metric = 'market_data_evaluation_late{name="staleness_sensor"}'
    assert f"{late_metric} {float(late)}" in api.get("/metrics").text


def test_health_is_503_while_nothing_was_ever_evaluated(api: Api, dagster_instance: dg.DagsterInstance) -> None:
    response = api.get("/health")
    assert response.status_code == 503
    assert (
        "universe_sensor is not evaluated: due every 30 s, never evaluated."
        in response.json()["dagster_daemon"]["detail"]
    )


def test_health_is_503_when_a_daemon_is_silent(api: Api, dagster_instance: dg.DagsterInstance) -> None:
    evaluate(dagster_instance)
    beat(dagster_instance, "SENSOR", time.time() - HEARTBEAT_TOLERANCE_SECONDS - 1)
    response = api.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, 503)
    assert response.json()["database"]["reachable"] is True
    assert response.json()["dagster_daemon"] == {"reachable": False, "detail": "No heartbeat from: sensor."}


def test_a_folder_without_an_instance_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError):
        StoredDagsterState(tmp_path, "postgresql+psycopg2://nobody@nowhere/nothing").runs(1)
    assert list(tmp_path.iterdir()) == []


def test_metrics_count_requests_under_their_route_and_series_by_tier(api: Api, seed: Seed) -> None:
    seed_universe(seed)
    seed.log("run", "AAPL", "5m", "ok", requests=30, rate_limited=3)
    seed.log("run", "NVDA", "5m", "failed", requests=10)
    seed.log("long-ago", "NVDA", "5m", "ok", at=NOW - timedelta(days=3), requests=500)
    api.wait_for_cache()
    for _ in range(2):
        api.get("/api/v1/features/quant/AAPL", timeframe="5m")
    api.get("/api/v1/features/quant/NOPE")
    api.get("/surprise")

    lines = api.get("/metrics").text.splitlines()

    assert (
        'market_data_http_requests_total{method="GET",route="/api/v1/features/quant/{symbol}",status="200"} 2.0'
        in lines
    )
    assert (
        'market_data_http_requests_total{method="GET",route="/api/v1/features/quant/{symbol}",status="404"} 1.0'
        in lines
    )
    assert 'market_data_http_requests_total{method="GET",route="none",status="404"} 1.0' in lines
    assert {"market_data_vendor_requests_24h 40.0", "market_data_vendor_rate_limited_24h 3.0"} < set(lines)
    assert 'market_data_series{status="stale",tier="low_priority"} 1.0' in lines
    assert 'market_data_staleness_seconds_max{tier="critical"} 32400.0' in lines
    assert not any("surprise" in line or "NOPE" in line for line in lines)


def test_reports_use_the_replays_time(seed: Seed, database_url: str) -> None:
    seed.series("AAPL", late=timedelta(hours=2))
    replay, real = engine(database_url, as_of=NOW), engine(database_url)
    assert staleness_report(replay).timestamp == NOW
    assert staleness_report(replay).summary.aging_count == 1
    assert staleness_report(real).timestamp > datetime(2026, 3, 11, 16, tzinfo=UTC)
    replay.dispose()
    real.dispose()


def test_an_execution_says_which_command_requested_it(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance
) -> None:
    seed_universe(seed)
    critical_refresh.execute_in_process(instance=dagster_instance, tags={"market_data/trigger": "backfill"})
    assert [one["trigger"] for one in api.get(HISTORY).json()["executions"]] == ["backfill"]


def test_a_storage_that_cannot_be_reached_is_reported_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A request for health gives up within seconds; Dagster's plug-in would try for eleven."""
    (tmp_path / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n")
    state = StoredDagsterState(tmp_path, "postgresql+psycopg2://nobody:secret@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailableError, match=r"^Dagster's storage cannot be reached\.$"):
        state.daemons()
    assert "Retrying" not in caplog.text


def test_a_delisted_series_is_listed_apart_and_served_with_a_note(api: Api, seed: Seed) -> None:
    since = NOW - timedelta(days=9)
    for symbol, life in (("AAPL", "delisted"), ("MSFT", "silent"), ("KO", "trading")):
        seed.series(symbol, late=timedelta(days=9) if life != "trading" else timedelta(0), life=life, life_since=since)
    report = api.get(STALENESS).json()
    assert [one["symbol"] for one in report["by_status"]["not_expected"]] == ["AAPL"]
    assert [one["symbol"] for one in report["by_status"]["stale"]] == ["MSFT"]
    assert (report["summary"]["not_expected_count"], report["summary"]["silent_count"]) == (1, 1)
    assert report["by_status"]["not_expected"][0]["within_rpo"]
    fresh = api.get("/api/v1/features/quant/AAPL", timeframe="5m").json()["freshness"]
    assert (fresh["life"], fresh["life_since"]) == ("delisted", "2026-03-02T15:00:00Z")
    assert (
        fresh["warning"]
        == "The symbol has been delisted since 2026-03-02, according to the vendor. No bars are missing."
    )
    metrics = api.get("/metrics").text
    assert 'market_data_series_not_expected{tier="critical"} 1.0' in metrics
    assert 'market_data_series_silent{tier="critical"} 1.0' in metrics
    assert "AAPL has been delisted since 2026-03-02, according to the vendor." in api.get("/series/AAPL/5m").text
    assert "no bars are expected" in api.get("/").text
