"""`market-data baseline` as a user runs it: the document, the chart, and nothing left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psycopg
import pytest

from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import Project
from market_data_pipeline_tests.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def project(make_project: MakeProject) -> Project:
    return make_project()


def scratch_databases(project: Project) -> list[str]:
    with psycopg.connect(project.settings.database_url) as connection:
        names = connection.execute("select datname from pg_database where datname like 'market_data_scratch_%'")
        return [name for (name,) in names]


def assert_nothing_is_left(project: Project) -> None:
    until(lambda: not project.processes())
    assert scratch_databases(project) == []
    assert not (project.state / "scratch").exists()


def test_a_baseline_says_how_long_how_much_and_what_limits_it(project: Project, tmp_path: Path) -> None:
    picture = tmp_path / "baseline.png"
    baseline = project.start(
        "market-data", "baseline", "--symbol-count", "2", "--timeframes", "1h,1d", "--days", "5", "--json",
        "--picture", str(picture),
    )  # fmt: skip
    done = baseline.end(patience=10 * PATIENCE)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["symbols"] == ["AAPL", "MSFT"]
    assert document["jobs"] == {"total": 6, "completed": 6, "failed": 0, "never_begun": 0, "success_rate": 1.0}
    assert [f"{one['symbol']}|{one['timeframe']}" for one in document["series"]] == [
        "AAPL|5m", "AAPL|1h", "AAPL|1d", "MSFT|5m", "MSFT|1h", "MSFT|1d"
    ]  # fmt: skip
    assert document["records"]["inserted"] == sum(one["rows_inserted"] for one in document["series"]) > 0
    split = sum(part["seconds"] for part in document["split"].values())  # each rounded to a millisecond
    assert split == pytest.approx(document["duration_seconds"], abs=0.0005 * (len(document["split"]) + 1))
    assert [run["status"] for run in document["runs"]] == ["SUCCESS"]
    for said in ("Where the time goes", "Slowest job: ", "Bottleneck: ", f"Wrote {picture}"):
        assert said in done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert_nothing_is_left(project)
    assert project.query("select to_regclass('market_data.bars') as bars") == [{"bars": None}]  # the user's own


def test_ctrl_c_during_a_baseline_drops_the_scratch_databases(project: Project) -> None:
    running = project.start("market-data", "baseline", "--symbols", "1")
    until(lambda: len(scratch_databases(project)) == 2)
    done = running.end(signal.SIGINT)
    assert done.code == 130
    assert "Traceback" not in done.out + done.err
    assert_nothing_is_left(project)
