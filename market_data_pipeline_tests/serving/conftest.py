"""A running API on a database of its own, and rows in it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests
import uvicorn
from dagster._daemon.types import DaemonHeartbeat

from market_data_pipeline.orchestration.cadences import SCHEDULES, SENSORS
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.serving.app import create_app
from market_data_pipeline.serving.connections import listening, server_options
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.project import LOCATION
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.waiting import until

FEATURES = "/api/v1/features/quant"
BARS = "/api/v1/bars"


class MovableClock(Settings):
    """Settings whose clock a test moves; the database's clock stays at `as_of`."""

    def clock(self) -> datetime:
        return _now[0]


_now = [NOW]


class Api:
    """A client of one running server."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> requests.Response:
        return self.session.get(self.base + path, params=params, headers=headers, timeout=10)

    def wait_for_cache(self) -> None:
        """Wait until the API listens for commits and therefore keeps answers."""
        until(lambda: "market_data_cache_open 1.0" in self.get("/metrics").text)

    def hits(self) -> float:
        line = next(
            line for line in self.get("/metrics").text.splitlines() if line.startswith("market_data_cache_hits_")
        )
        return float(line.split()[1])


def dagster_state(settings: Settings) -> StoredDagsterState:
    return StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)


@contextmanager
def serve(settings: Settings) -> Iterator[Api]:
    config = uvicorn.Config(
        create_app(settings, dagster_state(settings)), host="127.0.0.1", port=0, log_level="error", **server_options()
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(listening(config),), daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    client = Api(f"http://127.0.0.1:{port}")
    try:
        yield client
    finally:
        client.session.close()
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def seed(database_url: str) -> Iterator[Seed]:
    rows = Seed(database_url)
    yield rows
    rows.connection.close()


def evaluate(instance: dg.DagsterInstance, at: datetime | None = None) -> None:
    """Store what the daemon does when it has evaluated every schedule and sensor, by default just now."""
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
    from dagster._core.scheduler.instigation import (
        InstigatorState,
        InstigatorStatus,
        ScheduleInstigatorData,
        TickData,
        TickStatus,
    )

    repository, running = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "__repository__"), []
    for name, (cron, _) in SCHEDULES.items():
        data = ScheduleInstigatorData(cron, start_timestamp=time.time())
        running.append((repository.get_instigator_origin(name), InstigatorType.SCHEDULE, data))
    running += [(repository.get_instigator_origin(name), InstigatorType.SENSOR, None) for name in SENSORS]
    for origin, kind, data in running:
        state = InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, data)
        instance.add_instigator_state(state)
        instance.create_tick(
            TickData(
                origin.get_id(),
                origin.instigator_name,
                kind,
                TickStatus.SKIPPED,
                (at or datetime.now(UTC)).timestamp(),
                selector_id=state.selector_id,
            )
        )


@pytest.fixture(scope="session")
def new_dagster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an instance that has never run anything; making one takes two seconds, copying it almost none."""
    home = tmp_path_factory.mktemp("dagster")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_run_records(limit=1)
        instance.all_instigator_state()
    return home


@pytest.fixture
def dagster_instance(new_dagster_home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in the project's folder, all of whose daemons have just sent a heartbeat."""
    with beating(new_dagster_home, tmp_path) as instance:
        yield instance


@contextmanager
def beating(new_dagster_home: Path, folder: Path) -> Iterator[dg.DagsterInstance]:
    """Make an instance in a folder, all of whose daemons have just sent a heartbeat."""
    shutil.copytree(new_dagster_home, folder, dirs_exist_ok=True)
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        for daemon in instance.get_required_daemon_types():
            beat(instance, daemon, time.time())
        yield instance


def beat(instance: dg.DagsterInstance, daemon: str, at: float) -> None:
    instance.add_daemon_heartbeat(DaemonHeartbeat(timestamp=at, daemon_type=daemon, daemon_id="test", errors=[]))


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> MovableClock:
    _now[0] = NOW
    return MovableClock(database_url=database_url, project_root=tmp_path, as_of=NOW)


@pytest.fixture
def move_clock() -> Callable[[datetime], None]:
    def move(to: datetime) -> None:
        _now[0] = to

    return move


@pytest.fixture
def api(settings: MovableClock) -> Iterator[Api]:
    with serve(settings) as running:
        yield running
