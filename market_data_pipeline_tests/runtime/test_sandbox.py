"""The sandbox as a process: on the command line, and on demand."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.runtime.sandbox import ensure_sandbox, running_sandbox, stop_sandbox
from market_data_pipeline.sandbox.server import bind
from market_data_pipeline.settings.sandbox import SANDBOX_KEY
from market_data_pipeline_tests.recorded import SAMPLE
from market_data_pipeline_tests.sandbox.vendor import Vendor
from market_data_pipeline_tests.waiting import until

SERVER = [sys.executable, "-m", "market_data_pipeline.sandbox.server"]
REPOSITORY = Path(__file__).resolve().parents[2]
AS_OF = datetime(2026, 11, 20, 19, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Settings:
    state_dir: Path
    as_of: datetime | None = AS_OF
    plan: str = "advanced"
    calls_per_minute: int | None = None
    sandbox_replay: Path | None = None


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(tmp_path / "state")
    yield made
    stop_sandbox(made)


def test_the_body_of_a_small_answer_does_not_wait_for_the_client_to_acknowledge_its_headers() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/_sandbox/status", timeout=30).ok
    except requests.RequestException:
        return False


def test_the_command_serves_until_sigterm_and_ends_with_code_0() -> None:
    [port] = free_ports(1)
    options = ["--port", str(port), "--as-of", AS_OF.isoformat(), "--plan", "starter"]
    with subprocess.Popen([*SERVER, *options], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}"))
            assert process.poll() is None
            client = Vendor(f"http://127.0.0.1:{port}")
            assert client.page("AAPL", "1/day", "2026-11-18", "2026-11-18")["status"] == "DELAYED"
            client.session.close()
        finally:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}, key 'sandbox'" in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--replay", "no/such/folder"], "holds no recorded bars"),
        (["--as-of", "noon"], "is not an instant"),
        (["--port", "{taken}"], "cannot listen on 127.0.0.1:"),
    ],
)
def test_a_refusal_to_start_is_one_sentence_and_code_2(options: list[str], sentence: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = [option.replace("{taken}", port) for option in options]
        done = subprocess.run([*SERVER, *said], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_idle_server_ends_on_its_own() -> None:
    options = ["--port", str(free_ports(1)[0]), "--idle-minutes", "0.001"]
    assert subprocess.run([*SERVER, *options], cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


def test_a_sandbox_is_started_once_found_again_and_stopped(settings: Settings) -> None:
    assert running_sandbox(settings) is None
    url = ensure_sandbox(settings)
    record = json.loads((settings.state_dir / "sandbox.json").read_text())
    assert record["base_url"] == url == ensure_sandbox(settings) == running_sandbox(settings)
    assert record["pid"] != os.getpid()
    assert os.getsid(record["pid"]) == record["pid"]
    assert requests.get(f"{url}/_sandbox/status", timeout=30).json()["clock"] == AS_OF.isoformat()
    assert stop_sandbox(settings) is True
    assert not answers(url)
    assert not (settings.state_dir / "sandbox.json").exists()
    assert stop_sandbox(settings) is False


def test_concurrent_callers_start_one_sandbox(settings: Settings) -> None:
    script = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from market_data_pipeline_tests.runtime.test_sandbox import Settings, ensure_sandbox\n"
        "print(ensure_sandbox(Settings(pathlib.Path(sys.argv[1]))))"
    )

    def start(_: int) -> str:
        command = [sys.executable, "-c", script, str(settings.state_dir)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        urls = set(pool.map(start, range(3)))
    assert len(urls) == 1
    assert running_sandbox(settings) in urls


def test_other_settings_replace_the_running_sandbox(settings: Settings) -> None:
    first = ensure_sandbox(settings)
    pid = json.loads((settings.state_dir / "sandbox.json").read_text())["pid"]
    basic = replace(settings, plan="basic", calls_per_minute=0)
    second = ensure_sandbox(basic)
    status = requests.get(f"{second}/_sandbox/status", timeout=30).json()
    assert (status["plan"], status["calls_per_minute"]) == ("basic", None)
    assert json.loads((settings.state_dir / "sandbox.json").read_text())["pid"] != pid
    assert running_sandbox(settings) is None
    assert first == second or not answers(first)


def test_a_dead_sandbox_is_started_again(settings: Settings) -> None:
    ensure_sandbox(settings)
    os.kill(json.loads((settings.state_dir / "sandbox.json").read_text())["pid"], signal.SIGKILL)
    assert answers(ensure_sandbox(settings))


def test_a_process_that_is_not_ours_is_never_stopped(settings: Settings) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        record = {"pid": other.pid, "started": "some other boot:1", "base_url": "http://127.0.0.1:9", "parameters": {}}
        settings.state_dir.mkdir(parents=True)
        (settings.state_dir / "sandbox.json").write_text(json.dumps(record))
        assert stop_sandbox(settings) is False
        assert other.poll() is None
        other.kill()


def test_a_wrong_replay_folder_is_reported_in_the_servers_own_sentence(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="holds no recorded bars"):
        ensure_sandbox(replace(settings, sandbox_replay=settings.state_dir))
    assert not (settings.state_dir / "sandbox.json").exists()


def test_recorded_days_are_served_as_they_are(settings: Settings) -> None:
    url = ensure_sandbox(replace(settings, sandbox_replay=SAMPLE, as_of=datetime(2014, 6, 10, 7, tzinfo=UTC)))
    days = f"{url}/v2/aggs/ticker/AAPL/range/1/day/2014-03-03/2014-06-09"
    served = requests.get(
        days, params={"adjusted": "false", "limit": 500}, headers={"Authorization": f"Bearer {SANDBOX_KEY}"}, timeout=30
    ).json()["results"]
    with gzip.open(SAMPLE / "day" / "AAPL.csv.gz", "rt", newline="") as lines:
        recorded = [row for row in csv.DictReader(lines) if "2014-03-03" <= _day(row) <= "2014-06-09"]
    assert len(recorded) > 60
    names = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
    assert [[bar[name] for name in names] for bar in served] == [
        [float(row[name]) for name in names.values()] for row in recorded
    ]


def _day(row: dict[str, str]) -> str:
    return datetime.fromtimestamp(int(row["window_start"]) / 1e9, UTC).date().isoformat()
