"""A running API on a database of its own, and rows in it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import requests
import uvicorn
from dagster._daemon.types import DaemonHeartbeat

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.orchestration.cadences import SCHEDULES, SENSORS
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.serving import database
from market_data_pipeline.serving.app import create_app
from market_data_pipeline.serving.cache import CHANNEL, ResponseCache
from market_data_pipeline.serving.connections import listening, server_options
from market_data_pipeline.serving.middleware import RequestMiddleware
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.project import LOCATION
from market_data_pipeline.store.connection import open_connection
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.waiting import until

FEATURES = "/api/v1/features/quant"
BARS = "/api/v1/bars"
PATIENCE: Final = 60  # seconds for an answer, a statement and a place in a lane: a busy machine takes a tenth of that
_marks = count()


@pytest.fixture(scope="module", autouse=True)
def _patient_api() -> Iterator[None]:
    """Let the API wait for a busy server as long as the tests wait for the API; tests of its limits set them lower."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("CONNECT_TIMEOUT_SECONDS", "LANE_TIMEOUT_SECONDS"):
            patch.setattr(database, limit, PATIENCE)
        for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            patch.setitem(database._SETTINGS, limit, f"{PATIENCE}s")  # type: ignore[misc]
        yield


class MovableClock(Settings):
    """Settings whose clock a test moves; the database's clock stays at `as_of`."""

    def clock(self) -> datetime:
        return _now[0]


_now = [NOW]


class Api:
    """A client of one running server."""

    def __init__(self, server: uvicorn.Server, cache: ResponseCache, database_url: str) -> None:
        self.base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        self.session = requests.Session()
        self.session.trust_env = False
        self._server = server
        self._cache = cache
        self._database_url = database_url

    def get(self, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> requests.Response:
        return self.session.get(self.base + path, params=params, headers=headers, timeout=PATIENCE)

    def wait_for_cache(self) -> None:
        """Wait until the API keeps answers and has heard of every commit so far.

        What it hears of a commit later than the committer returns would drop an answer that was read after it.
        """
        mark = Series(f"MARK{next(_marks)}", Timeframe.M5)

        def is_heard() -> bool:
            connection.execute("select pg_notify(%s, %s)", (CHANNEL, mark.partition_key))  # after those of all commits
            version = self._cache.version(mark)
            return version is not None and version.commits > 0

        with open_connection(self._database_url, autocommit=True) as connection:
            until(is_heard)

    @contextmanager
    def loses_its_cache(self) -> Iterator[None]:
        """Wait at the end of the block until the cache has been emptied, even if it is open again by then."""
        of_any = Series("ANY", Timeframe.M5)
        before = self._cache.version(of_any)
        assert before is not None
        yield
        until(lambda: (now := self._cache.version(of_any)) is None or now.epoch != before.epoch)

    def requests_under_way(self) -> int:
        """Return how many requests the API has read and not answered."""
        return len(self._server.server_state.tasks)

    def hits(self) -> float:
        line = next(
            line for line in self.get("/metrics").text.splitlines() if line.startswith("market_data_cache_hits_")
        )
        return float(line.split()[1])


def dagster_state(settings: Settings) -> StoredDagsterState:
    return StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)


@contextmanager
def serve(settings: Settings) -> Iterator[Api]:
    app = create_app(settings, dagster_state(settings))
    (cache,) = [one.kwargs["cache"] for one in app.user_middleware if one.cls is RequestMiddleware]
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", **server_options())
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(listening(config),), daemon=True)
    thread.start()
    until(lambda: server.started)
    client = Api(server, cache, settings.database_url)
    try:
        yield client
    finally:
        client.session.close()
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture
def seed(database_url: str) -> Iterator[Seed]:
    rows = Seed(database_url)
    yield rows
    rows.connection.close()


def evaluate(instance: dg.DagsterInstance, at: datetime | None = None, *, sensors_at: datetime | None = None) -> None:
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
                ((sensors_at if kind is InstigatorType.SENSOR else None) or at or datetime.now(UTC)).timestamp(),
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
