"""Bad input is reported in one sentence, with the right exit code, and leaves nothing half done."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.process_identity import is_alive, start_time
from market_data_pipeline_tests.end_to_end.conftest import MakeProject
from market_data_pipeline_tests.end_to_end.project import Project, sentence
from market_data_pipeline_tests.waiting import is_open, until

SECRET = "pk-very-secret-key"


@pytest.fixture(scope="module")
def project(make_project: MakeProject) -> Project:
    made = make_project()
    assert made.run("market-data", "init").code == 0
    return made


@pytest.fixture
def untouched(project: Project) -> Iterator[None]:
    """Check that the test's command has left `.env`, the database's content and the list of processes as they were."""
    before = (project.root / ".env").read_bytes()
    yield
    assert (project.root / ".env").read_bytes() == before
    assert project.processes() == []
    exists = project.query("select to_regclass('market_data.bars') is not null as yes")[0]["yes"]
    for relation in ("bars", "coverage", "ingest_log") if exists else ():
        assert project.query(f"select count(*)::int as n from market_data.{relation}") == [{"n": 0}]


UNREACHABLE_DATABASE = {"DATABASE_URL": f"postgresql://someone:{SECRET}@127.0.0.1:9/none"}
UNREACHABLE_VENDOR = {"POLYGON_BASE_URL": "http://127.0.0.1:9"}
UNKNOWN_VENDOR = {"POLYGON_BASE_URL": "http://vendor.invalid", "POLYGON_API_KEY": SECRET}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("command", "variables", "code", "words"),
    [
        # Every command reads the settings in the same way.
        ("up --once", {"POLYGON_PLAN": "gold"}, 2, "POLYGON_PLAN=starter"),
        ("up --once", {"MARKET_DATA_UNIVERSE": "nowhere.yaml"}, 2, "MARKET_DATA_UNIVERSE is 'nowhere.yaml'"),
        ("backfill", {"DATABASE_URL": "mysql://localhost/x"}, 2, "DATABASE_URL"),
        ("up --once", {"POLYGON_BASE_URL": "http://vendor.invalid"}, 2, "POLYGON_API_KEY is not set"),
        ("backfill", {"POLYGON_API_KEY": "a key with blanks"}, 2, "POLYGON_API_KEY"),
        # What is started before something else cannot be reached differs.
        ("up --once", UNREACHABLE_DATABASE, 1, "Connection refused. Is it running?"),
        ("backfill", UNREACHABLE_DATABASE, 1, "Connection refused. Is it running?"),
        ("up --once", UNREACHABLE_VENDOR, 1, "http://127.0.0.1:9 cannot be reached (connection refused)"),
        ("backfill", UNREACHABLE_VENDOR, 1, "http://127.0.0.1:9 cannot be reached (connection refused)"),
        ("backfill", UNKNOWN_VENDOR, 1, "vendor.invalid cannot be"),
    ],
)
def test_a_setting_that_cannot_work_is_reported_in_one_sentence(
    project: Project, command: str, variables: dict[str, str], code: int, words: str
) -> None:
    done = project.run("market-data", *command.split(), **variables)
    assert done.code == code
    assert words in sentence(done)
    assert SECRET not in done.out + done.err


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--symbols", "AAPL,ZZZZ"), "Not followed: ZZZZ. Followed are AAPL, KO, MSFT, XOM"),
        (("--timeframes", "1d,3m"), "Unknown timeframe '3m'"),
    ],
)
def test_an_unknown_symbol_or_timeframe_is_refused(project: Project, arguments: tuple[str, str], words: str) -> None:
    done = project.run("market-data", "backfill", *arguments)
    assert done.code == 2
    assert words in sentence(done)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiers:\n  critical: [AAPL]\n  gold: [MSFT]\n", "wrong.yaml line 3: 'gold' is unknown"),
        ("tiers:\n  critical: [AAPL\n", "wrong.yaml line 3: this is not YAML"),
        ("tiers:\n  critical:\n    - AAPL\n    - AAPL\n", "wrong.yaml line 4: AAPL is already listed"),
        ("", "wrong.yaml is empty"),
    ],
)
def test_a_malformed_universe_names_the_file_and_the_line(project: Project, text: str, words: str) -> None:
    file = project.root / "wrong.yaml"
    file.write_text(text)
    done = project.run("market-data", "universe", "import", "wrong.yaml")
    assert done.code == 2
    assert words in sentence(done)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("name", "what"), [("UI", "the Dagster UI"), ("API", "the read API")])
def test_a_port_that_is_taken_is_named_with_its_variable(project: Project, name: str, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = project.run("market-data", "up", **{f"MARKET_DATA_{name}_PORT": port})
    assert done.code == 2
    said = sentence(done)
    assert f"Port {port} for {what} is taken" in said
    assert f"MARKET_DATA_{name}_PORT={port + 1}" in said


def test_a_wrong_key_fails_the_runs_with_what_to_do_and_is_shown_nowhere(project: Project) -> None:
    [port] = free_ports(1)
    vendor = project.start("market-data", "sandbox", "--port", str(port))
    until(lambda: is_open(port))
    access = {
        "POLYGON_BASE_URL": f"http://127.0.0.1:{port}",
        "POLYGON_API_KEY": SECRET,
        "POLYGON_PLAN": "advanced",  # on the basic one each run would wait 12 s for its turn
    }
    done = project.run("market-data", "backfill", **access)
    vendor.process.terminate()
    vendor.end()
    assert done.code == 1
    said = sentence(done)
    assert said.startswith("20 of 20 series failed: The vendor refuses the API key (HTTP 401: Unknown API Key).")
    assert "Correct POLYGON_API_KEY" in said
    logs = [file.read_text(errors="replace") for file in project.state.glob("**/*.log")]
    texts = [done.out, done.err, (project.root / ".env").read_text(), *logs]
    assert not [text for text in texts if SECRET in text]
    assert project.processes() == []


@pytest.mark.parametrize("file", ["up-1.json", "up-{foreign}.json", "backfill-7.json"])
def test_down_ends_no_process_of_a_stale_or_foreign_record(project: Project, file: str) -> None:
    stranger = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = project.state / "running"
    folder.mkdir(exist_ok=True)
    found = project.state.stat()
    started = {"pid": stranger.pid, "started": start_time(stranger.pid)}
    content: object = {
        # A pid that another process has by now; a copy of another project's state; no record at all.
        "up-1.json": {
            "command": "up",
            "folder": [found.st_dev, found.st_ino],
            "processes": [{**started, "started": start_time(os.getpid())}],
        },
        "up-{foreign}.json": {"command": "up", "folder": [found.st_dev, found.st_ino + 1], "processes": [started]},
        "backfill-7.json": ["half", "a"],
    }[file]
    record = folder / file.format(foreign=stranger.pid)
    record.write_text(json.dumps(content)[: -1 if file == "backfill-7.json" else None])
    try:
        done = project.run("market-data", "down")
        assert (done.code, done.err) == (0, "")
        assert "market-data up" not in done.out
        assert is_alive(stranger)
    finally:
        stranger.kill()
        record.unlink(missing_ok=True)
        project.postgres.ensure_running()


def test_a_folder_that_cannot_be_written_is_named(new_project: Project) -> None:
    new_project.state.write_text("a file where a folder should be\n")
    done = new_project.run("market-data", "up", "--once")
    assert done.code in {1, 2}
    assert ".market-data" in sentence(done)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """Put a disk of a few kilobytes at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a full disk needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_half_created_database(new_project: Project) -> None:
    with small_disk(new_project.state, 1024):
        done = new_project.run("market-data", "up", "--once")
        assert done.code in {1, 2}
        said = sentence(done)
        assert "disk" in said
        assert "full" in said
        assert not list(new_project.state.glob("postgres*/PG_VERSION"))
        assert new_project.processes() == []


def test_a_disk_that_fills_up_ends_the_backfill_with_a_sentence(new_project: Project) -> None:
    with small_disk(new_project.state, 160 << 10):
        new_project.postgres.ensure_running()
        room = shutil.disk_usage(new_project.state).free - (14 << 20)
        (new_project.state / "filler").write_bytes(bytes(room))
        done = new_project.run("market-data", "up", "--once")
        new_project.postgres.stop()
        assert done.code == 1
        assert "is full" in done.err
        assert "Traceback" not in done.err
        assert new_project.processes() == []
