"""How connections are set up, and what the message says when there is none."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from market_data_pipeline.store.connection import describe, engine, libpq_url
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.rate_limit_queue import RateLimitQueue

AS_OF = datetime(2025, 3, 14, 19, 30, tzinfo=UTC)


def _one(made: sa.Engine, statement: str) -> object:
    with made.connect() as connection:
        return connection.execute(sa.text(statement)).scalar_one()


def test_connections_are_in_utc_and_named(database_url: str) -> None:
    made = engine(database_url, application_name="market-data-test")

    assert _one(made, "show timezone") == "UTC"
    assert _one(made, "show application_name") == "market-data-test"
    assert _one(made, "select timestamptz '2025-03-14 15:30-04'") == AS_OF
    made.dispose()


@pytest.mark.parametrize("kind", ["engine", "store connection", "rate limit queue"])
def test_every_kind_of_connection_has_the_same_settings(kind: str, database_url: str) -> None:
    shown = "select current_setting('timezone'), current_setting('client_connection_check_interval'), current_user"
    if kind == "engine":
        made = engine(database_url)
        with made.connect() as connection:
            row = connection.exec_driver_sql(shown).one()
            parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        made.dispose()
    elif kind == "store connection":
        with StoreConnection(database_url) as store:
            (found,) = store.rows(shown.replace("'timezone')", "'timezone') as zone"))
            row, parameters = tuple(found.values()), store._connection.info.get_parameters()
    else:
        queue = RateLimitQueue(database_url, 0.01)
        with queue._pool().connection() as connection:
            row, parameters = connection.execute(shown).fetchone(), connection.info.get_parameters()
        queue.close()
    assert tuple(row or ()) == ("UTC", "10s", "market_data_writer")
    assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == ("30", "90000")


def test_every_connection_of_a_replay_sees_its_instant(database_url: str) -> None:
    made = engine(database_url, as_of=AS_OF, pool_size=2)

    with made.connect() as first, made.connect() as second:
        for connection in (first, second):
            assert connection.execute(sa.text("select market_data.clock()")).scalar_one() == AS_OF
            connection.rollback()
            assert connection.execute(sa.text("select market_data.clock()")).scalar_one() == AS_OF
    made.dispose()


def test_without_a_replay_the_clock_is_the_real_one(database_url: str) -> None:
    made = engine(database_url)

    assert _one(made, "select abs(extract(epoch from market_data.clock() - now())) < 1") is True
    made.dispose()


def test_psycopg2_and_sqlalchemy_take_the_url_that_dagster_gets(database_url: str) -> None:
    made = sa.create_engine("postgresql+psycopg2" + database_url[database_url.index("://") :])

    assert _one(made, "select current_database()") == urlsplit(database_url).path[1:]
    made.dispose()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql+psycopg://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql+psycopg2://u@/d?host=%2Frun", "postgresql://u@/d?host=%2Frun"),
    ],
)
def test_a_libpq_url_has_no_driver(given: str, expected: str) -> None:
    assert libpq_url(given) == expected


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/prices", "PostgreSQL at 127.0.0.1:1 (database prices, user me)"),
        ("postgresql://me:hunter2@/prices?host=/no/such", "PostgreSQL at /no/such (database prices, user me)"),
    ],
)
def test_an_unreachable_server_is_named_in_one_sentence(url: str, names: str) -> None:
    made = engine(url)

    with pytest.raises(DatabaseUnavailableError) as failure:
        made.connect()

    assert str(failure.value).startswith(names)
    assert "hunter2" not in str(failure.value)
    assert "\n" not in str(failure.value)
    assert failure.value.__cause__ is None


def test_a_database_that_does_not_exist_is_named(database_url: str) -> None:
    missing = urlsplit(database_url)._replace(path="/no_such_database").geturl()

    with pytest.raises(DatabaseUnavailableError, match='database "no_such_database" does not exist'):
        engine(missing).connect()


def test_a_wrong_password_is_reported_without_showing_it(database_url: str) -> None:
    parts = urlsplit(database_url)
    wrong = parts._replace(netloc=f"{parts.username}:hunter2@{parts.netloc.rpartition('@')[2]}").geturl()

    try:
        psycopg.connect(wrong).close()
    except psycopg.OperationalError:
        pass
    else:
        pytest.skip("this server accepts connections without a password")

    with pytest.raises(DatabaseUnavailableError) as failure:
        engine(wrong).connect()

    assert "password authentication failed" in str(failure.value)
    assert "hunter2" not in str(failure.value)


def test_a_url_that_libpq_does_not_understand_is_reported_without_showing_it() -> None:
    with pytest.raises(ConfigurationError) as failure:
        engine("postgresql://me:hunter2%zz@db/prices")

    assert "hunter2" not in str(failure.value)
    assert "for example DATABASE_URL=" in str(failure.value)
    assert failure.value.__cause__ is None


def _terminate(url: str, application_name: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = %s",
            (application_name,),
        )


def test_a_connection_lost_while_idle_is_replaced_unnoticed(database_url: str) -> None:
    name = f"idle-{uuid.uuid4()}"
    made = engine(database_url, application_name=name)
    assert _one(made, "select 1") == 1

    _terminate(database_url, name)

    assert _one(made, "select 1") == 1
    made.dispose()


def test_a_connection_lost_during_work_is_reported_as_database_unavailable(database_url: str) -> None:
    name = f"busy-{uuid.uuid4()}"
    made = engine(database_url, application_name=name)

    with made.connect() as connection:
        connection.execute(sa.text("select 1"))
        _terminate(database_url, name)
        lost = r"The connection to PostgreSQL was lost \(.+\)\. Is it running\?$"
        with pytest.raises(DatabaseUnavailableError, match=lost):
            connection.execute(sa.text("select :secret"), {"secret": "hunter2"})
    made.dispose()


def test_the_port_of_the_url_wins_over_the_environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PGPORT", "1")

    made = engine(database_url)
    assert _one(made, "select 1") == 1
    made.dispose()


def test_a_description_has_no_password() -> None:
    assert "hunter2" not in describe("postgresql+psycopg2://me:hunter2@db/prices?password=hunter2")
