"""Other people's PostgreSQL: whatever a server has as defaults, the same is stored and the same is answered."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline import read_bars, read_features
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.orchestration.checks.expectations import Inspector
from market_data_pipeline.reports.freshness import staleness_report
from market_data_pipeline.reports.quality import ACROSS_RULES, BAR_RULES
from market_data_pipeline.runtime.database import reading_engine, refuse_unusable_storage
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.audit_log import append_run
from market_data_pipeline.store.calendar import sync_sessions
from market_data_pipeline.store.connection import Role, engine, open_async_connection, open_connection
from market_data_pipeline.store.connection_settings import NEEDED
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline.store.pooler import is_pooled, refuse_transaction_pooling
from market_data_pipeline.store.rate_limit_queue import RateLimitQueue
from market_data_pipeline_tests.conftest import SQL, drop_database, in_memory, with_database
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.serving.conftest import serve
from market_data_pipeline_tests.waiting import until

NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
# Defaults that a server, a database or a login may have; each breaks something when it reaches a connection of ours.
HOSTILE = {
    "client_encoding": "LATIN1",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "client_min_messages": "debug1",
    "search_path": "nowhere",
    "statement_timeout": "20s",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "5s",
    "idle_session_timeout": "5s",  # a connection needs some time before its first statement
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
}


SHOWN = "select name, current_setting(name, true) from unnest(%s::text[]) as name"


class OtherWorld(World):
    """A world whose own statements go to a friendly login of the same database."""

    friendly_url = ""

    def connect(self) -> psycopg.Connection[dict[str, object]]:
        return psycopg.connect(self.friendly_url, autocommit=True, row_factory=psycopg.rows.dict_row)


@contextmanager
def hostile_login(postgres_url: str, database_url: str) -> Iterator[str]:
    """Yield the URL of a login that owns nothing yet, may create a schema, and has hostile defaults."""
    name, database = f"hostile_{os.urandom(4).hex()}", urlsplit(database_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        administrator.execute(f"create role {name} login createrole password 'secret'")
        administrator.execute(f"grant {name} to current_user")
        administrator.execute(f"grant create on database {database} to {name}")
        for setting, value in HOSTILE.items():
            administrator.execute(f"alter role {name} set {setting} to {psycopg.sql.quote(value)}")
        if administrator.info.server_version >= 170_000:
            administrator.execute(f"alter role {name} set transaction_timeout to '20s'")
        parts = urlsplit(database_url)
        yield parts._replace(netloc=f"{name}:secret@{parts.netloc.rpartition('@')[2]}").geturl()
        administrator.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = %s", (name,)
        )
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(f"drop owned by {name} cascade")
        administrator.execute(f"drop role {name}")


def observed(url: str, friendly_url: str, folder: Path) -> dict[str, Any]:
    """Migrate, refresh a symbol and read it in every way; return what was read."""
    migrate_database(url, SQL)
    settings = Settings(database_url=url, project_root=folder, as_of=NOON)
    with running_server(open_source(None), lambda: NOON) as vendor:
        world = OtherWorld(vendor, url, NOON)
        world.friendly_url = friendly_url
        outcomes = world.refresh("AAPL")
        again = world.refresh("AAPL", full=True)
    made = engine(url, as_of=NOON)
    append_run(
        made, "run-1", "critical_refresh", trigger="cli", requested_by="ana", reason="zu spät: „AAPL“", series=""
    )
    sync_sessions(made)
    with made.connect() as connection:
        reasons = connection.exec_driver_sql("select reason from market_data.run_log").scalars().all()
    made.dispose()
    queue = RateLimitQueue(url, 0.01)
    while queue.request(waiter := uuid4(), 0) > 0:
        queue.leave(waiter)
    queue.close()
    broken = Inspector(url, NOON).inspect(Tier.CRITICAL, "bars", (*BAR_RULES, *ACROSS_RULES))
    reader = reading_engine(settings, start=False)
    staleness = staleness_report(reader, 50).model_dump(exclude={"timestamp"})
    reader.dispose()
    with serve(settings) as api:
        answers = {
            f"{path} {accept}": (answer.status_code, answer.content)
            for path in ("/api/v1/bars/AAPL?timeframe=5m", "/api/v1/features/quant/AAPL?timeframe=1h")
            for accept in ("application/json", "text/csv")
            if (answer := api.get(path, headers={"Accept": accept}))
        }
        page = api.get("/series/AAPL/1d").status_code
        api.wait_for_cache()  # it listens
    return {
        "outcomes": {key: (outcome.status, outcome.error) for key, outcome in outcomes.items()},
        "unchanged": {key: (outcome.status, outcome.error) for key, outcome in again.items()},
        "reasons": reasons,
        "broken rules": [(each.rule.name, each.broken_by, each.error) for each in broken],
        "staleness": staleness,
        "answers": answers,
        "page": page,
        "bars": read_bars("AAPL", "5m", settings=settings),
        "as of": read_bars("AAPL", "5m", as_of=NOON, settings=settings),
        "features": read_features("AAPL", "1d", settings=settings),
    }


@pytest.fixture
def strange_url(postgres_url: str) -> Iterator[str]:
    """The URL of a new database that takes any bytes for text."""
    name = f"strange_{os.urandom(4).hex()}"
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        provider = "locale_provider libc" if administrator.info.server_version >= 150_000 else ""
        administrator.execute(
            f"create database {name} template template0 encoding 'SQL_ASCII' {provider} lc_collate 'C' lc_ctype 'C'"
        )
    yield with_database(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture
def friendly(empty_database_url: str, tmp_path: Path) -> dict[str, Any]:
    return observed(empty_database_url, empty_database_url, tmp_path)


def test_an_encoding_that_lacks_letters_is_refused_before_anything_is_stored(postgres_url: str) -> None:
    name = f"latin_{os.urandom(4).hex()}"
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        provider = "locale_provider libc" if administrator.info.server_version >= 150_000 else ""
        administrator.execute(
            f"create database {name} template template0 encoding 'LATIN1' {provider} lc_collate 'C' lc_ctype 'C'"
        )
    url = with_database(postgres_url, name)
    with pytest.raises(ConfigurationError, match=f"{name}.* is encoded in LATIN1.* encoding 'UTF8'") as refusal:
        migrate_database(url, SQL)
    assert "\n" not in str(refusal.value)
    drop_database(postgres_url, name)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in one.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, other[key])
        else:
            assert value == other[key], key


def test_a_server_whose_defaults_are_all_hostile_stores_and_answers_the_same(
    friendly: dict[str, Any], postgres_url: str, strange_url: str, tmp_path: Path
) -> None:
    with hostile_login(postgres_url, strange_url) as hostile:
        assert_same(friendly, observed(hostile, strange_url, tmp_path))


def shown(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return settings_of(connection.execute(SHOWN, (list(NEEDED),)).fetchall())


def settings_of(rows: list[tuple[Any, ...]]) -> dict[str, str]:
    return {str(name): str(value) for name, value in rows if value is not None}


T = TypeVar("T")


async def asynchronous(url: str) -> dict[str, str]:
    connection = await open_async_connection(url)
    async with connection:
        return settings_of(await (await connection.execute(SHOWN, (list(NEEDED),))).fetchall())


def in_thread(made: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns, in a thread: a browser of another test may run a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, made).result()


def test_every_kind_of_connection_has_what_it_needs(postgres_url: str, database_url: str) -> None:
    queue_seen: dict[str, str] = {}
    with hostile_login(postgres_url, database_url) as url:
        made, queue = engine(url, role=Role.READER), RateLimitQueue(url, 0.01)
        with made.connect() as connection, open_connection(url) as plain, queue._pool().connection() as queued:
            seen = {
                "engine": shown(connection.connection.driver_connection),  # type: ignore[arg-type]
                "plain": shown(plain),
                "asynchronous": in_thread(asynchronous(url)),
            }
            queue_seen = shown(queued)
        with StoreConnection(url) as store:
            seen["store"] = shown(store._connection)
        queue.close()
        made.dispose()
    of_this_server = {name: value for name, value in NEEDED.items() if name in seen["plain"]}
    assert seen == {
        "engine": of_this_server,
        "plain": of_this_server,
        "asynchronous": of_this_server,
        "store": of_this_server | {"lock_timeout": "1min"},
    }
    assert queue_seen == of_this_server | {"search_path": "market_data"}


class Bouncer:
    """A real PgBouncer in front of one database."""

    def __init__(self, program: str, database_url: str, folder: Path, mode: str) -> None:
        to = psycopg.conninfo.conninfo_to_dict(database_url)
        [port] = free_ports(1)
        file = folder / f"pgbouncer.{mode}.ini"
        file.write_text(
            f"""
            [databases]
            {to["dbname"]} = host={to["host"]} port={to.get("port", 5432)} user={to["user"]} password={to["password"]}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = any
            pool_mode = {mode}
            ignore_startup_parameters = extra_float_digits
            """.replace("    ", "")
        )
        file.chmod(0o644)
        # It refuses to run as root; the server's own user can reach its socket.
        owner = pwd.getpwuid(Path(str(to["host"])).stat().st_uid).pw_name if str(to["host"])[0] == "/" else "nobody"
        user = ["-u", owner] if os.getuid() == 0 else []
        self.process = subprocess.Popen([program, "-q", *user, str(file)])
        self.url = f"postgresql://someone@127.0.0.1:{port}/{to['dbname']}"
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "PgBouncer has ended"
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def bouncer(database_url: str) -> Iterator[Callable[[str], Bouncer]]:
    """Return a function that puts a PgBouncer in front of the test's database."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    started: list[Bouncer] = []
    folder = Path(tempfile.mkdtemp(dir=in_memory()))  # not that of the test, which only this user can enter
    folder.chmod(0o755)

    def start(mode: str) -> Bouncer:
        started.append(Bouncer(program, database_url, folder, mode))
        return started[-1]

    yield start
    for each in started:
        each.close()
    shutil.rmtree(folder)


def test_a_pooler_in_transaction_mode_is_refused_in_one_sentence_before_anything_is_set_on_its_connections(
    bouncer: Callable[[str], Bouncer], database_url: str
) -> None:
    pooled = bouncer("transaction")
    with psycopg.connect(database_url, autocommit=True) as direct:
        before = direct.execute("show timezone").fetchone()
    for connect in (
        lambda: open_connection(pooled.url).close(),
        lambda: in_thread(asynchronous(pooled.url)),
        lambda: StoreConnection(pooled.url).close(),
        lambda: engine(pooled.url).connect().close(),
        lambda: migrate_database(pooled.url, SQL),
    ):
        with pytest.raises(ConfigurationError, match="is in transaction mode, which loses locks") as refusal:
            connect()
        assert "\n" not in str(refusal.value)
    with psycopg.connect(pooled.url, autocommit=True) as stranger:
        assert stranger.execute("show timezone").fetchone() == before


def test_a_pooler_in_session_mode_serves_as_the_server_does(bouncer: Callable[[str], Bouncer], tmp_path: Path) -> None:
    pooled = bouncer("session")
    with open_connection(pooled.url, Role.WRITER) as one, open_connection(pooled.url) as other:
        assert shown(one) == shown(other)
        assert one.execute("select current_user").fetchone() == (Role.WRITER.value,)
        assert is_pooled(one)
    with StoreConnection(pooled.url) as store, store.symbol_lock("AAPL"):
        pass
    sql = Path(shutil.copytree(SQL, tmp_path / "sql"))
    (sql / "9001_more.sql").write_text("-- migrate:up\ncreate table market_data.more (n integer);\n-- migrate:down\n")
    assert migrate_database(pooled.url, sql) == ["9001_more.sql"]


def test_a_server_without_a_pooler_is_none(database_url: str) -> None:
    with open_connection(database_url) as connection:
        assert not is_pooled(connection)
        refuse_transaction_pooling(connection.info)


def test_a_url_with_several_hosts_reaches_the_one_that_answers(
    postgres_url: str, database_url: str, tmp_path: Path
) -> None:
    to = psycopg.conninfo.conninfo_to_dict(database_url)
    login = f"{to['user']}:{quote(str(to['password']), safe='')}"
    hosts = f"127.0.0.1:1,{quote(str(to['host']), safe='')}:{to.get('port', 5432)}"
    url = f"postgresql://{login}@{hosts}/{to['dbname']}?target_session_attrs=read-write"
    settings = Settings(database_url=url, project_root=tmp_path)
    sql = Path(shutil.copytree(SQL, tmp_path / "sql"))
    (sql / "9001_more.sql").write_text("-- migrate:up\ncreate table market_data.more (n integer);\n-- migrate:down\n")
    assert migrate_database(settings.database_url, sql) == ["9001_more.sql"]
    for made in (engine(settings.database_url), sa.create_engine(settings.dagster_postgres_url)):
        with made.connect() as connection:
            assert connection.exec_driver_sql("select current_database()").scalar_one() == to["dbname"]
        made.dispose()
    nowhere = Settings(database_url="postgresql://me@127.0.0.1:1,[::1]:2/prices", project_root=tmp_path)
    with pytest.raises(DatabaseUnavailableError, match=r"PostgreSQL at 127\.0\.0\.1:1 or ::1:2 "):
        open_connection(nowhere.database_url)


def test_a_storage_that_dagsters_connections_cannot_write_to_is_refused_with_the_statement_that_helps(
    postgres_url: str, database_url: str, tmp_path: Path
) -> None:
    with hostile_login(postgres_url, database_url) as url, psycopg.connect(database_url, autocommit=True) as owner:
        for words in ("is read-only by default for this login", "names no schema that exists"):
            with pytest.raises(ConfigurationError, match=words) as refusal:
                refuse_unusable_storage(f"postgresql+psycopg2{url.removeprefix('postgresql')}")
            owner.execute(psycopg.sql.SQL(str(refusal.value).split("`")[1]))  # type: ignore[arg-type]
        refuse_unusable_storage(url)
