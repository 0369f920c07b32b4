"""What tests of several rooms share: a real PostgreSQL, a database of its own for each test, and a bare environment.

The server is the embedded one, started once for the whole test session (for all workers of pytest-xdist together)
in a folder that is removed at the end. MARKET_DATA_TEST_DATABASE_URL names another server to run the same tests
against; its role must be allowed to create databases.
"""

from __future__ import annotations

import gc
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.store import connection as databases
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests import costs
from market_data_pipeline_tests.store.writable_views import make_views_writable

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parent.parent
SQL = REPOSITORY / "sql"
OWN_SERVER = "MARKET_DATA_TEST_DATABASE_URL"
# Names the folder of this test session to the workers, which inherit the environment of the process that owns it.
SESSION = "MARKET_DATA_TEST_SESSION"
KINDS = ("unit", "property", "database", "dagster", "end_to_end")
_ROOM: Final = 4 << 30  # bytes; what all tests keep at once takes a quarter of it
_ours: list[Path] = []


def in_memory() -> str | None:
    """Return a folder that is kept in memory, None where there is none with room from which programs may be started.

    To make and drop a database there takes a third of the time, and a quarter of the processor time, of a disk.
    """
    memory = "/dev/shm"
    if not os.path.ismount(memory):
        return None
    found = os.statvfs(memory)
    return memory if found.f_bavail * found.f_frsize >= _ROOM and not found.f_flag & os.ST_NOEXEC else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", action="store_true", help="add up the processor time of each test file; with -n 0")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A shell makes its background commands ignore SIGINT, and every program started from here would inherit that: tests
    # of Ctrl-C would wait forever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # what is imported and collected stays until the end: looking through it again and again finds nothing
    if SESSION not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="market-data-tests-", dir=in_memory()))
        os.environ[SESSION] = str(folder)
        _ours.append(folder)
        # Every pytest run makes /tmp/pytest-of-root, which all runs of a user share, private: an embedded server that
        # runs as another user could then not enter its own data folder in there.
        config.option.basetemp = config.option.basetemp or str(folder / "tmp")
    costs.register(config, os.environ[SESSION])


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in KINDS):
            item.add_marker(_kind(item))


def _kind(item: pytest.Item) -> str:
    """Return the marker of a test (pyproject.toml lists them) by what it uses."""
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    if room in {"end_to_end", "orchestration"}:
        return {"orchestration": "dagster"}.get(room, room)
    if "postgres_url" in getattr(item, "fixturenames", ()):
        return "database"
    return "property" if hasattr(getattr(item, "function", None), "hypothesis") else "unit"


def pytest_unconfigure() -> None:
    for folder in _ours:
        if OWN_SERVER in os.environ:
            drop_database(os.environ[OWN_SERVER], _template_name())
        EmbeddedPostgres(folder / "postgres").stop()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(SESSION, None)
    _ours.clear()


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's variables, `.env` and database out of every test."""
    keep = {OWN_SERVER, SESSION}
    for name in set(os.environ) - keep:
        if name.startswith(("POLYGON_", "MASSIVE_", "MARKET_DATA_", "DAGSTER_", "DATABASE_URL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MARKET_DATA_PROJECT_ROOT", str(tmp_path))


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The URL of a database on the server of this test session, whose role may create databases and roles."""
    if url := os.environ.get(OWN_SERVER):
        return url
    # Nothing here has to survive a power cut, and flushing would cost most of the time of a small commit.
    server = EmbeddedPostgres(Path(os.environ[SESSION]) / "postgres", durable=False)
    server.ensure_running()
    return server.owner_url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser. A process can run only one at a time, and while it does, no event loop in its main thread."""
    from market_data_pipeline_tests.serving.browser import launched

    with launched() as running:
        yield running


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    """The name of a database with the current schema and nothing in it, made once for all workers."""
    name = _template_name()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(hashtext(%s))", (name,))
        if not connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone():
            connection.execute(f"drop database if exists {name}_draft")
            connection.execute(f"create database {name}_draft")
            migrate_database(with_database(postgres_url, f"{name}_draft"), SQL)
            make_views_writable(with_database(postgres_url, f"{name}_draft"))  # for tests that damage what is stored
            connection.execute(f"alter database {name}_draft rename to {name}")
    return name


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of a new database without any schema."""
    yield from _new_database(postgres_url, "template1")


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """The URL of a new database with the current schema and nothing in it."""
    yield from _new_database(postgres_url, migrated_template)


def with_database(url: str, name: str) -> str:
    """Return `url` with another database name."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _new_database(postgres_url: str, template: str) -> Iterator[str]:
    name = copy_database(postgres_url, template)
    yield with_database(postgres_url, name)
    drop_database(postgres_url, name)


def copy_database(postgres_url: str, template: str) -> str:
    """Make a copy of a database of the test server and return its name."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # Copying files takes 0.04 s; the default, copying through the WAL, 0.2 s. Before 15 only the former exists.
        strategy = "strategy file_copy" if connection.info.server_version >= 150_000 else ""
        connection.execute(f"create database {name} template {template} {strategy}")
        # As on a server that was created with a local time zone; every answer has to be the same there.
        connection.execute(f"alter database {name} set timezone to 'America/New_York'")
    return name


def drop_database(postgres_url: str, name: str) -> None:
    """Drop a database of the test server, and end its connections."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        databases.drop_database(connection, name)


def _template_name() -> str:
    return "template_" + hashlib.sha256(os.environ[SESSION].encode()).hexdigest()[:12]
