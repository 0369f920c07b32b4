"""Which daemon does a command's work, when others may serve the same Dagster storage: a real instance, real locks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._daemon.types import DaemonHeartbeat
from rich.console import Console

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.orchestration.dagster_internals import HEARTBEAT_TOLERANCE_SECONDS, StoredDagsterState
from market_data_pipeline.orchestration.serving_daemon import serving_daemon, this_machines
from market_data_pipeline.runtime import daemon as module
from market_data_pipeline.runtime.daemon import Daemon, daemon_lock
from market_data_pipeline.runtime.daemon_watch import DaemonWatch
from market_data_pipeline.runtime.processes import Processes
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.conftest import OWN_SERVER, SESSION
from market_data_pipeline_tests.waiting import until


def beat(instance: dg.DagsterInstance, ago: float = 0.0, sender: str = "another") -> None:
    heartbeat = DaemonHeartbeat(time.time() - ago, "QUEUED_RUN_COORDINATOR", sender, [])
    instance.add_daemon_heartbeat(heartbeat)


@contextmanager
def dagster_daemon(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start `dagster-daemon` as Dagster's own commands do."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "--empty-workspace", *words]
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class Recorded(Daemon):
    """A daemon that notes that it would start its processes."""

    started = False

    def _start(self) -> None:
        self.started = True


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=200)


@pytest.fixture
def settings(tmp_path: Path, dagster_url: str) -> Settings:
    made = Settings(project_root=tmp_path, dagster_postgres_url=dagster_url)
    made.state_dir.mkdir(exist_ok=True)
    return made


def daemon(settings: Settings, console: Console, instance: dg.DagsterInstance) -> Recorded:
    return Recorded(settings, console, Processes(settings.state_dir, "backfill"), instance)


def test_the_lock_is_that_of_the_storage_not_of_the_folder(settings: Settings, tmp_path: Path) -> None:
    other = Settings(project_root=tmp_path, dagster_postgres_url="postgresql+psycopg2://u:p@elsewhere/dagster")
    assert daemon_lock(settings).parent == daemon_lock(other).parent
    assert daemon_lock(settings) != daemon_lock(other)
    assert "elsewhere" not in str(daemon_lock(other))


def test_a_storage_that_no_daemon_serves_gets_one_at_once(
    settings: Settings, console: Console, instance: dg.DagsterInstance
) -> None:
    beat(instance, ago=HEARTBEAT_TOLERANCE_SECONDS + 1)
    with daemon(settings, console, instance) as ours:
        ours.share()
        assert ours.started


def test_a_daemon_that_others_run_does_the_work_and_that_is_said_once(
    settings: Settings, console: Console, instance: dg.DagsterInstance
) -> None:
    beat(instance, ago=20)
    with daemon(settings, console, instance) as ours:
        ours.share()
        ours.share()
        beat(instance)
        ours.share()
        ours.share()
        assert not ours.started
    said = console.export_text()
    assert said.count("Checking whether another Dagster daemon serves this storage") == 1
    assert said.count("using another one that serves this Dagster storage") == 1


def test_a_second_daemon_is_refused_in_one_sentence(
    settings: Settings, console: Console, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(instance, ago=20)
    monkeypatch.setattr("time.sleep", lambda _: beat(instance))  # the other daemon goes on meanwhile
    with (
        daemon(settings, console, instance) as ours,
        pytest.raises(UsageError, match=r"^A Dagster daemon, known by its heartbeats, already serves this project's"),
    ):
        ours.own()


def test_heartbeats_of_a_daemon_that_is_gone_are_waited_for_only_so_long(
    settings: Settings, console: Console, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(instance, ago=20)
    monkeypatch.setattr(module, "_NEXT_HEARTBEAT_SECONDS", 0.0)
    with daemon(settings, console, instance) as ours:
        ours.own()
        assert ours.started


def test_whoever_starts_a_second_daemon_is_told_which_one_to_stop_and_it_does_not_start(
    dagster_home: Path, settings: Settings, console: Console, instance: dg.DagsterInstance
) -> None:
    url = settings.dagster_postgres_url
    with dagster_daemon(dagster_home) as first:
        until(lambda: serving_daemon(url))
        assert serving_daemon(url) == this_machines(first.pid)
        which = f"A Dagster daemon, process {first.pid} on this machine, already serves this project's Dagster storage"

        with dagster_daemon(dagster_home) as second:
            _, said = second.communicate()
        assert second.returncode == 1
        assert which in said
        assert "Traceback" not in said

        with pytest.raises(UsageError, match=which), daemon(settings, console, instance) as ours:
            ours.own()
        with daemon(settings, console, instance) as guest:
            guest.share()
            assert not guest.started
        assert f"using another one that serves this Dagster storage: process {first.pid}" in console.export_text()

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MARKET_DATA_PROJECT_ROOT", str(dagster_home))
            wrapper = [sys.executable, "-P", "-c", "from market_data_pipeline.cli.dagster import main; main()", "dev"]
            refused = subprocess.run(wrapper, cwd=dagster_home, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(which)

        first.kill()
        first.wait()
        until(lambda: serving_daemon(url) is None)


def test_a_second_daemon_that_takes_no_lock_is_noticed_by_its_heartbeats_and_told_once_with_its_end(
    dagster_home: Path, settings: Settings, instance: dg.DagsterInstance
) -> None:
    state = StoredDagsterState(dagster_home, settings.dagster_postgres_url)
    with webhook() as hook:
        told = settings.model_copy(update={"alert_urls": [hook.address()]})
        watch = DaemonWatch(told, state, lambda: 4711, lambda _: None, every=0.0)

        def looks(*senders: str) -> list[str]:
            for each in senders:
                beat(instance, sender=each)
                watch.check()
            return hook.titles()

        beat(instance, ago=50, sender="the one before")
        assert looks("ours", "ours", "ours") == []
        assert state.second_daemon() is None

        assert looks("foreign", "ours", "foreign") == ["A second Dagster daemon serves this project's storage"]
        assert state.second_daemon()

        [over] = looks("ours", "ours", "ours", "ours", "ours", "ours")
        assert over.startswith("One Dagster daemon serves this project's storage again after ")
        assert state.second_daemon() is None
    state.close()


def test_a_daemon_that_was_restarted_is_not_two(
    dagster_home: Path, settings: Settings, instance: dg.DagsterInstance
) -> None:
    state, pid = StoredDagsterState(dagster_home, settings.dagster_postgres_url), [1]
    with webhook() as hook:
        told = settings.model_copy(update={"alert_urls": [hook.address()]})
        watch = DaemonWatch(told, state, lambda: pid[0], lambda _: None, every=0.0)
        for process, sender in enumerate(("one", "two", "three")):
            pid[0] = process
            for _ in range(3):
                watch.check()
                beat(instance, sender=sender)
            watch.check()
        assert hook.titles() == []
    state.close()


class Embedded(Settings):
    """Settings whose embedded server is that of the test session."""

    @property
    def state_dir(self) -> Path:
        return Path(os.environ[SESSION])


@pytest.fixture
def embedded(tmp_path: Path, dagster_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with Dagster's storage on an embedded server, on a machine where only this test runs."""
    if OWN_SERVER in os.environ:
        pytest.skip("the server is another one's")
    monkeypatch.setattr(psutil, "process_iter", lambda _: children())
    return Embedded(project_root=tmp_path, dagster_postgres_url=dagster_url)


def children() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # another test's, which has ended
            each.info = {"cmdline": each.cmdline(), "environ": each.environ()}
            found.append(each)
    return found


CHECKING = "Checking whether another Dagster daemon serves this storage"


def test_on_the_embedded_server_the_heartbeats_of_a_daemon_that_is_gone_are_not_waited_for(
    embedded: Settings, console: Console, instance: dg.DagsterInstance
) -> None:
    beat(instance)
    with daemon(embedded, console, instance) as ours:
        ours.share()
        assert ours.started
    assert CHECKING not in console.export_text()


@pytest.mark.parametrize("same", [True, False], ids=["this storage", "another storage"])
def test_a_process_that_may_be_the_daemon_of_this_storage_is_waited_for(
    embedded: Settings, console: Console, instance: dg.DagsterInstance, same: bool
) -> None:
    beat(instance)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "dagster-daemon"]
    variables = {**os.environ, "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://elsewhere/dagster"}
    if same:
        del variables["DAGSTER_POSTGRES_URL"]  # Dagster reads it from the project's .env
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=variables), daemon(embedded, console, instance) as ours:
        ours.share()
        assert ours.started is not same
    assert (CHECKING in console.export_text()) is same
