"""A market database that is lost and returns, alone or with Dagster's storage: what a real webhook receives."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psutil
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.process_identity import is_alive
from market_data_pipeline.runtime.database_watch import DatabaseWatch
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.project import DAGSTER_DATABASE, ROLE, local_url, socket_dir, state_dir
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.end_to_end.conftest import folder
from market_data_pipeline_tests.orchestration.conftest import REPOSITORY, StandIn, psycopg2_url
from market_data_pipeline_tests.orchestration.test_run_liveness import started_run
from market_data_pipeline_tests.server_clients import end_clients
from market_data_pipeline_tests.waiting import until


class Watch:
    """The staleness sensor's ticks, each with the cursor of the one before, and a gate before its database."""

    def __init__(self, instance: dg.DagsterInstance, url: str, postgres_url: str, hook: Webhook) -> None:
        self.instance = instance
        self.postgres_url = postgres_url
        self.name = urlsplit(url).path[1:]
        self.pipeline = StandIn(url=url, alert_urls=[hook.address()])
        self.definitions = build_defs(resource_overrides={"pipeline": self.pipeline})
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            self.instance, cursor=self.cursor, definitions=self.definitions, resources={"pipeline": self.pipeline}
        )
        result: Any = self.definitions.get_repository_def().get_sensor_def("staleness_sensor")(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result

    def gate(self, *, is_open: bool) -> None:
        """Refuse connections and end the present ones, or accept them again."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("alter database {} allow_connections {}").format(sql.Identifier(self.name), is_open)
            )
        if not is_open:
            end_clients(self.postgres_url, database=self.name)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


@pytest.fixture
def watch(
    registered: dg.DagsterInstance, database: sa.Engine, database_url: str, postgres_url: str, hook: Webhook
) -> Watch:
    made = Watch(registered, database_url, postgres_url, hook)
    made.tick()
    hook.titles()
    return made


def test_a_lost_database_and_its_return_make_one_alert_each_for_all_tiers(watch: Watch, hook: Webhook) -> None:
    watch.gate(is_open=False)
    for _ in range(3):
        assert "not currently accepting connections" in str(watch.tick().skip_reason)
    (message,) = hook.received
    assert message["title"] == "The market database cannot be reached"
    assert watch.name in message["message"]
    assert "`market-data up` starts the project's own" in message["message"]
    hook.titles()

    watch.gate(is_open=True)
    for _ in range(2):
        assert watch.tick().skip_reason is None
    (title,) = hook.titles()
    assert title.startswith("The market database answers again after ")


def test_an_alert_that_is_not_delivered_is_retried_at_the_next_tick(watch: Watch, hook: Webhook) -> None:
    watch.gate(is_open=False)
    hook.status = 503
    watch.tick()
    hook.status = 200
    watch.tick()
    assert hook.titles() == ["The market database cannot be reached"]
    watch.gate(is_open=True)
    hook.status = 503
    watch.tick()
    hook.status = 200
    watch.tick()
    watch.tick()
    (title,) = hook.titles()
    assert title.startswith("The market database answers again after ")


def test_a_cursor_in_another_format_is_logged_and_reset(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    for cursor in ("{", "[]", "17", '{"attempts": {"AAPL|5m": 3}}', '{"loss": "long"}'):
        watch.cursor = cursor
        caplog.clear()
        assert len(watch.tick().asset_events) == 3, cursor
        assert "cannot be read and is reset" in caplog.text, cursor
    caplog.clear()
    assert not watch.tick().asset_events  # and remembers from here on
    assert "cannot be read" not in caplog.text


class SharedServer:
    """A server of its own with market data and Dagster's storage, which may die."""

    def __init__(self, state: Path) -> None:
        self.server = EmbeddedPostgres(state / "postgres", durable=False)
        self.server.ensure_running()
        migrate_database(self.server.owner_url, SQL, login=ROLE)

    @property
    def dagster_url(self) -> str:
        """The psycopg2 URL of Dagster's storage on the server."""
        return psycopg2_url(local_url(self.server.state_dir, DAGSTER_DATABASE))

    def dies(self) -> None:
        """Kill its first process, as a machine out of memory does."""
        pid = int((self.server.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        process.send_signal(signal.SIGKILL)
        until(lambda: not is_alive(process))

    def stops(self) -> None:
        """Stop it in an orderly way."""
        self.server.stop()

    def starts(self) -> None:
        self.server.ensure_running()


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedServer]:
    with folder() as root:
        state = state_dir(root)
        state.mkdir(mode=0o700)
        made = SharedServer(state)
        yield made
        made.stops()


@pytest.fixture
def shared_watch(
    shared: SharedServer, hook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watch]:
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", shared.dagster_url)
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        made = Watch(instance, shared.server.url, shared.server.owner_url, hook)
        made.tick()
        hook.titles()
        yield made


def test_a_server_that_died_with_dagsters_storage_raises_an_alert_when_it_is_back(
    shared: SharedServer, shared_watch: Watch, hook: Webhook
) -> None:
    shared.dies()
    shared.starts()
    shared_watch.tick()
    shared_watch.tick()
    (message,) = hook.received
    assert message["title"].startswith("The market database answers again after ")
    assert message["message"].startswith("It was last seen")


def test_a_server_that_was_stopped_and_started_raises_an_alert_only_if_the_sensors_process_went_on_meanwhile(
    shared: SharedServer, shared_watch: Watch, hook: Webhook
) -> None:
    shared.stops()
    shared.starts()
    shared_watch.tick()
    (title,) = hook.titles()
    assert title.startswith("The market database answers again after ")

    shared.stops()
    shared.starts()
    remembered = json.loads(shared_watch.cursor or "")
    remembered["server"][0] = psutil.Process().create_time() - 60  # by the process before this one
    shared_watch.cursor = json.dumps(remembered)
    shared_watch.tick()
    assert hook.titles() == []


def test_runs_that_a_dying_server_cut_off_make_one_alert(
    shared: SharedServer, shared_watch: Watch, hook: Webhook
) -> None:
    instance = shared_watch.instance
    runs = [started_run(instance) for _ in range(3)]
    for run_id in runs:
        instance.add_run_tags(run_id, {"dagster/max_retries": "0"})  # a run that is retried raises no alert
    shared.dies()
    shared.starts()
    shared_watch.tick()
    hook.titles()
    sensor = shared_watch.definitions.get_repository_def().get_sensor_def("run_failure_alert_sensor")
    for run_id in runs:
        event = instance.report_run_failed(instance.get_run_by_id(run_id), "Its process is gone.")  # type: ignore[arg-type]
        context = dg.build_run_status_sensor_context(
            sensor_name=sensor.name, dagster_instance=instance, dagster_run=instance.get_run_by_id(run_id),  # type: ignore[arg-type]
            dagster_event=event, resources={"pipeline": shared_watch.pipeline},
        ).for_run_failure()  # fmt: skip
        sensor(context)
    assert hook.titles() == []
    shared_watch.tick()
    shared_watch.tick()
    assert hook.titles() == ["3 runs failed because the database was lost"]


def test_the_watch_beside_dagster_alerts_a_lost_server_meanwhile(shared: SharedServer, hook: Webhook) -> None:
    said: list[str] = []
    settings = Settings(
        database_url=shared.server.url,
        dagster_postgres_url=shared.dagster_url,
        alert_urls=[hook.address()],
    )
    watch = DatabaseWatch(settings, said.append, every=0.0)
    watch.check()
    shared.dies()
    watch.check()
    assert said == []  # it may be starting again
    for _ in range(3):
        watch.check()
    shared.starts()
    watch.check()
    assert hook.titles() == ["The market database cannot be reached"]
    assert [line.partition(" ")[0] for line in said] == ["The", "The"]
    assert "The database cannot be reached: PostgreSQL at" in said[0]
    assert "The database answers again after" in said[1]


def test_the_watch_restarts_the_projects_own_server_when_it_died(shared: SharedServer, hook: Webhook) -> None:
    settings = Settings(project_root=shared.server.state_dir.parent, alert_urls=[hook.address()])
    assert settings.embedded_database
    said: list[str] = []
    watch = DatabaseWatch(settings, said.append, every=0.0)
    watch.check()
    shared.dies()
    watch.check()
    watch.check()
    watch.check()
    assert len(said) == 2
    assert "answers again" in said[-1]
    assert shared.server.is_running()


def test_the_watch_restarts_a_server_that_waits_for_its_clients_to_leave(shared: SharedServer, hook: Webhook) -> None:
    settings = Settings(project_root=shared.server.state_dir.parent, alert_urls=[hook.address()])
    watch = DatabaseWatch(settings, lambda _: None, every=0.0)
    watch.check()
    process = shared.server.process()
    assert process is not None
    with psycopg.connect(shared.server.url) as client:  # as ours do, which stay connected
        process.send_signal(signal.SIGTERM)
        until(lambda: client.closed or not _accepts(shared.server.url))
        for _ in range(3):
            watch.check()
        assert _accepts(shared.server.url)
    assert shared.server.process() != process


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_the_watch_alerts_the_return_of_a_server_to_which_only_the_connection_was_lost(
    shared: SharedServer, hook: Webhook
) -> None:
    settings = Settings(
        database_url=shared.server.url,
        dagster_postgres_url=shared.dagster_url,
        alert_urls=[hook.address()],
    )
    watch = DatabaseWatch(settings, lambda _: None, every=0.0)
    watch.check()
    [socket] = [entry for entry in socket_dir(shared.server.state_dir).glob(".s.PGSQL.*") if entry.suffix != ".lock"]
    hidden = socket.rename(socket.with_name("hidden"))
    watch.check()
    watch.check()
    hidden.rename(socket)
    watch.check()
    first, second = hook.titles()
    assert first == "The market database cannot be reached"
    assert second.startswith("The market database answers again after ")
