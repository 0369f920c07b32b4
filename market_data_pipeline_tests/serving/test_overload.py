"""More requests than connections: busy is not lost, and monitors are answered."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import psycopg
import pytest
import requests

from market_data_pipeline.serving import database
from market_data_pipeline.serving.problems import DATABASE_BUSY
from market_data_pipeline_tests.serving.conftest import MovableClock, evaluate, serve
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.waiting import until

READERS = 16


def waiting(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    (found,) = connection.execute(
        "select count(*) from pg_locks where not granted and locktype = 'relation'"
        " and database = (select oid from pg_database where datname = current_database())"
    ).fetchone() or (0,)
    return int(str(found))


def test_monitors_are_answered_while_reports_wait_and_those_that_wait_too_long_are_told_to_return(
    settings: MovableClock,
    seed: Seed,
    dagster_instance: dg.DagsterInstance,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "LANE_TIMEOUT_SECONDS", 0.5)
    for number in range(READERS):
        seed.symbol(f"S{number}")
    answers: list[requests.Response] = []
    with serve(settings) as api, psycopg.connect(database_url) as other, ThreadPoolExecutor(READERS) as readers:
        other.execute("lock table market_data.bar_revisions in access exclusive mode")
        refused = threading.Semaphore(0)

        def read(number: int) -> None:
            answer = requests.get(f"{api.base}/series/S{number}/5m", timeout=60)
            answers.append(answer)
            if answer.status_code == 503:
                refused.release()

        evaluate(dagster_instance)
        reading = readers.map(read, range(READERS))
        until(lambda: waiting(other) == database.REPORT_LANE)
        for _ in range(5):
            assert api.get("/health").json()["database"] == {"reachable": True, "detail": "PostgreSQL answers."}
            assert "market_data_database_up 1.0" in api.get("/metrics").text
        for _ in range(READERS - database.REPORT_LANE):
            refused.acquire()
        other.rollback()
        list(reading)
    assert sorted(answer.status_code for answer in answers) == [200] * database.REPORT_LANE + [503] * (
        READERS - database.REPORT_LANE
    )
    for answer in answers:
        if answer.status_code == 503:
            assert "The API is busy" in answer.text
            assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/", "/series/AAPL/5m"])
def test_readers_of_the_same_page_share_one(
    settings: MovableClock, seed: Seed, dagster_instance: dg.DagsterInstance, database_url: str, path: str
) -> None:
    seed.series("AAPL")
    with serve(settings) as api, psycopg.connect(database_url) as other, ThreadPoolExecutor(READERS) as readers:
        other.execute("lock table market_data.series_state in access exclusive mode")
        reading = [readers.submit(requests.get, api.base + path, timeout=60) for _ in range(READERS)]
        until(lambda: waiting(other) == 1 and api.requests_under_way() == READERS)
        assert waiting(other) == 1
        other.rollback()
        pages = {reader.result().text for reader in reading}
    assert len(pages) == 1
    assert "AAPL" in pages.pop()


def test_a_server_without_a_free_connection_is_busy_and_not_lost(
    settings: MovableClock, seed: Seed, dagster_instance: dg.DagsterInstance, postgres_url: str, database_url: str
) -> None:
    from market_data_pipeline_tests.store.test_privileges import login

    with login(postgres_url, database_url, member_of="market_data_reader") as url:
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            administrator.execute(f"alter role {psycopg.conninfo.conninfo_to_dict(url)['user']} connection limit 0")
        with serve(settings.model_copy(update={"database_url": url})) as api:
            answer = api.get("/api/v1/bars/AAPL", timeframe="5m")
            assert (answer.status_code, answer.json()["detail"]) == (503, DATABASE_BUSY)
            health = api.get("/health").json()
    assert health["database"]["reachable"] is True
    assert "busy" in health["database"]["detail"]
