"""Backups on real databases: consistent while a refresh writes, whole or not there, restored to the same values."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import psycopg
import pytest

from market_data_pipeline.backup.compare import differences
from market_data_pipeline.backup.make import make_backup
from market_data_pipeline.backup.manifest import (
    MANIFEST,
    backups_in,
    damaged_files,
    find_backup,
    new_place,
    read_manifest,
    unfinished_in,
)
from market_data_pipeline.backup.restore import restore_backup
from market_data_pipeline.backup.verify import verify
from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.errors import BackupError, ConfigurationError
from market_data_pipeline.orchestration.jobs.backup import backup_schedule
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.runtime import postgres_cluster as cluster
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import Role, engine, libpq_url, open_connection
from market_data_pipeline.store.postgres_tools import tools_for
from market_data_pipeline_tests.backup.conftest import NOW, query
from market_data_pipeline_tests.conftest import SQL, in_memory
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.releases import RELEASES, held, load_release
from market_data_pipeline_tests.store.old_layout import MOVES, make_old_database
from market_data_pipeline_tests.waiting import until

COMMAND = "from market_data_pipeline.cli.main import main; main()"
WAITING = """
    select 1 from pg_stat_activity where datname = current_database() and application_name = 'pg_dump'
    and wait_event_type = 'Lock'
"""


@contextmanager
def held_up(url: str) -> Iterator[Callable[[], bool]]:
    """Let `pg_dump` wait, after its snapshot is taken, while the block runs; yield whether it does."""
    with closing(psycopg.connect(url)) as holder:
        holder.execute("lock table market_data.backups in access exclusive mode")
        yield lambda: bool(query(url, WAITING))


def is_locked(folder: Path) -> bool:
    """Return whether a backup into the folder is under way, or a program of one has not ended yet."""
    with (folder / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def unequal(settings: Settings, backup: Path) -> list[str]:
    manifest = read_manifest(backup)
    with open_connection(settings.owner_url) as connection:
        return list(differences(connection, "market_data", manifest.market_data))


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backups")


@pytest.fixture
def backup(settings: Settings, backups: Path) -> Path:
    """A backup, made once for those tests that only read it."""
    if not backups_in(backups):
        make_backup(settings, backups, keep=None)
    return backups_in(backups)[0]


@pytest.fixture
def copy(backup: Path, tmp_path: Path) -> Path:
    """A backup that a test may damage."""
    return Path(shutil.copytree(backup, tmp_path / backup.name))


def test_a_backup_under_a_refresh_restores_what_was_committed_before_it(
    settings: Settings, empty: Settings, world: World, vendor_clock: list[object], tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    before = query(world.database_url, "select count(*), max(recorded_at) from market_data.bars")
    making = Thread(target=make_backup, args=(settings, folder), kwargs={"keep": None})
    with held_up(world.database_url) as waits:
        making.start()
        until(waits)
        world.now = vendor_clock[0] = world.now + timedelta(hours=2)
        assert "ok" in {one.status for one in world.refresh("AAPL", history_days=5).values()}
    making.join()
    found = find_backup(folder)
    assert unequal(settings, found), "nothing was committed after the snapshot"

    done = restore_backup(empty, folder)

    assert unequal(empty, found) == []
    assert query(empty.database_url, "select count(*), max(recorded_at) from market_data.bars") == before
    assert done.manifest.dagster is not None
    partitions = "select partition from dynamic_partitions order by 1"
    assert query(libpq_url(empty.dagster_postgres_url), partitions) == [("AAPL",)]
    assert verify(empty, found).problems == []

    # It goes on from there: the restored project fetches what the other one has.
    restored = World(world.base_url, empty.database_url, world.now)
    assert {one.status for one in restored.refresh("AAPL", history_days=5).values()} <= {"ok", "unchanged"}
    values = "select symbol, timeframe, ts, open, high, low, close, volume from market_data.bars order by 1, 2, 3"
    assert query(empty.database_url, values) == query(world.database_url, values)


def test_a_restored_audit_log_is_as_closed_to_the_pipeline_as_before(
    backup: Path, settings: Settings, empty: Settings
) -> None:
    restore_backup(empty, backup)

    rights = f"""
        select c.relname, p.privilege_type, a.attname
        from pg_class as c
        left join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0,
        (values ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE'), ('SELECT')) as p (privilege_type)
        where c.relnamespace = 'market_data'::regnamespace and c.relkind in ('r', 'p', 'v')
        and case when p.privilege_type in ('INSERT', 'SELECT') and a.attname is not null
            then has_column_privilege('{Role.WRITER}', c.oid, a.attname, p.privilege_type)
            else has_table_privilege('{Role.WRITER}', c.oid, p.privilege_type) end
        order by 1, 2, 3
    """
    functions = """
        select p.oid::regprocedure::text, p.proacl::text from pg_proc as p
        where p.pronamespace = 'market_data'::regnamespace order by 1
    """
    triggers = """
        select t.tgrelid::regclass::text, t.tgname, t.tgenabled from pg_trigger as t
        inner join pg_class as c on c.oid = t.tgrelid and c.relnamespace = 'market_data'::regnamespace
        where not t.tgisinternal order by 1, 2
    """
    kept = [
        f"select * from market_data.{table} order by 1, 2, 3"
        for table in ("securities", "symbol_history", "universe_membership", "identity_checks")
    ]
    assert all(query(settings.database_url, question) for question in kept)
    for question in (rights, functions, triggers, *kept):
        assert query(empty.database_url, question) == query(settings.database_url, question)
    with engine(empty.database_url).connect() as connection, pytest.raises(Exception, match="permission denied"):
        connection.exec_driver_sql("delete from market_data.ingest_log")


def test_files_and_folders_are_private_and_no_secret_is_in_them_or_in_a_command_line(
    settings: Settings, tmp_path: Path
) -> None:
    password = psycopg.conninfo.conninfo_to_dict(settings.owner_url)["password"]
    folder, seen = tmp_path / "backups", b""
    making = Thread(target=make_backup, args=(settings, folder), kwargs={"keep": None})
    with held_up(settings.database_url) as waits:
        making.start()
        until(waits)
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                if b"pg_dump" in (line := process.read_bytes()):
                    seen += line
    making.join()

    assert b"--snapshot=" in seen
    assert str(password).encode() not in seen
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not any(str(password).encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_killed_backup_leaves_the_one_before_whole_and_the_next_one_clears_it_away(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    before = make_backup(settings, folder, keep=None).folder
    environment = {
        **os.environ,
        "DATABASE_URL": settings.database_url,
        "DAGSTER_POSTGRES_URL": settings.dagster_postgres_url,
    }
    with held_up(settings.database_url) as waits:
        killed = subprocess.Popen([sys.executable, "-c", COMMAND, "backup", folder], env=environment)
        until(waits)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert find_backup(folder) == before
        assert damaged_files(before, read_manifest(before)) == []
        assert len(unfinished_in(folder)) == 1
        with pytest.raises(BackupError, match="under way"):  # pg_dump has not ended yet
            make_backup(settings, folder, keep=None)
    until(lambda: not is_locked(folder))

    made = make_backup(settings, folder, keep=1)

    assert (made.removed, unfinished_in(folder), backups_in(folder)) == ((before.name,), [], [made.folder])


def test_a_backup_without_features_restores_to_the_same_features_by_the_next_refresh(
    settings: Settings, empty: Settings, world: World, backup: Path, tmp_path: Path
) -> None:
    made = make_backup(settings, tmp_path / "backups", keep=None, features=False)
    assert made.manifest.size < read_manifest(backup).size

    restore_backup(empty, made.folder)
    stored = "select symbol, timeframe, ts, close, ingested_at, recorded_at from market_data.bars order by 1, 2, 3"
    assert query(empty.database_url, stored) == query(world.database_url, stored)
    with psycopg.connect(empty.owner_url) as owner:
        owner.execute("truncate market_data.records")  # as after an interruption before the bars were stored
    assert restore_backup(empty, made.folder).found == ("dagster", "market_data")
    assert query(empty.database_url, stored) == query(world.database_url, stored)
    assert query(empty.database_url, "select count(*) from market_data.features") == [(0,)]
    assert verify(empty, made.folder).problems == []

    restored = World(world.base_url, empty.database_url, world.now)
    assert {one.status for one in restored.refresh("AAPL", history_days=5).values()} == {"ok"}
    columns = query(
        empty.database_url,
        "select string_agg(attname, ', ' order by attnum) from pg_attribute where attnum > 0"
        " and attrelid = 'market_data.features'::regclass and attname <> 'features_computed_at'",
    )[0][0]
    features = f"select {columns} from market_data.features order by symbol, timeframe, ts"
    computed = query(empty.database_url, features)
    assert computed == query(world.database_url, features)
    assert len(computed) > 100
    assert verify(empty, None).problems == []


def test_a_database_that_is_not_empty_is_refused_and_stays_as_it_is(
    backup: Path, settings: Settings, world: World
) -> None:
    world.refresh("AAPL", history_days=5)
    held = query(settings.database_url, "select count(*) from market_data.ingest_log")

    with pytest.raises(ConfigurationError, match="is not empty, and a backup is never restored over anything") as error:
        restore_backup(settings, backup)

    assert 'drop schema "market_data" cascade' in str(error.value)
    assert query(settings.database_url, "select count(*) from market_data.ingest_log") == held


def test_a_restore_that_was_interrupted_between_the_databases_goes_on(backup: Path, empty: Settings) -> None:
    with psycopg.connect(empty.database_url, autocommit=True) as connection:
        connection.execute("create schema market_data")
        connection.execute("create function market_data.clock() returns int language sql return 1")
    with pytest.raises(BackupError, match=r'pg_restore of .* failed: .*function "clock" already exists'):
        restore_backup(empty, backup)
    assert query(
        empty.database_url, "select count(*) from pg_class where relnamespace = 'market_data'::regnamespace"
    ) == [(0,)]
    with psycopg.connect(empty.database_url, autocommit=True) as connection:
        connection.execute("drop schema market_data cascade")

    done = restore_backup(empty, backup)

    assert done.found == ("dagster",)
    assert restore_backup(empty, backup).found == ("dagster", "market_data")


def test_a_server_or_code_that_is_too_old_is_refused_before_anything_is_restored(copy: Path, empty: Settings) -> None:
    text = (copy / MANIFEST).read_text()
    server = read_manifest(copy).market_data.server
    for edited, sentence in {
        text.replace(
            f'"server": {server}', '"server": 99'
        ): "and the backup is of version 99: restore it into version 99",
        text.replace('"migration": "', '"migration": "9'): "which this code does not have",
        text.replace('"kind": "sandbox"', '"kind": "vendor"'): "set POLYGON_API_KEY",
    }.items():
        (copy / MANIFEST).write_text(edited)
        with pytest.raises(ConfigurationError, match=sentence):
            restore_backup(empty, copy)
    assert query(empty.database_url, "select to_regnamespace('market_data')") == [(None,)]


def test_programs_of_another_version_are_not_used() -> None:
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 99, and pg_dump .*apt install postgresql-client-99"):
        tools_for(99, embedded=True)


def test_a_damaged_file_is_found_and_not_restored(copy: Path, settings: Settings, empty: Settings) -> None:
    assert verify(settings, copy, files_only=True).problems == []
    largest = max((copy / "market_data").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (copy / "dagster" / "toc.dat").unlink()

    problems = verify(settings, copy, files_only=True).problems

    assert problems == [
        f"{copy / 'dagster' / 'toc.dat'} is missing.",
        f"{largest} is not as it was written: its checksum differs.",
    ]
    with pytest.raises(BackupError, match=r"toc\.dat is missing\. Nothing was restored"):
        restore_backup(empty, copy)
    (copy / MANIFEST).write_text((copy / MANIFEST).read_text()[:-9])
    with pytest.raises(BackupError, match="is damaged"):
        verify(settings, copy, files_only=True)


def test_a_value_that_changed_after_a_restore_is_found_by_series_and_month(backup: Path, empty: Settings) -> None:
    restore_backup(empty, backup)
    with psycopg.connect(empty.owner_url, autocommit=True) as connection:
        connection.execute("delete from market_data.sessions")  # the calendar, which this code knows
        assert verify(empty, backup).problems == []
        connection.execute(
            "update market_data.bars set low = -1 where (symbol, timeframe, ts) = (select symbol, timeframe, ts"
            " from market_data.bars where symbol = 'AAPL' and timeframe = '5m' order by ts desc limit 1)"
        )
        connection.execute("alter table market_data.run_log disable trigger run_log_append_only")

    problems = verify(empty, backup).problems

    assert f"market_data.records AAPL|5m {NOW:%Y-%m} holds" in problems[0]
    assert "but with other values" in problems[0]
    assert any("market_data.run_log has lost the trigger that keeps it append-only" in one for one in problems)
    assert any("critical/bars prices_are_positive: 1 have" in one for one in problems)


def test_two_backups_of_one_second_are_kept_beside_each_other_in_their_order(tmp_path: Path) -> None:
    instants = [
        datetime(2026, 11, 30, 9, 30, second, microsecond, UTC) for second in (0, 1) for microsecond in (5, 700)
    ]
    places = []
    for instant in instants:
        places.append(new_place(tmp_path, instant))
        places[-1].mkdir()
        (places[-1] / MANIFEST).touch()
    assert [place.name for place in places] == [
        "2026-11-30T093000Z",
        "2026-11-30T093000.000700Z",
        "2026-11-30T093001Z",
        "2026-11-30T093001.000700Z",
    ]
    assert backups_in(tmp_path) == places


def test_the_nightly_job_backs_up_into_the_folder_of_the_settings_and_is_skipped_without_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", settings.dagster_postgres_url)
    with dg.build_schedule_context(resources={"pipeline": PipelineResource()}) as context:
        skipped = backup_schedule.evaluate_tick(context).skip_message
        assert skipped == "MARKET_DATA_BACKUP_DIR is not set: no backups are made."
        monkeypatch.setenv("MARKET_DATA_BACKUP_DIR", "backups")
        monkeypatch.setenv("MARKET_DATA_BACKUPS_KEPT", "1")
        assert len(backup_schedule.evaluate_tick(context).run_requests or ()) == 1

    make_backup(settings, tmp_path / "backups", keep=None)
    assert build_defs().resolve_job_def("backup").execute_in_process().success

    (kept,) = backups_in(tmp_path / "backups")
    last = "select location, next_due_at - finished_at from market_data.backups order by id desc limit 1"
    ((location, due),) = query(settings.database_url, last)
    assert str(location).endswith(f":{kept}")
    assert due == timedelta(hours=26)


def test_a_backup_of_before_bars_and_features_were_one_row_is_restored_moved_and_compared(
    new_database: Callable[..., str], dagster_url: str, empty: Settings, tmp_path: Path
) -> None:
    old = Settings(database_url=new_database(), dagster_postgres_url=dagster_url, project_root=tmp_path)
    make_old_database(old.database_url, tmp_path / "old")
    made = make_backup(old, tmp_path / "backups", keep=None)
    told: list[tuple[int, int]] = []

    done = restore_backup(empty, made.folder, on_move=lambda *progress: told.append(progress))

    assert MOVES in done.migrated
    assert told[-1] == (5, 5)
    assert restore_backup(empty, made.folder).found == ("dagster", "market_data")
    stored = "select * from market_data.bars order by symbol, timeframe, ts"
    assert query(empty.database_url, stored) == query(old.database_url, stored)
    found = verify(empty, made.folder)
    assert not [problem for problem in found.problems if problem.startswith("market_data.")]
    assert "were compared by their number and not by their values" in found.warnings[0]

    # Bars, and features that were computed with them, are compared by value; features of later by their number.
    change = """
        update market_data.records as r set {} from market_data.series as s
        where s.id = r.series and (s.symbol, s.timeframe, r.ts) = ('{}', '{}', '{}')
    """
    with psycopg.connect(empty.owner_url) as owner:
        owner.execute(change.format("close = 0, atr = 2", "I:SPX", "1d", "2025-01-04 05:00Z").encode())
        owner.execute(change.format("atr = 2", "AAPL", "5m", "2025-01-31 20:00Z").encode())
        owner.execute(change.format("features_after = null", "AAPL", "5m", "2025-02-01 00:00Z").encode())
    assert unequal(empty, made.folder) == [
        "market_data.bars I:SPX|1d 2025-01 holds 5 rows as the backup does, but with other values.",
        "market_data.features AAPL|5m 2025-02 holds 41 rows, and the backup 42.",
        "market_data.features I:SPX|1d 2025-01 holds 4 rows as the backup does, but with other values.",
    ]


OLD = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.skipif(
    not (OLD / "initdb").exists() or os.geteuid() != 0, reason="it needs PostgreSQL 15 of Debian, and a user to run it"
)
def test_a_backup_of_an_older_server_and_schema_is_restored_into_the_embedded_one(
    dagster_url: str, empty: Settings, tmp_path: Path
) -> None:
    """The upgrade of a server and of this code: what is missing of the schema is migrated afterwards."""
    as_user = cluster.Owner(pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)
    folder = Path(tempfile.mkdtemp(prefix="market-data-old-", dir=in_memory()))
    os.chown(folder, *as_user)
    identity: dict[str, Any] = {"user": as_user.uid, "group": as_user.gid, "cwd": "/", "stdout": subprocess.DEVNULL}
    create = [OLD / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
    subprocess.run(create, check=True, **identity)
    options = f"-c unix_socket_directories={folder} -c listen_addresses= -c fsync=off"
    control = [OLD / "pg_ctl", "-D", folder / "data", "-w", "-s", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, **identity)
    try:
        url = f"postgresql://postgres@/postgres?host={folder}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create role market_data_reader; create role market_data_writer")
        load_release(url, RELEASES[0])
        before = held(url)
        old = Settings(database_url=url, dagster_postgres_url=dagster_url, project_root=tmp_path)

        made = make_backup(old, tmp_path / "backups", keep=None)
        done = restore_backup(empty, made.folder)

        missing = [file.name for file in sorted(SQL.glob("[0-9]*.sql")) if file.name[:4] > RELEASES[0]]
        assert (made.manifest.market_data.server, done.migrated) == (15, tuple(missing))
        assert held(empty.database_url, before) == before
        assert verify(empty, None).problems == []
        with pytest.raises(ConfigurationError, match="is version 15, and the backup is of version"):
            restore_backup(old, make_backup(empty, tmp_path / "newer", keep=None).folder)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **identity)
        shutil.rmtree(folder)
