"""What pip installs: the wheel with its data files, and reading with the base dependencies alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from market_data_pipeline_tests.serving.seeding import Seed

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
# As uv and as pip put it, at the first request and in the middle of an answer.
UNREACHABLE = ("Failed to fetch", "network timeout", "error decoding response body", "response body error")
UNREACHABLE += ("connection broken", "Read timed out", "Connection reset", "IncompleteRead", "incomplete-download")

READ = """
import importlib.util, json
from market_data_pipeline import __version__, read_bars, read_features

bars = read_bars("AAPL", "5m", start="2026-03-11", end="2026-03-11T13:40:00Z")
features = read_features("AAPL", "5m")
print(json.dumps({
    "version": __version__,
    "bars": {ts.isoformat(): close for ts, close in bars["close"].items()},
    "log_return": features["log_return"].fillna(-1).tolist(),
    "installed": [name for name in ("dagster", "sqlalchemy", "typer", "talib") if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with what the environment holds."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("market_data_pipeline-*.whl")
    return built


@pytest.fixture(scope="module")
def reader(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel and its base dependencies, at the locked versions."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [UV, "pip", "install", "--python", python]
    if not UV.exists():  # see the Makefile: a machine with a mirror installs with pip
        install = [sys.executable, "-m", "pip", "--python", python, "--retries", "1", "install"]
    asked = folder / "requirements.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    asked.write_text(f"market-data-pipeline @ {wheel.as_uri()} --hash=sha256:{digest}\n", encoding="utf-8")
    done = subprocess.run(
        [*install, "--quiet", "--require-hashes", "-r", asked, "-c", ROOT / "requirements.lock"],
        env={**os.environ, "UV_SYSTEM_CERTS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    return python


def test_the_wheel_brings_every_file_of_the_package_and_the_migrations(wheel: Path) -> None:
    held = {name.removeprefix("market_data_pipeline/") for name in zipfile.ZipFile(wheel).namelist()}
    package = ROOT / "market_data_pipeline"
    needed = {f"sql/{file.name}" for file in (ROOT / "sql").glob("*.sql")}
    needed |= {
        str(file.relative_to(package))
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"universe.yaml", "project_files/dagster.yaml", "project_files/workspace.yaml"} <= needed <= held
    assert not {name for name in held if name.startswith(("benchmarks", "market_data_pipeline_tests", "docs"))}


def test_a_notebook_reads_with_the_base_dependencies_alone(reader: Path, database_url: str, tmp_path: Path) -> None:
    Seed(database_url).series("AAPL", "5m", count=3)
    done = _run(reader, tmp_path, "-c", READ, DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "version": "0.1.0",
        "bars": {"2026-03-11T13:30:00+00:00": 100.0, "2026-03-11T13:35:00+00:00": 101.0},
        "log_return": [-1, 0.01, 0.02],
        "installed": [],
    }


def test_reading_brings_at_most_eight_packages_beside_pandas_and_pyarrow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = _closure(project["dependencies"]) - _closure(["pandas", "pyarrow"])
    assert {"psycopg", "pydantic"} <= brought
    assert len(brought) <= 8, sorted(brought)


def test_without_the_pipeline_extra_the_embedded_server_and_the_command_say_what_to_install(
    reader: Path, tmp_path: Path
) -> None:
    reading = "from market_data_pipeline import read_bars; read_bars('AAPL', '1d')"
    for arguments in (["-c", reading], [reader.with_name("market-data"), "staleness"]):
        done = _run(reader, tmp_path, *arguments)
        assert done.returncode != 0
        assert "pip install 'market-data-pipeline[pipeline]'" in done.stderr.splitlines()[-1]


def _closure(requirements: list[str]) -> set[str]:
    """The names of the packages that pip would install here for these, by what is installed."""
    found: set[str] = set()
    asked = [Requirement(text) for text in requirements]
    while asked:
        one = asked.pop()
        environments = [{"extra": extra} for extra in ("", *one.extras)]
        found.add(canonicalize_name(one.name))
        for text in metadata.requires(one.name) or ():
            needed = Requirement(text)
            applies = needed.marker is None or any(needed.marker.evaluate(each) for each in environments)
            if applies and canonicalize_name(needed.name) not in found:
                asked.append(needed)
    return found


def _run(python: Path, folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
    command = [python, "-I", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
