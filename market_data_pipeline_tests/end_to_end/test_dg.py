"""Dagster's `dg` command in a clone in which nothing has run yet, as `make install` makes it available."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from market_data_pipeline_tests.end_to_end.project import REPOSITORY, Done, Project

DG = "from market_data_pipeline.cli.dagster import main; main('dg')"  # what the script in .venv runs


def dg(project: Project, *arguments: str, **variables: str) -> Done:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "MARKET_DATA_"))
    }
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        [sys.executable, "-P", "-c", DG, *arguments],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_dg_checks_lists_and_launches_in_a_fresh_clone_and_says_when_the_database_does_not_run(
    new_project: Project,
) -> None:
    try:
        distribution("dagster-dg-cli")
    except PackageNotFoundError:
        pytest.skip("dagster-dg-cli is not installed: make test installs it")
    # dg looks for the package in the project's own folder and follows no link.
    shutil.copytree(REPOSITORY / "market_data_pipeline", new_project.root / "market_data_pipeline", symlinks=True)
    refused = dg(new_project, "check", "defs", DATABASE_URL="postgresql://me@127.0.0.1:1/prices")
    assert refused.code == 1
    assert refused.err.startswith("PostgreSQL at 127.0.0.1:1 (database prices, user me) cannot be used")
    assert refused.err.count("\n") == 1

    checked = dg(new_project, "check", "defs")
    assert checked.code == 0, checked.out + checked.err
    listed = dg(new_project, "list", "defs", "--json")
    assert listed.code == 0, listed.out + listed.err
    assert {asset["asset_key"] for asset in json.loads(listed.out)["assets"]} >= {
        "critical/bars",
        "low_priority/features",
    }

    launched = dg(new_project, "launch", "--assets", "critical/bars,critical/features", "--partition", "AAPL|1d")
    assert launched.code == 0, launched.out + launched.err
    assert new_project.query("select symbol, status from market_data.ingest_log where timeframe = '1d'") == [
        {"symbol": "AAPL", "status": "ok"}
    ]
