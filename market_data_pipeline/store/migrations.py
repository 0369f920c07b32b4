"""Migrate a database to this code's schema: dbmate runs the numbered files of `sql/`."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import project
from market_data_pipeline.store.connection import describe, open_connection
from market_data_pipeline.store.connection_settings import NEEDED
from market_data_pipeline.store.pooler import is_pooled
from market_data_pipeline.store.privileges import grant_privileges, login_of
from market_data_pipeline.store.record_move import move_records

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from market_data_pipeline.settings import Settings

OLDEST_SERVER: Final = 14  # the oldest that PostgreSQL's developers still maintain
MIGRATIONS_TABLE: Final = "market_data.schema_migrations"
_LOCK: Final = 0x6D61726B6574  # any number that nothing else in the database locks; dbmate's own lock differs


def migrate(settings: Settings, on_move: Callable[[int, int], None] | None = None) -> list[str]:
    """Apply the missing migrations to the project's database; return the names of the files applied.

    Raises:
        ConfigurationError, DatabaseUnavailableError: as `migrate_database`.
    """
    login = login_of(settings.database_url)
    return migrate_database(settings.owner_url, project.PACKAGE / "sql", login=login, on_move=on_move)


def migrate_database(
    url: str, sql: Path, *, login: str | None = None, on_move: Callable[[int, int], None] | None = None
) -> list[str]:
    """Apply the missing migrations of the folder `sql`, in order, each in a transaction of its own.

    Concurrent calls are harmless: the second waits and finds nothing to do. The database must exist; the right to
    create one is not needed. The privileges of the group roles and of the pipeline's `login` are granted too. Where
    bars move to another table, `on_move` is told after each series how many are done, and of how many.

    Raises:
        ConfigurationError: the server is too old, the database's encoding is not UTF8, the schema is newer than this
            code, or a migration failed and was rolled back.
        DatabaseUnavailableError: the server cannot be reached.
    """
    known = {file.name.split("_", 1)[0]: file.name for file in sorted(sql.glob("[0-9]*.sql"))}
    with open_connection(url, autocommit=True) as connection:
        if (found := connection.info.server_version // 10_000) < OLDEST_SERVER:
            raise ConfigurationError(f"{describe(url)} is version {found}; version {OLDEST_SERVER} or newer is needed.")
        _check_encoding(connection, url)
        connection.execute("select pg_advisory_lock(%s)", (_LOCK,))
        before = _applied(connection)
        if newer := sorted(before - known.keys()):
            raise ConfigurationError(
                f"{describe(url)} has migration {', '.join(newer)}, which this code does not have: a newer "
                "version changed the schema. Update the code, for example with `git pull && make install`."
            )
        changed = not known.keys() <= before
        if changed:
            _run_dbmate(connection, sql, url)
        grant_privileges(connection, login, again=changed)
        for done, waiting in move_records(connection):
            if on_move is not None:
                on_move(done, waiting)
        return [known[version] for version in sorted(_applied(connection) - before)]


def _check_encoding(connection: psycopg.Connection[Any], url: str) -> None:
    """Refuse a database that cannot hold every text: one message of the vendor would make a symbol fail for good.

    One in SQL_ASCII takes UTF-8 as it is.

    Raises:
        ConfigurationError: says how to create another one.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", "SQL_ASCII"}:
        raise ConfigurationError(
            f"{describe(url)} is encoded in {encoding}, which lacks most of Unicode: name a database that was created "
            "with `create database ... encoding 'UTF8' template template0`."
        )


def _applied(connection: psycopg.Connection[Any]) -> set[str]:
    row = connection.execute("select to_regclass(%s)", (MIGRATIONS_TABLE,)).fetchone()
    if row is None or row[0] is None:
        return set()
    return {version for (version,) in connection.execute("select version from market_data.schema_migrations")}


def newest_migration(connection: psycopg.Connection[Any]) -> str:
    """Return the number of the newest migration that a database has, such as `0030`; empty where it has none."""
    return max(_applied(connection), default="")


def known_migrations() -> set[str]:
    """Return the numbers of the migrations that this code has."""
    return {file.name.split("_", 1)[0] for file in (project.PACKAGE / "sql").glob("[0-9]*.sql")}


def _run_dbmate(connection: psycopg.Connection[Any], sql: Path, url: str) -> None:
    """Run dbmate; the URL, which holds the password, is in its environment, not among its arguments."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DBMATE_"))}
    arguments = ("-d", str(sql.resolve()), "--migrations-table", MIGRATIONS_TABLE, "--migration-lock")
    done = subprocess.run(  # noqa: S603
        [_dbmate(), *arguments, "--no-dump-schema", "migrate"],
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"DATABASE_URL": _dbmate_url(connection)},
        cwd="/",  # dbmate would read the `.env` of the working directory
    )
    if done.returncode:
        raise ConfigurationError(_why(done.stdout + done.stderr, url, connection.info.password))


def _dbmate_url(connection: psycopg.Connection[Any]) -> str:
    """Return the URL of a working connection in full: dbmate's driver understands fewer forms than libpq."""
    info = connection.info
    given = {name: value for name, value in info.get_parameters().items() if name in _PASSED_ON}
    # libpq tries TLS and falls back to none; dbmate's driver needs it stated.
    given |= {"sslmode": given.get("sslmode", "require") if connection.pgconn.ssl_in_use else "disable"}
    if given["sslmode"] in {"prefer", "allow"}:
        given["sslmode"] = "require"
    login = quote(info.user, safe="") + (f":{quote(info.password, safe='')}" if info.password else "")
    where = {"host": info.host, "port": info.port} | given | _startup_settings(connection)
    return f"postgres://{login}@/{quote(info.dbname, safe='')}?{urlencode(where, quote_via=quote)}"


def _startup_settings(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return what dbmate's connection needs, which its driver sends when it connects; a pooler would refuse that."""
    if is_pooled(connection):
        return {}
    known = "select name from unnest(%s::text[]) as name where current_setting(name, true) is not null"
    found = {name: NEEDED[name] for (name,) in connection.execute(known, (list(NEEDED),))}
    inherited = "select reset_val from pg_catalog.pg_settings where name = 'session_replication_role'"
    if connection.execute(inherited).fetchone() == ("replica",):  # which this login could set, as the connection has
        found["session_replication_role"] = "origin"
    return found


_PASSED_ON: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def _dbmate() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "dbmate"
    found = str(beside) if beside.exists() else which("dbmate")
    if found is None:
        raise ConfigurationError(f"dbmate is not installed: {project.INSTALL_PIPELINE}.")
    return found


def _why(said: str, url: str, password: str) -> str:
    """Return one sentence from dbmate's output: the file it was applying and PostgreSQL's message."""
    if password:
        said = said.replace(password, "***")
    files = re.findall(r"^Applying: (\S+)", said, flags=re.MULTILINE)
    errors = re.findall(r"^Error: (.+)", said, flags=re.MULTILINE) or said.strip().splitlines()[-1:]
    what = f"Migration {files[-1]} was not applied to" if files else "Migrations could not start on"
    hint = ""
    if re.search("permission denied|must be owner", " ".join(errors)):
        hint = "; migrations run as the owner of the schema, which MARKET_DATA_OWNER_URL may name"
    return f"{what} {describe(url)}: {' '.join(errors)}{hint}"
