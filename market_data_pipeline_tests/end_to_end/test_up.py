"""`market-data up` as a service: what it serves, which commands share it, and how it ends.

It runs where public reports say that it is run: with cron's PATH, no HOME, a proxy, and in a folder with an unusual
name, in which nothing has run before.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import dagster as dg
import psutil
import psycopg
import pytest
import requests

from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.process_identity import is_alive
from market_data_pipeline.runtime.daemon import daemon_lock
from market_data_pipeline_tests.end_to_end.conftest import folder
from market_data_pipeline_tests.end_to_end.project import Project, Running, sentence
from market_data_pipeline_tests.waiting import is_open, until

READY = "Ctrl-C stops everything"
CLOSED = "http://127.0.0.1:9"  # the port `discard`, where nothing listens
VARIABLES = {"PATH": "/usr/bin:/bin", "HOME": "", "LANG": "", "http_proxy": CLOSED, "HTTPS_PROXY": CLOSED}


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with folder() as root:
        made = Project(root / "Märkte & 'Co' 100%", universe="tiers: {critical: [AAPL]}\n", MARKET_DATA_HISTORY_DAYS=5)
        made.variables = {**VARIABLES}
        yield made
        made.clean_up()


@pytest.fixture(scope="module")
def bystander(project: Project) -> Iterator[psutil.Popen]:
    """An unrelated process in the same folder."""
    process = psutil.Popen([sys.executable, "-c", "input()"], cwd=project.root, stdin=subprocess.PIPE)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def up(project: Project, bystander: psutil.Popen) -> Running:
    running = project.start("market-data", "up")
    running.says(READY)
    return running


def left(project: Project) -> list[str]:
    """Return what still runs of the project: command lines, and ports that answer."""
    found = []
    for process in project.processes():
        with suppress(psutil.NoSuchProcess):
            found.append(f"{process.pid} {process.status()}: {' '.join(process.cmdline())}")
    return found + [f"port {port}" for port in (project.ui_port, project.api_port) if is_open(port)]


def is_healthy(api: str) -> bool:
    try:
        return requests.get(f"{api}/health", timeout=30).status_code == 200
    except requests.RequestException:  # it is being restarted
        return False


def assert_gone(project: Project) -> None:
    with suppress(AssertionError):
        until(lambda: not left(project), patience=10)  # a killed process may be seen for a moment
    assert left(project) == []


def test_it_loads_and_serves_the_ui_and_the_api(project: Project, up: Running) -> None:
    up.says("5/5")
    ui, api = f"http://127.0.0.1:{project.ui_port}", f"http://127.0.0.1:{project.api_port}"
    assert "Dagster" in requests.get(f"{ui}/assets", timeout=30).text
    query = {"query": "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"}
    nodes = requests.post(f"{ui}/graphql", json=query, timeout=60).json()["data"]["repositoriesOrError"]["nodes"]
    assert nodes == [{"location": {"name": "market_data_pipeline.definitions"}}]
    assert (
        requests.post(f"{ui}/graphql", json=query, headers={"Origin": "http://evil.example"}, timeout=60).status_code
        == 403
    )
    until(lambda: is_healthy(api))
    answer = requests.get(f"{api}/api/v1/features/quant/AAPL", params={"timeframe": "5m"}, timeout=30).json()
    assert answer["records_returned"] > 100
    assert requests.get(f"{api}/docs", timeout=30).ok


def test_the_stored_tables_are_checked_for_the_first_time(project: Project, up: Running) -> None:
    up.says("Quality     first check of the stored tables")
    with project.instance() as instance:
        checked = dg.RunsFilter(job_name="quality")
        until(lambda: [run.status for run in instance.get_runs(checked)] == [dg.DagsterRunStatus.SUCCESS])
        keys = [
            dg.AssetCheckKey(dg.AssetKey(["critical", "bars"]), name)
            for name in ("keys_are_unique", "no_bar_from_the_future")
        ]
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        assert [found[key].status.value for key in keys] == ["SUCCEEDED"] * 2


def test_a_second_one_is_refused_and_says_where_the_first_is(project: Project, up: Running) -> None:
    done = project.run("market-data", "up")
    assert done.code == 2
    said = sentence(done)
    assert f"(process {up.process.pid})" in said
    assert f":{project.ui_port}" in said
    assert project.run("market-data", "up", "--once").code == 2


def test_a_backfill_meanwhile_uses_the_running_daemon_and_its_run_is_forked(project: Project, up: Running) -> None:
    daemons = {process.pid for process in project.named("dagster-daemon")}
    [imported] = project.named("forkserver")  # it has imported what a run needs
    with closing(psycopg.connect(project.settings.owner_url)) as connection:
        connection.execute("lock table market_data.ingest_log in share mode")  # no run ends before it was seen
        backfill = project.start("market-data", "backfill", "--timeframes", "1d", "--full")
        until(imported.children)
    done = backfill.end()
    assert (done.code, done.err) == (0, "")
    assert "Stopping" not in done.out
    assert f"Daemon    using the one of market-data up (process {up.process.pid})" in " ".join(done.out.split("\n"))
    assert {process.pid for process in project.named("dagster-daemon")} == daemons
    assert len(daemons) == 1
    until(lambda: not imported.children())


def test_a_second_daemon_is_refused_meanwhile_whoever_starts_it(project: Project, up: Running) -> None:
    [daemon] = project.named("dagster-daemon")
    which = f"A Dagster daemon, process {daemon.pid} on this machine, already serves this project's Dagster storage"
    done = project.run("dagster", "dev")
    assert done.code == 1
    assert which in sentence(done)
    assert str(project.ui_port) in done.err
    done = project.run("dagster-daemon", "run", "--empty-workspace")
    assert done.code == 1
    assert which in done.err


def last_tick(project: Project, sensor: str) -> float:
    """Return when a sensor was last evaluated, in seconds since 1970."""
    with project.instance() as instance:
        [state] = [state for state in instance.all_instigator_state() if state.name == sensor]
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        return ticks[0].timestamp if ticks and ticks[0].status.value in {"SUCCESS", "SKIPPED"} else 0.0


def test_what_is_killed_runs_again_and_sensors_are_evaluated(project: Project, up: Running) -> None:
    words = ("grpc", "dagster-daemon", "runtime.webserver", "runtime.api", "forkserver")
    killed = [process for word in words for process in project.named(word)]
    assert len(killed) == len(words)
    for process in killed:
        process.kill()
    at = time.time()
    until(lambda: last_tick(project, "backfill_request_sensor") > at)
    until(lambda: is_open(project.ui_port) and is_open(project.api_port))
    api = f"http://127.0.0.1:{project.api_port}"
    until(lambda: is_healthy(api))
    assert project.run("market-data", "backfill", "--timeframes", "1d", "--full").code == 0
    assert len(project.named("dagster-daemon")) == 1
    up.says("answers again after")


@pytest.mark.parametrize(
    "seconds",
    [
        3,
        # Longer than gRPC's and heartbeats' time limits, and than what a run may be silent.
        pytest.param(100, marks=pytest.mark.skipif("TEST_CHAOS" not in os.environ, reason="takes two minutes")),
    ],
)
def test_after_everything_was_suspended_ticks_go_on(project: Project, up: Running, seconds: int) -> None:
    before = {process.pid for word in ("grpc", "dagster-daemon") for process in project.named(word)}
    server = psutil.Process(int((project.state / "postgres" / "postmaster.pid").read_text().split()[0]))
    machine = [*up.family(), server, *server.children()]
    try:
        for process in machine:
            with suppress(psutil.NoSuchProcess):  # a connection of the server may end at any time
                process.suspend()
        time.sleep(seconds)
    finally:
        for process in machine:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    at = time.time()
    until(lambda: last_tick(project, "backfill_request_sensor") > at)
    api = f"http://127.0.0.1:{project.api_port}"
    until(lambda: is_healthy(api))
    assert {process.pid for word in ("grpc", "dagster-daemon") for process in project.named(word)} == before


def test_ctrl_c_twice_ends_all_that_it_started_and_nothing_else(
    project: Project, up: Running, bystander: psutil.Popen
) -> None:
    family = up.family()
    done = up.end(signal.SIGINT, signal.SIGINT)
    assert done.code == 130
    assert "Traceback" not in done.err  # alerts on the processes that were killed above go to the log
    assert not [process for process in family if is_alive(process)]
    assert_gone(project)
    assert project.postgres.is_running()
    assert is_alive(bystander)


def test_down_ends_what_a_killed_up_that_had_waited_for_the_daemon_left(
    project: Project, bystander: psutil.Popen
) -> None:
    with daemon_lock(project.settings).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # like a backfill that has started the daemon
        running = project.start("market-data", "up")
        running.says("Waiting for another command to end")
    running.says(READY)
    running.end(signal.SIGKILL)
    assert project.processes()
    assert is_open(project.ui_port)
    done = project.run("market-data", "down")
    assert (done.code, done.err) == (0, "")
    assert "market-data up" in done.out
    assert "PostgreSQL" in done.out
    assert_gone(project)
    assert not project.postgres.is_running()
    assert is_alive(bystander)


@pytest.fixture(scope="module")
def in_suspense(project: Project) -> Iterator[Callable[[], Running]]:
    """Return a function that starts a backfill whose run waits for a vendor that never answers."""
    [port] = free_ports(1)
    silent = psutil.Popen([sys.executable, "-c", _SILENT, str(port)], stdin=subprocess.PIPE)
    until(lambda: is_open(port))
    vendor = {"POLYGON_BASE_URL": f"http://127.0.0.1:{port}", "POLYGON_API_KEY": "a-key-long-enough"}
    with (project.root / ".env").open("a") as lines:
        lines.writelines(f"{name}={value}\n" for name, value in vendor.items())

    def start() -> Running:
        project.postgres.ensure_running()
        running = project.start("market-data", "backfill")
        running.says("Backfill  5 series")
        until(lambda: dg.DagsterRunStatus.STARTED in statuses(project))
        return running

    yield start
    silent.kill()


def test_sigterm_in_the_middle_of_a_backfill_cancels_its_runs(
    project: Project, in_suspense: Callable[[], Running]
) -> None:
    running = in_suspense()
    [daemon] = project.named("dagster-daemon")
    daemon.kill()
    running.says("dagster-daemon answers again after")  # what dies during a load is brought back
    assert project.named("dagster-daemon") != [daemon]
    done = running.end(signal.SIGTERM)
    assert (done.code, done.err) == (130, "")
    assert statuses(project) == [dg.DagsterRunStatus.CANCELED]
    assert all(run.is_finished or run.status is dg.DagsterRunStatus.QUEUED for run in project.runs())
    assert_gone(project)


def test_a_database_lost_during_a_backfill_is_reported_in_one_sentence(
    project: Project, in_suspense: Callable[[], Running]
) -> None:
    running = in_suspense()
    server = int((project.state / "postgres" / "postmaster.pid").read_text().split()[0])
    with closing(psycopg.connect(project.settings.owner_url)) as connection:
        connection.execute("lock table market_data.ingest_log")  # the display reads it: it is lost in a statement
        until(lambda: connection.execute("select 1 from pg_locks where not granted").fetchone())
        psutil.Process(server).send_signal(signal.SIGQUIT)  # an immediate shutdown, as in a crash
    done = running.end()
    assert done.code == 1
    assert "unning?" in sentence(done)
    assert_gone(project)


def statuses(project: Project) -> list[dg.DagsterRunStatus]:
    return [run.status for run in project.runs(trigger="backfill")]


# A vendor that accepts every connection and never answers.
_SILENT = """
import socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
kept = []
while True:
    kept.append(listening.accept())
"""
