"""Which daemon does a command's work, when others may serve the same Dagster storage: a real instance, real locks."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from rich.console import Console

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.orchestration.dagster_internals import HEARTBEAT_TOLERANCE_SECONDS
from market_data_pipeline.runtime import daemon as module
from market_data_pipeline.runtime.daemon import Daemon, daemon_lock
from market_data_pipeline.runtime.processes import Processes
from market_data_pipeline.settings import Settings


def beat(instance: dg.DagsterInstance, ago: float = 0.0) -> None:
    heartbeat = DaemonHeartbeat(time.time() - ago, "QUEUED_RUN_COORDINATOR", "another", [])
    instance.add_daemon_heartbeat(heartbeat)


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
        pytest.raises(UsageError, match="Another Dagster daemon serves this project's Dagster storage"),
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
