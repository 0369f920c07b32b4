"""`market-data history RUN_ID` and the audit log: who requested a run, why, and the result of each series."""

from __future__ import annotations

import sys

import dagster as dg
import pytest
import sqlalchemy as sa

from market_data_pipeline.cli import main as cli
from market_data_pipeline.definitions import build_defs
from market_data_pipeline.orchestration.provenance import caller
from market_data_pipeline.orchestration.runs import submit_refresh
from market_data_pipeline_tests.orchestration.conftest import NOW, StandIn


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    cli.console.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["market-data", "history", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
    said = capsys.readouterr()
    return int(exit_info.value.code or 0), said.out, said.err


def test_a_runs_series_are_shown_failed_first_with_who_requested_the_run_and_why(
    registered: dg.DagsterInstance,
    database: sa.Engine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    definitions = build_defs(resource_overrides={"pipeline": StandIn(url=database_url)})
    (by_command,) = submit_refresh(registered, definitions, symbols=["AAPL", "NVDA"])
    submitted = registered.get_run_by_id(by_command)
    assert submitted is not None
    job = definitions.resolve_job_def("critical_refresh")
    runs = {
        "command": job.execute_in_process(instance=registered, tags=submitted.tags, run_config=submitted.run_config),
        "schedule": job.execute_in_process(
            instance=registered,
            tags={
                "dagster/schedule_name": "critical_schedule",
                ".dagster/scheduled_execution_time": "2026-03-11T15:30:00+00:00",
            },
        ),
    }
    by_run = sa.text("select requested_by, reason, series from market_data.run_log where run_id = :run_id")
    with database.begin() as connection:
        noted = {
            name: tuple(connection.execute(by_run, {"run_id": run.run_id}).one()[:2]) for name, run in runs.items()
        }
        for symbol, status, error in (("AAPL", "ok", None), ("NVDA", "failed", "The vendor refused five times.")):
            connection.execute(
                sa.text("""
                    insert into market_data.ingest_log
                        (run_id, symbol, timeframe, started_at, finished_at, status, error)
                    values (:run_id, :symbol, '5m', :now, :now, :status, :error)
                """),
                {"run_id": runs["command"].run_id, "symbol": symbol, "now": NOW, "status": status, "error": error},
            )
    assert noted == {
        "command": (caller(), "started by hand"),
        "schedule": ("critical_schedule", "scheduled for 2026-03-11 15:30Z"),
    }

    code, out, _ = printed(capsys, runs["command"].run_id)
    assert code == 0
    assert f"Requested by {caller()}" in out
    assert out.index("The vendor refused five times.") < out.index("AAPL ", out.index("symbol"))

    code, out, err = printed(capsys, "ffffffff")
    assert (code, out) == (2, "")
    assert err.strip() == "No run's id begins with ffffffff; `market-data history` lists the runs."
