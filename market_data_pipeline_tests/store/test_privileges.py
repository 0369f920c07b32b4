"""What the pipeline's roles may do to the audit log and to bars, and where administrators are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import Role, drop_database, engine
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.migrations import migrate, migrate_database
from market_data_pipeline.store.privileges import missing_privileges
from market_data_pipeline.store.rate_limit_queue import RateLimitQueue
from market_data_pipeline_tests.conftest import REPOSITORY, SQL

AT = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)
ROW = """
    insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)
    values ('run-1', 'AAPL', '5m', now(), now(), 'ok')
"""
# Series 16777217 is the 5m bars of the first symbol that got a number.
SERIES = 16777217
COLUMNS = "series, ts, open, high, low, close, volume, ingested_at"
BAR = f"""
    insert into market_data.records_5m ({COLUMNS})
    values ({SERIES}, '2026-03-11 15:00Z', 1, 2, 1, 2, 10, '2026-03-11 15:10Z')
"""
COPY = f"copy market_data.records_5m ({COLUMNS}) from stdin"
SPLIT = """
    insert into market_data.split_revisions (
        symbol, execution_date, split_from, split_to, first_seen_at, superseded_at
    )
    values ('AAPL', '2026-03-02', 1, 8, now(), now())
"""
# The template of the tests lets them write to these views.
VIEWS_AS_MIGRATED = [
    f"create or replace trigger refuse_direct_write instead of insert or update or delete on market_data.{view}"
    " for each row execute function market_data.refuse_direct_write()"
    for view in ("bars", "features")
]
# Ways to change or lose what was recorded.
ATTACKS = [
    f"{attack}"
    for table in ("ingest_log", "run_log", "bar_revisions")
    for attack in (
        f"update market_data.{table} set run_id = 'another'",
        f"delete from market_data.{table}",
        f"truncate market_data.{table}",
        f"drop table market_data.{table}",
        f"alter table market_data.{table} disable trigger all",
        f"drop trigger {table}_append_only on market_data.{table}",
        f"alter table market_data.{table} drop column run_id",
        f"alter table market_data.{table} rename to gone",
        f"create rule hide as on insert to market_data.{table} do instead nothing",
        f"copy market_data.{table} from program 'true'",
        f"alter table market_data.{table} owner to current_user",
    )
] + [
    # What only the roll-up writes.
    "delete from market_data.ingest_log_days",
    "update market_data.ingest_log_days set requests = 0",
    "insert into market_data.ingest_log_runs (run_id, series, started_at, finished_at, requests)"
    " values ('r', '{}', now(), now(), 0)",
    "truncate market_data.ingest_log_runs",
    # What the database alone records.
    "insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status, recorded_at)"
    " values ('r', 'AAPL', '5m', now(), now(), 'ok', now())",
    "insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series, recorded_at)"
    " values ('r', now(), 'j', 't', 'b', 'w', 's', now())",
    "insert into market_data.split_revisions values ('AAPL', '2026-03-02', 1, 8, now(), now(), null, true, now())",
    f"insert into market_data.records ({COLUMNS}, recorded_at)"
    f" values ({SERIES}, '2026-03-11 16:00Z', 1, 2, 1, 2, 10, now(), now())",
    "copy market_data.records_5m (series, recorded_at) from stdin",
    "update market_data.records_5m set recorded_at = now()",
    "insert into market_data.split_changes (change, symbol, execution_date, split_from, split_to, counts,"
    " first_seen_at) values ('insert', 'AAPL', '2026-03-02', 1, 8, true, now())",
    "update market_data.split_changes set recorded_at = now()",
    "delete from market_data.split_changes",
    "update market_data.split_revisions set split_to = 2",
    "delete from market_data.split_revisions",
    "truncate market_data.split_revisions",
    "drop trigger split_revisions_append_only on market_data.split_revisions",
    "insert into market_data.dividend_revisions values ('AAPL', '2026-03-02', 1, 'USD', null, null, null, null, null,"
    " null, now(), now(), now())",
    "insert into market_data.dividend_changes (change, symbol, ex_date, amount, currency, first_seen_at)"
    " values ('insert', 'AAPL', '2026-03-02', 1, 'USD', now())",
    "update market_data.dividend_revisions set amount = 2",
    "delete from market_data.dividend_changes",
    "truncate market_data.dividend_revisions",
    "drop trigger dividend_revisions_append_only on market_data.dividend_revisions",
    "insert into market_data.bar_revisions (symbol) values ('AAPL')",
    "update market_data.records set close = 3",
    "update market_data.records_5m set ingested_at = now()",
    "delete from market_data.records",
    "truncate market_data.records_5m",
    "update market_data.records_5m_2026_03 set atr = 3",
    f"insert into market_data.records_5m_2026_03 ({COLUMNS}) values ({SERIES}, '2026-03-11 16:00Z', 1, 2, 1, 2, 3,"
    " now())",
    # The views, whose trigger says why.
    "insert into market_data.bars (symbol, timeframe, ts, open, high, low, close, volume, ingested_at)"
    " values ('AAPL', '5m', '2026-03-11 16:00Z', 1, 2, 1, 2, 10, now())",
    "update market_data.bars set close = 3",
    "delete from market_data.bars",
    "insert into market_data.series values (16777300, 'MSFT', '5m')",
    "update market_data.series set symbol = 'MSFT'",
    "delete from market_data.series",
    "drop schema market_data cascade",
    "create or replace function market_data.refuse_change() returns trigger language plpgsql as 'begin end'",
    "drop function market_data.refuse_change() cascade",
    "create table market_data.mine (n integer)",
    "set session_replication_role = replica",
    "delete from market_data.schema_migrations",
    "select market_data.apply_privileges('market_data')",
]


@contextmanager
def login(postgres_url: str, url: str, *, member_of: str = "") -> Iterator[str]:
    """Yield the URL of `url`'s database for a new login that is a member of one group at most."""
    name = f"login_{os.urandom(4).hex()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"create role {name} login password 'secret'" + (f" in role {member_of}" * bool(member_of)))
        connection.execute(f"grant {name} to current_user")
    parts = urlsplit(url)
    yield parts._replace(netloc=f"{name}:secret@{parts.netloc.rpartition('@')[2]}").geturl()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"drop owned by {name} cascade")
        connection.execute(f"drop role {name}")


@pytest.fixture
def recorded(database_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The owner's connection to a database with a bar, a superseded bar and an audit row."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        for statement in VIEWS_AS_MIGRATED:
            owner.execute(statement)
        assert owner.execute("select market_data.series_id('AAPL', '5m')").fetchone() == (SERIES,)
        owner.execute("select market_data.make_partitions('5m', '2026-03-11', '2026-03-11')")
        owner.execute(ROW)
        owner.execute(SPLIT)
        for _ in range(2):
            owner.execute(BAR)
            supersede = (
                "select market_data.supersede_bars('AAPL', '5m', array['2026-03-11 15:00Z'::timestamptz], %s, 'r')"
            )
            owner.execute(supersede, (AT,))
        owner.execute(BAR)
        yield owner


def counts(owner: psycopg.Connection[tuple[object, ...]]) -> list[object]:
    tables = ("ingest_log", "split_revisions", "bar_revisions", "bars")
    return [owner.execute(f"select count(*) from market_data.{table}").fetchone() for table in tables]


def test_a_login_that_is_only_a_writer_can_change_nothing_that_was_recorded(
    recorded: psycopg.Connection[tuple[object, ...]], postgres_url: str, database_url: str
) -> None:
    before = counts(recorded)
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as pipeline,
    ):
        for attack in ATTACKS:
            for first in ("set role market_data_writer", "reset role"):
                pipeline.execute(first)
                with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
                    pipeline.execute(attack)
        assert counts(recorded) == before
        pipeline.execute(ROW)  # what it is for
        pipeline.execute(SPLIT)
    assert counts(recorded)[:2] == [(2,), (2,)]
    rights = "select privilege_type from information_schema.column_privileges where table_name = %s and grantee = %s"
    granted = recorded.execute(rights, ("split_revisions", Role.WRITER)).fetchall()
    assert {row[0] for row in granted} == {"SELECT", "INSERT"}  # the trigger is not all that stands in the way


def test_the_owner_cannot_change_the_audit_log_by_mistake_either(
    recorded: psycopg.Connection[tuple[object, ...]],
) -> None:
    for table in ("ingest_log", "run_log", "bar_revisions"):
        for attack in (f"update market_data.{table} set run_id = ''", f"delete from market_data.{table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                recorded.execute(attack)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            recorded.execute(f"truncate market_data.{table}")


HISTORIES = {
    "securities": ("security, name, first_seen_at", "'S', 'a name', '2026-03-01'", "name", "superseded_at"),
    "symbol_history": (
        "security, symbol, source, first_seen_at", "'S', 'AAPL', 'events', '2026-03-01'", "symbol", "superseded_at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("table", HISTORIES)
def test_a_row_of_the_history_of_securities_is_ended_once_and_else_stays(
    postgres_url: str, database_url: str, table: str
) -> None:
    columns, values, name, end = HISTORIES[table]
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as writer,
        psycopg.connect(database_url, autocommit=True) as owner,
    ):
        writer.execute(f"insert into market_data.{table} ({columns}, recorded_at) values ({values}, '2020-01-01')")
        writer.execute(f"update market_data.{table} set {end} = '2026-03-02', end_recorded_at = '2020-01-01'")
        for connection in (writer, owner):
            for attack in (
                f"update market_data.{table} set {name} = 'other'",
                f"update market_data.{table} set {end} = '2026-03-03'",
                f"update market_data.{table} set {end} = null",
                f"update market_data.{table} set first_seen_at = '2020-01-01'",
                f"delete from market_data.{table}",
                f"truncate market_data.{table}",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(attack)
        fresh = f"select min(least(recorded_at, end_recorded_at)) > now() - interval '1 hour' from market_data.{table}"
        assert owner.execute(fresh).fetchone() == (True,)


def test_only_a_change_of_the_universe_changes_its_membership(postgres_url: str, database_url: str) -> None:
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as writer,
        psycopg.connect(database_url, autocommit=True) as owner,
    ):
        writer.execute("insert into market_data.symbols values ('AAPL', 'critical', 'us_equity', true, '2026-03-01')")
        writer.execute("update market_data.symbols set active = false")
        writer.execute("create temp table mine (n integer)")
        writer.execute(
            "create function pg_temp.cheat() returns trigger language plpgsql as $$ begin"
            " update market_data.universe_membership set followed_until = null; return null; end $$"
        )
        writer.execute("create trigger cheat after insert on mine execute function pg_temp.cheat()")
        for connection in (writer, owner):
            for attack in (
                "insert into market_data.universe_membership values ('MSFT', 'critical', '2020-01-01')",
                "update market_data.universe_membership set tier = 'standard'",
                "update market_data.universe_membership set followed_until = null",
                "delete from market_data.universe_membership",
                "truncate market_data.universe_membership",
                *(["insert into mine values (1)"] if connection is writer else []),
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(attack)
        member = owner.execute(
            "select symbol, tier, followed_until is null, end_recorded_at > now() - interval '1 hour'"
            " from market_data.universe_membership"
        ).fetchall()
        assert member == [("AAPL", "critical", False, True)]


def test_what_a_writer_stores_as_if_at_another_time_shows(
    postgres_url: str, database_url: str, recorded: psycopg.Connection[tuple[object, ...]]
) -> None:
    past = datetime(2026, 3, 11, 16, 30, tzinfo=UTC)
    bar = (
        f"insert into market_data.records_5m ({COLUMNS})"
        " values (market_data.series_id('MSFT', '5m'), %s, 1, 2, 1, 2, 10, %s)"
    )
    split = (
        "insert into market_data.splits (symbol, execution_date, split_from, split_to, first_seen_at)"
        " values ('MSFT', '2026-03-02', 1, %s, %s)"
    )
    log = (
        "insert into market_data.ingest_log (run_id, symbol, timeframe, started_at, finished_at, status)"
        " values ('r', 'MSFT', '5m', %s, %s, 'ok')"
    )
    run = (
        "insert into market_data.run_log (run_id, started_at, job, trigger, requested_by, reason, series)"
        " values ('r', %s, 'j', 't', 'b', 'w', 's')"
    )
    honest, lie = datetime(2026, 3, 11, 15, 0, tzinfo=UTC), datetime(2026, 3, 11, 15, 5, tzinfo=UTC)
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as writer,
    ):
        now = datetime.now(UTC)
        writer.execute(bar, (honest, now))
        writer.execute(bar, (lie, past))
        writer.execute(bar.replace("records_5m", "records"), (lie + timedelta(minutes=5), past))
        writer.execute(split, (2, now))
        writer.execute(split, (3, past))
        writer.execute("update market_data.splits set split_to = 4, first_seen_at = %s where split_to = 2", (past,))
        writer.execute(log, (past, past))
        writer.execute(log, (now, now))
        writer.execute(run, (past,))
        writer.execute(
            "select market_data.supersede_bars('MSFT', '5m', array[%s::timestamptz], %s, 'r')", (honest, past)
        )
        others = (
            "select relation, instant, ts, claimed_at from market_data.recorded_instants"
            " where recorded_at - claimed_at not between '-1 minute' and '5 minutes' and coalesce(symbol, '') <> 'AAPL'"
            " order by 1, 2, 3"
        )
        assert writer.execute(others).fetchall() == [
            ("bar_revisions", "superseded_at", honest, past),
            ("bars", "ingested_at", lie, past),
            ("bars", "ingested_at", lie + timedelta(minutes=5), past),
            ("ingest_log", "finished_at", None, past),
            ("run_log", "started_at", None, past),
            ("splits", "first_seen_at", None, past),
            ("splits", "first_seen_at", None, past),
        ]
        as_if, in_truth = (
            writer.execute(f"select ts from market_data.{function}('MSFT', '5m', %s)", (past,)).fetchall()
            for function in ("bars_as_of", "bars_recorded_by")
        )
        assert ({ts for (ts,) in as_if}, in_truth) == ({lie, lie + timedelta(minutes=5)}, [])
        changes = "select change, split_to from market_data.split_changes where symbol = 'MSFT' order by id"
        assert writer.execute(changes).fetchall() == [("insert", 2), ("insert", 3), ("update", 4)]
        before = writer.execute("select count(*) from market_data.split_changes").fetchone()
        writer.execute("update market_data.splits set doubt = 'why'")
        assert writer.execute("select count(*) from market_data.split_changes").fetchone() == before
        writer.execute("delete from market_data.splits where split_to = 4")
        assert writer.execute(changes).fetchall()[-1] == ("delete", 4)


def test_rows_are_recorded_when_their_statement_began_and_not_their_transaction(database_url: str) -> None:
    with StoreConnection(database_url) as acting, acting._connection as connection:
        connection.execute("select market_data.make_partitions('5m', %s, %s)", (AT, AT))
        series = connection.execute("select market_data.series_id('AAPL', '5m')").fetchone()
        assert series is not None
        begun = connection.execute("select now()").fetchone()
        before = connection.execute("select clock_timestamp()").fetchone()
        with connection.cursor() as cursor, cursor.copy(COPY) as rows:
            for minutes in range(0, 60, 5):
                rows.write_row((series[0], AT + timedelta(minutes=minutes), 1, 2, 1, 2, 10, AT))
        recorded = connection.execute(
            "select min(recorded_at), max(recorded_at), count(*), clock_timestamp() from market_data.bars"
        ).fetchone()
    assert begun is not None
    assert before is not None
    assert recorded is not None
    first, last, count, after = recorded
    assert begun[0] < before[0] < first == last < after
    assert count == 12


def test_a_writer_cannot_begin_a_statement_long_before_it_has_the_rows(
    postgres_url: str, database_url: str, recorded: psycopg.Connection[tuple[object, ...]]
) -> None:
    triggers = recorded.execute(
        "select tgrelid::regclass::text, pg_get_triggerdef(oid) from pg_trigger where tgname = 'refuse_slow_statement'"
    ).fetchall()
    assert len(triggers) == 6
    for table, definition in triggers:  # let a statement be slow at once
        assert "> '00:01:00'::interval" in str(definition)
        recorded.execute(f"drop trigger refuse_slow_statement on {table}")
        recorded.execute(str(definition).replace("00:01:00", "00:00:00"))
    bar = BAR.replace("15:00Z", "16:00Z")
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as writer,
    ):
        for attack in (bar, bar.replace("records_5m", "records"), f"do $$ begin {bar}; end $$"):
            with pytest.raises(psycopg.errors.QueryCanceled, match="within a minute"):
                writer.execute(attack)
        with (
            pytest.raises(psycopg.errors.QueryCanceled, match="within a minute"),
            writer.cursor() as cursor,
            cursor.copy(COPY) as rows,
        ):
            rows.write_row((SERIES, AT, 1, 2, 1, 2, 10, AT))
    assert counts(recorded)[-1] == (1,)
    recorded.execute(bar)  # the owner may give any instant
    assert counts(recorded)[-1] == (2,)


def act_of_sqlalchemy(url: str) -> str:
    made = engine(url)
    with made.connect() as connection:
        who = str(connection.execute(sa.text("select current_user")).scalar_one())
    made.dispose()
    return who


def act_of_a_run(url: str) -> str:
    with StoreConnection(url) as connection:
        connection.rollback()  # the role outlives the transaction
        return str(connection.rows("select current_user::text as who")[0]["who"])


def act_of_the_limiter(url: str) -> str:
    queue = RateLimitQueue(url, 0.01)
    try:
        with queue._pool().connection() as connection:
            row = connection.execute("select current_user").fetchone()
            return str(row and row[0])
    finally:
        queue.close()


@pytest.mark.parametrize("act", [act_of_sqlalchemy, act_of_a_run, act_of_the_limiter])
def test_every_connection_of_the_pipeline_acts_as_the_writer_even_for_an_owners_login(
    act: Callable[[str], str], database_url: str
) -> None:
    assert act(database_url) == "market_data_writer"


def test_a_notebooks_connection_acts_as_the_reader_even_with_an_owners_login(database_url: str) -> None:
    with StoreConnection(database_url, role=Role.READER) as reader:
        reader.rollback()
        assert reader.rows("select current_user::text as who") == [{"who": "market_data_reader"}]
        with pytest.raises(PipelineError, match="42501"):
            reader.execute("delete from market_data.bars")


def test_a_writer_may_replace_the_features_of_a_record_and_is_told_why_not_those_of_the_view(
    recorded: psycopg.Connection[tuple[object, ...]], postgres_url: str, database_url: str
) -> None:
    with (
        login(postgres_url, database_url, member_of=Role.WRITER) as url,
        psycopg.connect(url, autocommit=True) as writer,
    ):
        writer.execute("update market_data.records_5m set atr = 3, codes = 2, features_after = 0, extra = '{}'")
        assert writer.execute("select atr, hh from market_data.features").fetchall() == [(3.0, True)]
        for statement in ("update market_data.features set atr = 4", "delete from market_data.features"):
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="is a view and cannot be written") as refusal:
                writer.execute(statement)
            assert "market-data backfill" in str(refusal.value.diag.message_hint)
    assert counts(recorded)[-1] == (1,)


def test_a_reader_reads_and_may_only_request_backfills(database_url: str, recorded: object) -> None:
    with engine(database_url, role=Role.READER).connect() as reader:
        assert reader.execute(sa.text("select count(*) from market_data.bars_adjusted")).scalar_one() == 1
        ask = "insert into market_data.backfill_requests (symbol, timeframe, requested_at, requested_by)"
        reader.execute(sa.text(f"{ask} values ('AAPL', '5m', now(), 'test')"))
        reader.commit()
        for statement in (
            ROW,
            BAR,
            "delete from market_data.backfill_requests",
            "update market_data.symbols set tier = ''",
        ):
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                reader.execute(sa.text(statement))
            reader.rollback()


def test_a_table_of_a_later_migration_has_its_grants_at_once(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    for file in SQL.glob("*.sql"):
        (tmp_path / "sql" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "sql" / "9001_more.sql").write_text(
        "-- migrate:up\ncreate table market_data.more (n integer);\n-- migrate:down\n"
    )
    migrate_database(database_url, tmp_path / "sql")
    with engine(database_url).begin() as writer, engine(database_url, role=Role.READER).begin() as reader:
        writer.execute(sa.text("insert into market_data.more values (1)"))
        assert reader.execute(sa.text("select count(*) from market_data.more")).scalar_one() == 0


def test_a_login_of_its_own_is_made_a_member_by_the_owners_migration(
    postgres_url: str, empty_database_url: str
) -> None:
    with login(postgres_url, empty_database_url) as url:
        settings = Settings(
            database_url=url, owner_url=empty_database_url, project_root=REPOSITORY, dagster_home=REPOSITORY
        )
        assert migrate(settings)
        assert missing_privileges(settings) is None
        assert act_of_sqlalchemy(url) == "market_data_writer"
        assert migrate(settings.model_copy(update={"owner_url": url})) == []  # nothing to apply, so no owner is needed


def test_where_roles_cannot_be_created_everything_works_and_the_administrators_sql_is_returned(
    postgres_url: str, empty_database_url: str
) -> None:
    with login(postgres_url, empty_database_url) as url:
        name, database = urlsplit(url).username, urlsplit(url).path[1:]
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            administrator.execute(f"grant create on database {database} to {name}")
        settings = Settings(database_url=url, owner_url=url, project_root=REPOSITORY, dagster_home=REPOSITORY)
        assert migrate(settings)
        needed = missing_privileges(settings)
        assert needed is not None
        assert f"grant market_data_writer to {name}" in needed
        assert act_of_sqlalchemy(url) == name
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(ROW)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute("delete from market_data.ingest_log")
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            administrator.execute(needed)
        migrate(settings)
        assert missing_privileges(settings) is None
        assert act_of_sqlalchemy(url) == "market_data_writer"


def test_databases_of_one_server_can_be_migrated_at_the_same_time(postgres_url: str) -> None:
    names = [f"side_{os.urandom(4).hex()}" for _ in range(3)]
    urls = [urlsplit(postgres_url)._replace(path=f"/{name}").geturl() for name in names]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in names:
            connection.execute(f"create database {name}")
        with ThreadPoolExecutor(3) as pool:
            applied = list(pool.map(lambda url: migrate_database(url, SQL), urls))
        assert all(applied)
        assert {act_of_a_run(url) for url in urls} == {"market_data_writer"}
        for name in names:
            drop_database(connection, name)
