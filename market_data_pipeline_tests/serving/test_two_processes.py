"""Two processes of the API on one database, as behind a proxy, one of which is restarted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import requests

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.settings.database_urls import psycopg2_url
from market_data_pipeline_tests.serving.conftest import BARS, PATIENCE
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.serving.test_overload import waiting
from market_data_pipeline_tests.waiting import until

FIRST = datetime(2026, 3, 11, 13, 30, tzinfo=UTC)


@dataclass
class Process:
    base: str
    process: subprocess.Popen[bytes]

    def get(self, path: str, headers: dict[str, str] | None = None, **params: str) -> requests.Response:
        return requests.get(self.base + path, params=params, headers=headers, timeout=PATIENCE)

    def accepts(self) -> bool:
        host, port = self.base.removeprefix("http://").split(":")
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True


@contextmanager
def running_api(database_url: str, home: Path, port: int) -> Iterator[Process]:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "DAGSTER_POSTGRES_URL": psycopg2_url(database_url),
        "DAGSTER_HOME": str(home),
        "MARKET_DATA_AS_OF": NOW.isoformat(),
        "MARKET_DATA_API_PORT": str(port),
    }
    command = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
    running = Process(f"http://127.0.0.1:{port}", subprocess.Popen(command, env=environment))
    try:
        until(lambda: running.process.poll() is not None or running.accepts())
        assert running.process.poll() is None
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def pair(database_url: str, tmp_path: Path) -> Iterator[list[Process]]:
    (tmp_path / "dagster.yaml").touch()
    with ExitStack() as stack:
        yield [stack.enter_context(running_api(database_url, tmp_path, port)) for port in free_ports(2)]


def close_of(api: Process) -> float:
    return float(api.get(f"{BARS}/AAPL", timeframe="5m").json()["bars"][0]["close"])


def test_both_see_a_commit_know_each_others_answers_and_one_serves_while_the_other_ends(
    pair: list[Process], seed: Seed, database_url: str
) -> None:
    seed.series("AAPL", first=FIRST, count=3)
    seed.symbol("MSFT")
    one, other = pair
    tags = [api.get(f"{BARS}/AAPL", timeframe="5m").headers["ETag"] for api in pair]
    assert tags[0] == tags[1]
    unchanged = other.get(f"{BARS}/AAPL", {"If-None-Match": tags[0]}, timeframe="5m")
    assert unchanged.status_code == 304

    seed.correct("AAPL", "5m", FIRST, 55.5, NOW)

    until(lambda: all(close_of(api) == 55.5 for api in pair))
    changed = [api.get(f"{BARS}/AAPL", {"If-None-Match": tags[0]}, timeframe="5m") for api in pair]
    assert [answer.status_code for answer in changed] == [200, 200]
    assert changed[0].headers["ETag"] == changed[1].headers["ETag"] != tags[0]

    # One is told to end while it works on a request: that is answered, and no new one is taken.
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as readers:
        holder.execute("lock table market_data.bar_revisions in access exclusive mode")
        under_way = readers.submit(one.get, "/series/MSFT/5m")
        until(lambda: waiting(holder) > 0 or under_way.done())
        assert not under_way.done() or under_way.result().status_code == 503
        one.process.send_signal(signal.SIGTERM)
        until(lambda: not one.accepts())
        assert close_of(other) == 55.5
        holder.rollback()
        # 503 is an answer, too: this machine was so busy that the request gave up on the lock.
        assert under_way.result().status_code in {200, 503}
    one.process.wait()
    assert close_of(other) == 55.5
