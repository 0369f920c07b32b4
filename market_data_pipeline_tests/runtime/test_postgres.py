"""The embedded PostgreSQL as a process: who can reach it, what it survives, what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.runtime import postgres_cluster as cluster
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.settings import project
from market_data_pipeline.store.connection import engine, open_async_connection, open_connection
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL, in_memory
from market_data_pipeline_tests.waiting import until

START = """
import sys
from pathlib import Path
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1]), durable=False).ensure_running(), flush=True)
"""
pytestmark = pytest.mark.database
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """The state folder of a server that was created and stopped: copying it is quicker than creating another."""
    made = Path(tempfile.mkdtemp(prefix="market-data-pg-", dir=in_memory())).resolve()
    server = EmbeddedPostgres(made / ".market-data" / "postgres", durable=False)
    server.ensure_running()
    server.stop()
    yield server.state_dir
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project's folder, its path short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="market-data-pg-", dir=in_memory())).resolve()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def fresh(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server that does not exist yet."""
    made = EmbeddedPostgres(folder / ".market-data" / "postgres", durable=False)
    yield made
    made.stop()


@pytest.fixture
def server(fresh: EmbeddedPostgres, prepared: Path) -> EmbeddedPostgres:
    """A server that exists and does not run."""
    subprocess.run(["cp", "-a", prepared, fresh.state_dir], check=True)
    return fresh


def _ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def _owner(server: EmbeddedPostgres) -> str:
    server.ensure_running()
    return server.owner_url


def _pid(server: EmbeddedPostgres) -> int:
    return int((server.data_dir / "postmaster.pid").read_text().splitlines()[0])


def test_it_starts_twice_stops_twice_and_keeps_its_url(fresh: EmbeddedPostgres) -> None:
    assert not fresh.is_running()
    fresh.stop()

    url = fresh.ensure_running()
    first = _pid(fresh)
    assert fresh.ensure_running() == url == fresh.url
    assert _pid(fresh) == first
    assert _ask(url, "select current_database()") == "market_data"
    assert _ask(project.local_url(fresh.state_dir, "dagster"), "select current_database()") == "dagster"
    assert fresh.is_running()

    fresh.stop()
    fresh.stop()
    assert not fresh.is_running()
    assert fresh.ensure_running() == url


def test_only_the_user_who_started_it_can_reach_it(server: EmbeddedPostgres) -> None:
    url = server.ensure_running()
    sockets = Path(parse_qs(urlsplit(url).query)["host"][0])

    assert _ask(url, "show listen_addresses") == ""
    for private in (sockets, server.data_dir):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.state_dir / "postgres.password").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.state_dir.stat().st_mode) & 0o066 == 0
    for intruder in (
        url.replace(str(urlsplit(url).password), "wrong"),
        url.replace("market_data:", "postgres:", 1),
        url.replace(f":{urlsplit(url).password}", ""),
    ):
        with pytest.raises(psycopg.OperationalError, match=r"password|no pg_hba\.conf entry"):
            psycopg.connect(intruder)


@needs_root
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs a Python that another user can run")
def test_another_user_cannot_even_open_its_socket(server: EmbeddedPostgres) -> None:
    url = server.ensure_running()
    sockets = parse_qs(urlsplit(url).query)["host"][0]
    program = f"import socket; socket.socket(socket.AF_UNIX).connect('{sockets}/.s.PGSQL.5432')"
    intruder = next(entry for entry in pwd.getpwall() if entry.pw_uid not in {0, server.data_dir.stat().st_uid})

    done = subprocess.run(
        ["/usr/bin/python3", "-c", program], check=False, capture_output=True, text=True,
        user=intruder.pw_uid, group=intruder.pw_gid, extra_groups=(), cwd="/",
    )  # fmt: skip

    assert "PermissionError" in done.stderr


@needs_root
def test_any_account_will_do_and_the_one_that_owns_the_data_stays(
    fresh: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    accounts = {entry.pw_name for entry in pwd.getpwall()}
    monkeypatch.setattr(cluster, "_ACCOUNTS", ("no-such-account", "bin"))
    assert _ask(fresh.ensure_running(), "select 1") == 1
    fresh.stop()
    assert fresh.data_dir.stat().st_uid == pwd.getpwnam("bin").pw_uid

    monkeypatch.setattr(cluster, "_ACCOUNTS", ("daemon",))
    assert _ask(fresh.ensure_running(), "select 1") == 1
    assert Path(f"/proc/{_pid(fresh)}").stat().st_uid == pwd.getpwnam("bin").pw_uid
    assert {entry.pw_name for entry in pwd.getpwall()} == accounts


@pytest.mark.parametrize("name", ["Märkte 東京", "it's 100% % off", "one, two", "#1 & (2) ; !"])
def test_a_folder_may_have_almost_any_name(folder: Path, prepared: Path, name: str) -> None:
    server = EmbeddedPostgres(folder / name / ".market-data" / "postgres", durable=False)
    (folder / name).mkdir()
    subprocess.run(["cp", "-a", prepared, server.state_dir], check=True)
    try:
        assert _ask(server.ensure_running(), "select 1") == 1
        assert server.is_running()
        assert project.is_local(server.url, server.state_dir)
    finally:
        server.stop()
        assert not server.is_running()
        if project.socket_dir(server.state_dir).parent == Path("/tmp"):
            project.socket_dir(server.state_dir).rmdir()


@pytest.mark.parametrize("character", ["$", "`", '"', "\\", "\n"])
def test_a_name_that_postgresql_hands_to_a_shell_is_refused_before_anything_starts(
    folder: Path, character: str
) -> None:
    server = EmbeddedPostgres(folder / f"a{character}b" / ".market-data" / "postgres", durable=False)

    with pytest.raises(ConfigurationError, match="with which PostgreSQL's programs cannot work: move the project"):
        server.ensure_running()

    assert not server.data_dir.exists()


@needs_root
def test_for_root_the_server_runs_as_an_unprivileged_user_and_folders_only_let_it_pass(
    folder: Path, prepared: Path
) -> None:
    inner = folder / "closed" / "project"
    inner.mkdir(parents=True)
    (folder / "closed").chmod(0o700)
    server = EmbeddedPostgres(inner / ".market-data" / "postgres", durable=False)
    subprocess.run(["cp", "-a", prepared, server.state_dir], check=True)

    server.ensure_running()
    try:
        assert Path(f"/proc/{_pid(server)}").stat().st_uid == server.data_dir.stat().st_uid != 0
        assert stat.S_IMODE((folder / "closed").stat().st_mode) == 0o701
    finally:
        server.stop()


def test_sql_cannot_run_a_program_on_the_machine(server: EmbeddedPostgres) -> None:
    url = server.ensure_running()

    assert _ask(url, "select rolsuper from pg_roles where rolname = user") is False
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("copy pg_class to program 'cat'")


def test_it_survives_the_command_that_started_it_and_its_interruption(server: EmbeddedPostgres) -> None:
    program = START + "import time; time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(server.data_dir)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as command:
        assert command.stdout is not None
        url = command.stdout.readline().strip()
        os.killpg(command.pid, signal.SIGINT)
        command.wait()

    assert url == server.url
    assert _ask(url, "select 1") == 1


def test_several_commands_that_start_it_at_once_get_the_same_server(fresh: EmbeddedPostgres) -> None:
    arguments = [sys.executable, "-c", START, str(fresh.data_dir)]
    commands = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    answers = [command.communicate() for command in commands]

    assert [stdout.strip() for stdout, _ in answers] == [fresh.url] * 3
    assert [stderr for _, stderr in answers if "rror" in stderr] == []


@pytest.mark.parametrize("durable", [True, False])
def test_it_comes_back_with_what_was_committed_after_it_was_killed(server: EmbeddedPostgres, durable: bool) -> None:
    killed = EmbeddedPostgres(server.data_dir, durable=durable)
    _ask(_owner(killed), "create table kept as select 42 as n")
    _ask(killed.owner_url, "update kept set n = 43")
    os.kill(_pid(killed), signal.SIGKILL)
    until(lambda: not killed.is_running())

    assert _ask(_owner(killed), "select n from kept") == 43


def test_a_pid_file_that_now_names_another_process_does_not_stop_it(server: EmbeddedPostgres) -> None:
    server.ensure_running()
    lines = (server.data_dir / "postmaster.pid").read_text().splitlines()
    server.stop()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (server.data_dir / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

        assert not server.is_running()
        assert _ask(server.ensure_running(), "select 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_an_interrupted_creation_is_started_again(fresh: EmbeddedPostgres) -> None:
    unfinished = fresh.data_dir.with_name("postgres.new")
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    assert _ask(fresh.ensure_running(), "select 1") == 1
    assert not unfinished.exists()


def test_a_lost_password_is_replaced(server: EmbeddedPostgres) -> None:
    old = server.ensure_running()
    (server.state_dir / "postgres.password").unlink()

    new = server.ensure_running()

    assert new != old
    assert _ask(new, "select 1") == 1


def test_a_project_that_moved_keeps_its_data(server: EmbeddedPostgres, folder: Path) -> None:
    _ask(_owner(server), "create table kept as select 42 as n")
    server.stop()
    (folder / "elsewhere").mkdir()
    server.state_dir.rename(folder / "elsewhere" / ".market-data")
    moved = EmbeddedPostgres(folder / "elsewhere" / ".market-data" / "postgres", durable=False)

    try:
        assert _ask(_owner(moved), "select n from kept") == 42
    finally:
        moved.stop()


def test_a_long_path_puts_the_socket_into_a_short_private_folder(folder: Path, prepared: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    server = EmbeddedPostgres(deep / ".market-data" / "postgres", durable=False)
    subprocess.run(["cp", "-a", prepared, server.state_dir], check=True)
    sockets = project.socket_dir(server.state_dir)
    try:
        assert _ask(server.ensure_running(), "select 1") == 1
        assert sockets.parent == Path("/tmp")
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert project.is_local(server.url, server.state_dir)
    finally:
        server.stop()
        with suppress(OSError):
            sockets.rmdir()


def test_a_folder_that_is_not_ours_is_refused(folder: Path) -> None:
    (folder / "theirs").mkdir()
    (folder / "link").symlink_to(folder / "theirs")

    with pytest.raises(ConfigurationError, match="link is not ours"):
        cluster.private_folder(folder / "link", cluster.Owner(os.geteuid(), os.getegid()))


@needs_root
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", pwd.getpwnam("nobody").pw_uid, -1)

    with pytest.raises(ConfigurationError, match="theirs is not ours"):
        cluster.private_folder(folder / "theirs", cluster.Owner(os.geteuid(), os.getegid()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_server_of_another_user_is_named(server: EmbeddedPostgres) -> None:
    (server.state_dir / "run").mkdir(exist_ok=True)
    (server.state_dir / "run").chmod(0o000)

    with pytest.raises(ConfigurationError, match="belongs to another user: run as that user"):
        server.ensure_running()

    (server.state_dir / "run").chmod(0o700)


@needs_root
def test_a_full_disk_is_named_and_nothing_half_made_stays_on_it(folder: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this root may not mount")
    server = EmbeddedPostgres(folder / ".market-data" / "postgres", durable=False)
    try:
        with pytest.raises(ConfigurationError, match=r"the disk of .* is full"):
            server.ensure_running()
        assert not server.data_dir.with_name("postgres.new").exists()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_data_of_another_major_version_is_left_alone_and_named(fresh: EmbeddedPostgres) -> None:
    fresh.data_dir.mkdir(parents=True)
    (fresh.data_dir / "PG_VERSION").write_text("16\n")

    with pytest.raises(ConfigurationError, match=r"was made by PostgreSQL 16 and this is 18: .*backup DIR"):
        fresh.ensure_running()

    assert [file.name for file in fresh.data_dir.iterdir()] == ["PG_VERSION"]


def test_a_folder_with_other_things_in_it_is_left_alone_and_named(fresh: EmbeddedPostgres) -> None:
    fresh.data_dir.mkdir(parents=True)
    (fresh.data_dir / "thesis.tex").touch()

    with pytest.raises(ConfigurationError, match="holds files but is not a database"):
        fresh.ensure_running()

    assert (fresh.data_dir / "thesis.tex").exists()


def test_settings_that_do_not_work_are_named_and_correcting_them_helps(server: EmbeddedPostgres) -> None:
    server.ensure_running()
    server.stop()
    own = server.data_dir / "user.conf"
    own.write_text("shared_buffers = 'plenty'\n")
    own.chmod(0o644)

    with pytest.raises(ConfigurationError) as failure:
        server.ensure_running()
    assert "shared_buffers" in str(failure.value)
    assert "\n" not in str(failure.value)

    own.write_text("work_mem = '11MB'\n")
    assert _ask(server.ensure_running(), "show work_mem") == "11MB"


def test_the_callers_environment_neither_misleads_it_nor_stays_in_it(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "/nowhere", "PGUSER": "nobody"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POLYGON_API_KEY", "hunter2")

    url = server.ensure_running()

    assert _ask(url, "select current_user") == "market_data"
    assert b"hunter2" not in Path(f"/proc/{_pid(server)}/environ").read_bytes()


def test_no_connection_works_while_its_login_is_given_a_mode_in_which_no_trigger_fires(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    given = "set session_replication_role to replica"
    made = f"create role strong superuser login password 'secret'\nalter role strong {given}\n"
    as_user = cluster.owner(server.data_dir)
    server.ensure_running()  # lets its user into the folder
    server.stop()
    assert not cluster.single_user(server.data_dir, as_user, f"{made}alter role {project.ROLE} {given}\n")
    weak = server.ensure_running()

    async def asynchronous() -> None:
        await open_async_connection(weak)

    for connect in (
        lambda: open_connection(weak),
        lambda: engine(weak).connect(),
        lambda: StoreConnection(weak),
        lambda: asyncio.run(asynchronous()),
        lambda: migrate_database(weak, SQL),
    ):
        with pytest.raises(ConfigurationError, match=r"session_replication_role=replica .* no trigger") as refusal:
            connect()
        assert "\n" not in str(refusal.value)

    parts = urlsplit(weak)
    strong = parts._replace(netloc="strong:secret@").geturl()
    fired = "create table public.fired as select current_setting('session_replication_role') as role"
    sql = Path(shutil.copytree(SQL, tmp_path / "sql"))
    (sql / "9001_fired.sql").write_text(f"-- migrate:up\n{fired};\n-- migrate:down\n")
    assert "9001_fired.sql" in migrate_database(strong, sql)
    with open_connection(strong) as connection:
        assert connection.execute("select role from public.fired").fetchone() == ("origin",)
        assert connection.execute("show session_replication_role").fetchone() == ("origin",)


def test_durable_settings_are_those_of_a_project(server: EmbeddedPostgres) -> None:
    durable = EmbeddedPostgres(server.data_dir)

    url = durable.ensure_running()

    assert _ask(url, "show fsync") == "on"
    assert _ask(url, "show synchronous_commit") == "on"
    assert _ask(url, "show data_checksums") == "on"
