"""A scratch project belongs to one command and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure import scratch as scratch_module
from market_data_pipeline.measure.scratch import _databases, free_ports, remove_leftovers, scratch_project
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline.store.connection import libpq_url
from market_data_pipeline_tests.conftest import REPOSITORY

UNIVERSE = {Tier.CRITICAL: ("AAPL",), Tier.STANDARD: (), Tier.LOW_PRIORITY: ()}


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "dagster.yaml").write_text(
        "run_launcher: {module: elsewhere, class: Launcher}\nstorage: {sqlite: {}}\n"
    )
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("POLYGON_API_KEY", "secret-key")
    monkeypatch.setenv("MARKET_DATA_ALERT_URLS", "json://alerts.example/x")
    monkeypatch.setenv("MARKET_DATA_AS_OF", "2026-03-11T15:30:00Z")
    return load_settings()


@contextmanager
def scratch(settings: Settings) -> Iterator[Settings]:
    with scratch_project(settings, "test", universe=UNIVERSE, own_server=False, MARKET_DATA_HISTORY_DAYS=7) as made:
        yield made


def databases(url: str, pid: int) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select datname from pg_database where datname like %s", (f"market_data_scratch_{pid}_%",)
        )
        return [name for (name,) in rows]


def test_it_has_databases_of_its_own_and_the_users_vendor_and_sends_no_alerts(settings: Settings) -> None:
    with scratch(settings) as made:
        assert sorted(databases(settings.database_url, os.getpid())) == sorted(
            url.rsplit("/", 1)[1].split("?")[0] for url in (made.database_url, made.dagster_postgres_url)
        )
        psycopg.connect(made.database_url).close()
        assert made.api_key == settings.api_key
        assert (made.base_url, made.plan) == (settings.base_url, settings.plan)
        assert (made.alert_urls, made.as_of, made.history_days) == ([], None, 7)
        assert made.project_root == Path.cwd() != settings.project_root
        files = [file for file in made.project_root.rglob("*") if file.is_file() and "sql" not in file.parts]
        text = "".join(file.read_text() for file in files)
        assert "secret-key" not in text
        assert "elsewhere" not in text  # runs stay in this machine's processes
        assert "sqlite" not in text


def test_another_command_that_starts_meanwhile_on_the_server_leaves_its_databases_alone(
    settings: Settings, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = settings.model_copy(update={"project_root": tmp_path_factory.mktemp("other")})
    with scratch(settings) as made, _databases(other) as theirs:
        for url in (made.database_url, made.dagster_postgres_url, *theirs.values()):
            psycopg.connect(libpq_url(url)).close()
        assert len(databases(postgres_url, os.getpid())) == 4


def test_a_database_that_another_command_drops_before_it_is_opened_is_created_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = scratch_module._create

    def create_and_lose(settings: Settings, name: str) -> None:
        created(settings, name)
        if losses:
            losses.pop()
            with scratch_module._administration(settings) as connection:
                scratch_module._drop_unused(connection)

    losses = [1, 2]
    monkeypatch.setattr(scratch_module, "_create", create_and_lose)
    with scratch(settings) as made:
        psycopg.connect(made.database_url).close()
    assert losses == []


def test_nothing_of_it_is_left_when_its_command_fails(settings: Settings, postgres_url: str) -> None:
    before = dict(os.environ), Path.cwd()

    def work() -> None:
        with scratch(settings) as made, psycopg.connect(made.database_url):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (dict(os.environ), Path.cwd()) == before
    assert databases(postgres_url, os.getpid()) == []
    assert list(settings.state_dir.rglob("*")) == []


def test_what_a_killed_command_left_is_removed_by_the_next(settings: Settings, postgres_url: str) -> None:
    code = """
import sys
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.measure.test_scratch import scratch
with scratch(load_settings()) as made:
    print("ready", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        (folder,) = (settings.state_dir / "scratch").iterdir()
        remove_leftovers(settings)  # it still runs
        assert folder.is_dir()
        assert len(databases(postgres_url, process.pid)) == 2
        process.send_signal(signal.SIGKILL)
    assert len(databases(postgres_url, process.pid)) == 2
    with scratch(settings):
        assert not folder.exists()
        assert databases(postgres_url, process.pid) == []


def test_a_server_on_which_no_database_can_be_created_is_named_with_reason_and_remedy(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = f"scratch_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        administrator.execute(f"create role {login} login password 'secret'")
        try:
            may_create_none = sa.make_url(postgres_url).set(username=login, password="secret")
            monkeypatch.setenv("DATABASE_URL", may_create_none.render_as_string(hide_password=False))
            with pytest.raises(
                ConfigurationError, match=r"permission denied to create database\. Grant the role CREATEDB"
            ):
                scratch(load_settings()).__enter__()
        finally:
            administrator.execute(f"drop role {login}")
    assert list(settings.state_dir.rglob("*")) == []


NEXT_PORT = """
import sys
from market_data_pipeline.measure import scratch
tried = iter(range(int(sys.argv[1]), 65_536))
scratch.secrets.choice = lambda _: next(tried)
print(*scratch.free_ports(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that end with their process")
def test_a_port_is_given_to_one_process_and_is_none_that_the_system_gives_away() -> None:
    [port] = free_ports(1)
    command = [sys.executable, "-c", NEXT_PORT, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > port
    if (given_away := Path("/proc/sys/net/ipv4/ip_local_port_range")).exists():
        assert port < int(given_away.read_text().split()[0])
