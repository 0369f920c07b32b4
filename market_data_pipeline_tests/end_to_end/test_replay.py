"""Recorded bars through sandbox, Dagster's job and database: what is stored equals the files."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import Project
from market_data_pipeline_tests.recorded import SAMPLE

AS_OF = "2014-06-10T03:00:00-04:00"  # the morning after a split
COLUMNS = ("open", "high", "low", "close", "volume")


@pytest.fixture(scope="module")
def project(make_project: MakeProject) -> Project:
    return make_project(
        universe="tiers: {critical: [AAPL]}\n",
        MARKET_DATA_AS_OF=AS_OF,
        MARKET_DATA_SANDBOX_REPLAY=SAMPLE,
        MARKET_DATA_HISTORY_DAYS=100,
    )


def recorded(project: Project) -> list[dict[str, Any]]:
    oldest = project.query("select min(ts) as ts from market_data.bars where timeframe = '1d'")[0]["ts"]
    with gzip.open(SAMPLE / "day" / "AAPL.csv.gz", "rt", newline="") as lines:
        rows = [
            {"ts": datetime.fromtimestamp(int(row["window_start"]) / 1e9, UTC)}
            | {name: float(row[name]) for name in COLUMNS}
            for row in csv.DictReader(lines)
        ]
    return [row for row in rows if oldest <= row["ts"] < datetime.fromisoformat("2014-06-10T00:00:00-04:00")]


def test_a_tiers_job_stores_recorded_days_as_they_are(project: Project) -> None:
    done = project.run("market-data", "backfill", "--timeframes", "1d")
    assert (done.code, done.err) == (0, "")
    assert "recorded bars" in done.out
    [run] = project.runs(trigger="backfill")
    assert (run.job_name, run.status) == ("critical_refresh", dg.DagsterRunStatus.SUCCESS)
    stored = project.query(f"select ts, {', '.join(COLUMNS)} from market_data.bars where timeframe = '1d' order by ts")
    assert len(stored) > 60
    assert stored == recorded(project)
