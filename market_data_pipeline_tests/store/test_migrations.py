"""Migrations against a real server: once, twice, side by side, failing, too new."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.store.migrations import migrate_database

SQL = Path(__file__).resolve().parents[2] / "sql"


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may add to."""
    return Path(shutil.copytree(SQL, tmp_path / "sql"))


def _write(sql: Path, name: str, statements: str) -> None:
    (sql / name).write_text(f"-- migrate:up\n{statements}\n-- migrate:down\n")


def _exists(url: str, relation: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute("select to_regclass(%s) is not null", (relation,)).fetchone()
    return row is not None and bool(row[0])


def test_a_new_database_gets_every_file_in_order_and_a_second_time_none(empty_database_url: str) -> None:
    applied = migrate_database(empty_database_url, SQL)

    assert applied == sorted(file.name for file in SQL.glob("*.sql"))
    assert _exists(empty_database_url, "market_data.bars_adjusted")
    assert migrate_database(empty_database_url, SQL) == []


def test_every_migration_has_a_number_of_its_own() -> None:
    numbers = [int(file.name.partition("_")[0]) for file in sorted(SQL.glob("*.sql"))]
    assert len(numbers) == len(set(numbers))


def test_concurrent_migrations_are_harmless(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda _: migrate_database(empty_database_url, SQL), range(4)))

    assert sorted(map(len, applied)) == [0, 0, 0, len(list(SQL.glob("*.sql")))]


def test_only_what_is_missing_is_applied(database_url: str, sql: Path) -> None:
    _write(sql, "9001_more.sql", "create table market_data.more (n integer);")

    assert migrate_database(database_url, sql) == ["9001_more.sql"]
    assert _exists(database_url, "market_data.more")


def test_a_failing_migration_leaves_nothing_behind_and_says_why(database_url: str, sql: Path) -> None:
    _write(sql, "9001_good.sql", "create table market_data.good (n integer);")
    _write(sql, "9002_bad.sql", "create table market_data.half (n integer);\nselect nonsense;")

    with pytest.raises(ConfigurationError) as failure:
        migrate_database(database_url, sql)

    sentence = str(failure.value)
    assert "9002_bad.sql was not applied" in sentence
    assert 'column "nonsense" does not exist' in sentence
    assert urlsplit(database_url).password not in sentence.split()
    assert "\n" not in sentence
    assert _exists(database_url, "market_data.good")
    assert not _exists(database_url, "market_data.half")

    _write(sql, "9002_bad.sql", "create table market_data.half (n integer);")
    assert migrate_database(database_url, sql) == ["9002_bad.sql"]


def test_a_schema_newer_than_the_code_is_refused_and_left_alone(database_url: str, sql: Path) -> None:
    _write(sql, "9001_future.sql", "create table market_data.future (n integer);")
    migrate_database(database_url, sql)

    with pytest.raises(
        ConfigurationError, match="9001, which this code does not have: a newer version changed the schema"
    ):
        migrate_database(database_url, SQL)


def test_no_right_to_create_databases_is_needed(empty_database_url: str, postgres_url: str) -> None:
    role = f"plain_{os.urandom(4).hex()}"
    database = urlsplit(empty_database_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        row = connection.execute("select rolsuper or rolcreaterole from pg_roles where rolname = user").fetchone()
        if row is None or not row[0]:
            pytest.skip("the role of this server cannot create another one")
        connection.execute(f"create role {role} login password 'p@:/?#% w'")
        connection.execute(f"grant create on database {database} to {role}")
        connection.execute(f"grant {role} to current_user")  # to drop what it owns in the end
    try:
        parts = urlsplit(empty_database_url)
        login = f"{role}:{quote('p@:/?#% w', safe='')}"
        url = parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()
        assert migrate_database(url, SQL)
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            connection.execute(f"drop owned by {role} cascade")
            connection.execute(f"drop role {role}")


def test_the_environment_and_dotenv_of_the_caller_do_not_reach_dbmate(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=postgres://nobody@nowhere.invalid/none\nDBMATE_MIGRATIONS_DIR=/none\n")
    with monkeypatch.context() as caller:
        caller.chdir(tmp_path)
        caller.setenv("DBMATE_MIGRATIONS_TABLE", "elsewhere")
        caller.setenv("DATABASE_URL", "postgres://nobody@nowhere.invalid/none")
        caller.setenv("PGSSLMODE", "require")
        caller.setenv("PGAPPNAME", "somebody")
        assert migrate_database(empty_database_url + _joint(empty_database_url) + "sslmode=prefer", SQL)

    assert _exists(empty_database_url, "market_data.schema_migrations")


def _joint(url: str) -> str:
    return "&" if "?" in url else "?"


def test_an_unreachable_server_is_reported_in_one_sentence_without_the_password() -> None:
    with pytest.raises(DatabaseUnavailableError) as failure:
        migrate_database("postgresql://me:hunter2@127.0.0.1:1/prices", SQL)

    assert "PostgreSQL at 127.0.0.1:1 (database prices, user me)" in str(failure.value)
    assert "hunter2" not in str(failure.value)


def test_the_password_is_not_among_the_arguments_of_any_process(empty_database_url: str, sql: Path) -> None:
    _write(sql, "9001_slow.sql", "select pg_advisory_xact_lock(1);")
    program = (
        "import sys; from pathlib import Path; from market_data_pipeline.store.migrations import migrate_database\n"
    )
    program += "migrate_database(sys.stdin.read(), Path(sys.argv[1]))"
    password = urlsplit(empty_database_url).password or "no-password"
    seen, ours = "", f"dbmate -d {sql.resolve()}"
    with (
        psycopg.connect(empty_database_url, autocommit=True) as other,
        subprocess.Popen([sys.executable, "-c", program, sql], stdin=subprocess.PIPE, text=True) as migrating,
    ):
        other.execute("select pg_advisory_lock(1)")  # until dbmate has been seen
        assert migrating.stdin is not None
        migrating.stdin.write(empty_database_url)
        migrating.stdin.close()
        while migrating.poll() is None:
            seen += _command_lines()
            if ours in seen:
                other.execute("select pg_advisory_unlock_all()")
    assert migrating.returncode == 0
    assert ours in seen
    assert password not in seen


def _command_lines() -> str:
    found = ""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def test_the_audit_log_refuses_to_be_changed(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in ("update market_data.ingest_log set status = 'ok'", "truncate market_data.bar_revisions"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(statement)


def test_migrations_are_never_rolled_back(database_url: str) -> None:
    for file in SQL.glob("*.sql"):
        down = file.read_text().partition("-- migrate:down")[2]
        with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.RaiseException, match="forward"):
            connection.execute(down.encode())
