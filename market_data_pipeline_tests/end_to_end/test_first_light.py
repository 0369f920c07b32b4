"""From an empty folder to fresh features, then on with Dagster's own commands; the tests build on one another."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import Done, Project
from market_data_pipeline_tests.end_to_end.unattended import quiet
from market_data_pipeline_tests.orchestration.test_run_liveness import started_run
from market_data_pipeline_tests.waiting import PATIENCE, until

SYMBOLS = {"critical": ["AAPL", "MSFT"], "standard": ["KO"], "low_priority": ["XOM"]}
EVERYTHING = {f"{symbol}|{timeframe}" for symbols in SYMBOLS.values() for symbol in symbols for timeframe in Timeframe}


@pytest.fixture(scope="module")
def project(make_project: MakeProject) -> Project:
    made = make_project()
    with made.instance() as instance:
        quiet(instance)  # a scheduled run would be one more than those that are counted here
    return made


@pytest.fixture(scope="module")
def first_start(project: Project) -> Done:
    return project.run("market-data", "up", "--once")


def materialized(project: Project, kind: str) -> set[str]:
    with project.instance() as instance:
        return {key for tier in Tier for key in instance.get_materialized_partitions(dg.AssetKey([tier.value, kind]))}


def test_the_first_start_ends_with_every_series_complete(project: Project, first_start: Done) -> None:
    assert (first_start.code, first_start.err) == (0, "")
    assert "20/20" in first_start.out
    states = project.query("select symbol || '|' || timeframe as key, * from market_data.series_state")
    assert {state["key"] for state in states} == EVERYTHING
    assert all(state["bar_count"] == state["feature_count"] > 0 for state in states)
    assert all(state["next_due_at"] > state["verified_at"] for state in states)
    counted = project.query("select count(*)::int as n from market_data.bars")
    assert counted == [{"n": sum(state["bar_count"] for state in states)}]


def test_dagster_shows_every_partition_materialized(project: Project, first_start: Done) -> None:
    assert materialized(project, "bars") == EVERYTHING
    assert materialized(project, "features") == EVERYTHING
    assert {run.status for run in project.runs()} == {dg.DagsterRunStatus.SUCCESS}


def test_nothing_runs_afterwards_but_the_database(project: Project, first_start: Done) -> None:
    assert project.processes() == []
    assert project.postgres.is_running()


def test_a_second_start_requests_nothing_and_starts_no_run(project: Project, first_start: Done) -> None:
    audit = project.query("select count(*) as n from market_data.ingest_log")
    runs = len(project.runs())
    second = project.run("market-data", "up", "--once")
    assert (second.code, second.err) == (0, "")
    assert "Nothing is missing" in second.out
    assert project.query("select count(*) as n from market_data.ingest_log") == audit
    assert len(project.runs()) == runs


def test_the_history_names_the_backfill_as_the_trigger(project: Project, first_start: Done) -> None:
    done = project.run("market-data", "history", "--json")
    executions = json.loads(done.out)["executions"]
    assert {(one["job"], one["trigger"]) for one in executions} == {(f"{tier}_refresh", "backfill") for tier in SYMBOLS}
    assert {one["failed_symbols"] for one in executions} == {0}


def test_the_definitions_are_valid(project: Project, first_start: Done) -> None:
    done = project.run("dagster", "definitions", "validate")
    assert done.code == 0, done.out + done.err


def test_one_partition_is_materialized_by_hand_with_the_sandbox_started_on_demand(
    project: Project, first_start: Done
) -> None:
    before = project.query("select max(id) as id from market_data.ingest_log")[0]["id"]
    assert project.named("market_data_pipeline.sandbox.server") == []
    done = project.run(
        "dagster", "asset", "materialize", "--select", "critical/bars,critical/features", "--partition", "AAPL|5m"
    )
    assert done.code == 0, done.out + done.err
    logged = project.query("select symbol, timeframe, status from market_data.ingest_log where id > %s", before)
    assert logged == [{"symbol": "AAPL", "timeframe": "5m", "status": "unchanged"}]
    assert len(project.named("market_data_pipeline.sandbox.server")) == 1


def test_a_job_launched_by_dagster_fills_its_tier_again(project: Project, first_start: Done) -> None:
    numbers = "select id from market_data.series where symbol in ('AAPL', 'MSFT')"
    project.query(f"delete from market_data.records where series in ({numbers}) returning 1", as_owner=True)
    for relation in ("coverage", "series_state"):
        project.query(f"delete from market_data.{relation} where symbol in ('AAPL', 'MSFT') returning 1", as_owner=True)
    daemon = project.start("dagster-daemon", "run")
    launched = project.run("dagster", "job", "launch", "-j", "critical_refresh")
    assert launched.code == 0, launched.out + launched.err
    newest = next(run for run in project.runs() if "market_data/trigger" not in run.tags)
    assert newest.job_name == "critical_refresh"
    with project.instance() as instance:
        until(lambda: instance.get_run_by_id(newest.run_id).is_finished)  # type: ignore[union-attr]
        assert instance.get_run_by_id(newest.run_id).is_success  # type: ignore[union-attr]
        for kind in ("bars", "features"):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(["critical", kind]), after_storage_id=None, before_storage_id=None),
                limit=100,
            ).records
            made = {record.partition_key for record in records if record.run_id == newest.run_id}
            assert made == {f"{symbol}|{timeframe}" for symbol in SYMBOLS["critical"] for timeframe in Timeframe}
    states = project.query("select bar_count from market_data.series_state where tier = 'critical'")
    assert len(states) == 10
    assert all(state["bar_count"] > 0 for state in states)
    daemon.process.terminate()
    daemon.end()


def test_two_backfills_at_once_share_one_daemon_and_do_the_work_once(project: Project, first_start: Done) -> None:
    held = project.query("select count(*) as n, sum(close::numeric) as s from market_data.bars")
    both = [project.start("market-data", "backfill", "--symbols", symbol, "--full") for symbol in ("KO", "XOM")]
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, len(project.named("dagster-daemon")))
        return all(one.process.poll() is not None for one in both)

    until(ended, every=0.2, patience=3 * PATIENCE)  # a look at all processes of the machine is not cheap
    for one in both:
        done = one.end()
        assert (done.code, done.err) == (0, ""), done.out
    assert most == 1
    assert project.query("select count(*) as n, sum(close::numeric) as s from market_data.bars") == held
    assert project.query("select count(*)::int as n from market_data.bar_revisions") == [{"n": 0}]
    assert all(run.is_success for run in project.runs())


def test_a_start_with_nothing_to_load_ends_what_a_killed_one_left(project: Project, first_start: Done) -> None:
    with project.instance() as instance:
        lost = started_run(instance)
        done = project.run("market-data", "up", "--once")
        assert "Nothing is missing" in done.out
        assert instance.get_run_by_id(lost).status is dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]


def test_down_ends_the_database_and_the_sandbox_too_and_accepts_that_nothing_runs(
    project: Project, first_start: Done
) -> None:
    done = project.run("market-data", "down")
    assert (done.code, done.err) == (0, "")
    assert "PostgreSQL" in done.out
    assert "sandbox" in done.out
    assert project.processes() == []
    assert not project.postgres.is_running()
    again = project.run("market-data", "down")
    assert (again.code, again.out.strip(), again.err) == (0, "Nothing was running.", "")
