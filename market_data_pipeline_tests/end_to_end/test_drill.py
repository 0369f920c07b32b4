"""`market-data drill` as a user runs it: a real outage in a project of its own, measured against its RTO."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from market_data_pipeline.domain.objectives import RECOVERY_OBJECTIVES, Outage
from market_data_pipeline_tests.end_to_end.project import Project
from market_data_pipeline_tests.waiting import PATIENCE, until


def test_a_drill_measures_an_outage_and_touches_nothing_of_the_users(new_project: Project, tmp_path: Path) -> None:
    document = tmp_path / "drill.json"
    drill = new_project.start("market-data", "drill", "FEATURE_COMPUTATION_FAILURE", "--output", str(document))
    done = drill.end(patience=10 * PATIENCE)  # it starts a whole project of its own
    (report,) = json.loads(document.read_text())["outages"]
    steps = [step["what"] for step in report["steps"]]
    assert steps[0] == "an own feature broke TA-Lib's settings: X:BTCUSD 1d (FeatureError) failed"
    assert steps[-1] == "a refresh succeeded"
    assert report["rto_seconds"] == RECOVERY_OBJECTIVES[Outage.FEATURE_COMPUTATION_FAILURE].rto.total_seconds()
    assert report["recovery_seconds"] == report["steps"][-1]["after_seconds"] > 0
    # How long it took depends on the machine; the verdict must follow from it.
    assert report["kept"] is (report["recovery_seconds"] <= report["rto_seconds"])
    assert done.code == (0 if report["kept"] else 1), done.err
    assert "FEATURE_COMPUTATION_FAILURE" in done.out
    until(lambda: not new_project.processes())
    # Reading the settings creates the passwords of a server, which was not started.
    left = {file.name for file in new_project.state.rglob("*") if file.is_file()}
    assert left <= {"postgres.password", "postgres.owner.password"}
    assert not (new_project.state / "scratch").exists()


@pytest.mark.skipif(
    "TEST_CHAOS" not in os.environ, reason="it takes minutes: TEST_CHAOS=1 make test ARGS='-k random_processes -n 0'"
)
def test_random_processes_die_and_nothing_is_lost_or_stops_silently(new_project: Project, tmp_path: Path) -> None:
    document = tmp_path / "chaos.json"
    drill = new_project.start("market-data", "drill", "--chaos", "0.3", "--seed", "4", "--output", str(document))
    done = drill.end(patience=10 * PATIENCE)
    report = json.loads(document.read_text())
    assert report["problems"] == []
    hit = [event["what"] for event in report["events"] if event["what"].startswith(("killed", "ended", "suspended"))]
    assert len(hit) >= 4
    assert (done.code, report["kept"], report["seed"], report["speed"]) == (0, True, 4, 15), done.err
    assert any("was started again after" in title for title in report["alerts"])
    assert "Kept: every series within its RPO" in done.out
    until(lambda: not new_project.processes())
    assert not (new_project.state / "scratch").exists()
