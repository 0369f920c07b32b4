"""When `make` makes the environment: once for each folder that a project is in. Its commands are printed, not run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEW_ENVIRONMENT = "-m venv --without-pip .venv"


def would_run(folder: Path) -> str:
    return subprocess.run(
        ["make", "--dry-run", "install"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(params=["plain", "two words", 'it\'s $HOME "ü" & 100%'])
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project's folder whose environment is up to date, with the link to the project as an installer writes it."""
    folder = tmp_path / request.param
    folder.mkdir()
    for file in (ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*.lock")):
        shutil.copy(file, folder)
    site = folder / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (site / "_market_data_pipeline.pth").write_text(f"{folder}\n")
    (folder / ".venv" / "bin").mkdir()
    (folder / ".venv" / "bin" / "python").touch()
    (folder / ".venv" / ".installed").touch()
    return folder


def test_an_environment_that_is_up_to_date_stays(installed: Path) -> None:
    assert NEW_ENVIRONMENT not in would_run(installed)


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_in_a_folder_that_was_moved_or_copied_it_is_made_again(installed: Path, how: object) -> None:
    elsewhere = installed.with_name("elsewhere")
    how(installed, elsewhere)  # type: ignore[operator]

    commands = would_run(elsewhere)
    assert "rm -rf .venv" in commands
    assert commands.index("rm -rf .venv") < commands.index(NEW_ENVIRONMENT)
    assert "--require-hashes -r requirements.lock" in commands
