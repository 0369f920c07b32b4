"""A refresh gives way: its runs, its database processes and the sandbox come after the processes that answer users."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from market_data_pipeline.ingest.pipeline import Pipeline
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.priority import BULK
from market_data_pipeline.runtime.sandbox import ensure_sandbox, sandbox_process, stop_sandbox
from market_data_pipeline.store.connection import Role, server_of
from market_data_pipeline.store.copy import StoreConnection

_CAP_SYS_ADMIN = 21  # capabilities(7); root in a container may lack it
FORKED = """
import multiprocessing, os
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["market_data_pipeline.runtime.preloaded"])
    with context.Pool(1) as pool:
        print(pool.apply(os.getpriority, (os.PRIO_PROCESS, 0)), os.getpriority(os.PRIO_PROCESS, 0))
        print(pool.apply(os.getsid, (0,)) != os.getsid(0))
"""


@dataclass(frozen=True)
class Settings:
    state_dir: Path
    as_of: datetime | None = datetime(2026, 11, 20, 19, 30, tzinfo=UTC)
    plan: str = "advanced"
    calls_per_minute: int | None = None
    sandbox_replay: Path | None = None


def session_nice(pid: int) -> int | None:
    file = Path(f"/proc/{pid}/autogroup")
    return int(file.read_text().split()[-1]) if file.exists() else None


def expected_session_nice() -> set[int | None]:
    if not Path("/proc/self/autogroup").exists():
        return {None}
    (held,) = re.findall(r"^CapEff:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    may_at_any_time = int(held, 16) >> _CAP_SYS_ADMIN & 1  # Linux may refuse others, who try too often together
    return {BULK} if may_at_any_time else {BULK, 0}


def test_runs_give_way_and_the_code_server_that_has_them_forked_does_not(tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    # A session without a terminal, as the processes that `up` starts have.
    command = [sys.executable, script]
    said = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert said.stdout.split() == [str(max(BULK, mine)), str(mine), "True"], said.stderr


def test_the_servers_process_of_a_writer_gives_way_and_that_of_a_reader_does_not(database_url: str) -> None:
    if not server_of(database_url)[0].startswith("/"):
        pytest.skip("the server of MARKET_DATA_TEST_DATABASE_URL is not reached by a socket of this machine")
    pipeline = Pipeline(Mock(), database_url, lambda: datetime.now(UTC), plan_named("basic"), 1, 1)
    with pipeline.connect() as writer, StoreConnection(database_url, role=Role.READER) as reader:
        behind, before = (each.rows("select pg_backend_pid() as pid")[0]["pid"] for each in (writer, reader))
        assert psutil.Process(behind).nice() == max(BULK, psutil.Process(before).nice())
        assert session_nice(behind) in expected_session_nice()
        assert session_nice(before) in {0, None}


def test_the_sandbox_gives_way(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "state")
    ensure_sandbox(settings)
    try:
        server = sandbox_process(settings)
        assert server is not None
        assert server.nice() == max(BULK, os.getpriority(os.PRIO_PROCESS, 0))
        assert session_nice(server.pid) in expected_session_nice()
    finally:
        stop_sandbox(settings)
