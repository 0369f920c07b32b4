"""The systemd unit: systemd accepts it, and what it names exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from market_data_pipeline.cli.main import app
from market_data_pipeline_tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "systemd"
UNIT, WORKER = FOLDER / "market-data.service", FOLDER / "market-data-worker.service"
each_unit = pytest.mark.parametrize("unit_file", [UNIT, WORKER], ids=lambda file: file.stem)


@each_unit
def test_systemd_accepts_the_unit(unit_file: Path, tmp_path: Path) -> None:
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    # It wants the programs to exist, and the folder.
    unit = unit_file.read_text().replace("/srv/market-data/.venv/bin/market-data", sys.executable)
    file = tmp_path / unit_file.name
    file.write_text(unit.replace("/srv/market-data", str(tmp_path)))
    done = subprocess.run([program, "verify", str(file)], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if unit_file.name in line]
    assert (done.returncode, about_it) == (0, []), done.stderr


@each_unit
def test_systemd_finds_the_unit_well_confined(unit_file: Path) -> None:
    """What is left is what the pipeline needs: the network, its sockets in /tmp, other users' processes."""
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    command = [program, "security", "--offline=true", "--threshold=45", str(unit_file)]  # 4.5 of 10
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "option" in done.stderr:
        pytest.skip("this systemd cannot judge a file")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_it_starts_and_stops_by_commands_that_exist() -> None:
    named = [
        re.findall(r"^(ExecStart|ExecStop)=/srv/market-data/\.venv/bin/market-data (\w+)$", file.read_text(), re.M)
        for file in (UNIT, WORKER)
    ]
    assert named == [[("ExecStart", "up"), ("ExecStop", "down")], [("ExecStart", "worker")]]
    known = {each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands}
    assert {command for unit in named for _, command in unit} <= known
