"""A fresh folder with a PostgreSQL of the user's own, named only in the environment, and bars that must not mix."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.end_to_end.conftest import folder
from market_data_pipeline_tests.end_to_end.project import Done, Project, sentence


@pytest.fixture(scope="module")
def own_server(postgres_url: str) -> Iterator[str]:
    name = copy_database(postgres_url, "template1")
    yield with_database(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with folder() as root:
        made = Project(root, universe="tiers: {critical: [AAPL]}\n", MARKET_DATA_HISTORY_DAYS=3)
        yield made
        made.clean_up()


@pytest.fixture(scope="module")
def first_start(project: Project, own_server: str) -> Done:
    return project.run("market-data", "up", "--once", DATABASE_URL=own_server)


def count(url: str, statement: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return int(row[0]) if row else 0


def test_the_url_in_the_environment_is_enough_and_holds_for_that_command_alone(
    project: Project, own_server: str, first_start: Done
) -> None:
    assert (first_start.code, first_start.err) == (0, "")
    assert "PostgreSQL of DATABASE_URL" in first_start.out
    assert count(own_server, "select count(*) from market_data.bars") > 100
    assert count(own_server, "select count(*) from public.runs") >= 1
    assert not (project.state / "postgres").exists()
    assert own_server.partition("?")[0] not in (project.root / ".env").read_text()
    assert project.settings.embedded_database


def test_dagsters_command_finds_the_same_storage(project: Project, own_server: str, first_start: Done) -> None:
    done = project.run("dagster", "run", "list", "--limit", "1", DATABASE_URL=own_server)
    assert "Job: critical_refresh" in done.out, done.err
    assert not (project.state / "postgres").exists()


def test_health_says_whose_bars_they_are(project: Project, own_server: str, first_start: Done) -> None:
    assert "Bars of sandbox (plan advanced)" in project.run("market-data", "health", DATABASE_URL=own_server).out


def test_a_vendors_bars_are_not_stored_among_them(project: Project, own_server: str, first_start: Done) -> None:
    key = {"POLYGON_API_KEY": "a-key-long-enough"}
    done = project.run("market-data", "up", "--once", DATABASE_URL=own_server, **key)
    assert done.code == 2
    assert "holds the sandbox's synthetic bars" in sentence(done)
    assert project.processes() == []


def test_nor_synthetic_ones_among_a_vendors(project: Project, own_server: str, first_start: Done) -> None:
    with psycopg.connect(own_server) as connection:
        connection.execute("update market_data.source set kind = 'vendor', host = 'api.polygon.io'")
    before = count(own_server, "select count(*) from market_data.ingest_log")
    done = project.run("market-data", "backfill", "--full", DATABASE_URL=own_server)
    assert done.code == 2
    assert "set POLYGON_API_KEY" in sentence(done)
    assert count(own_server, "select count(*) from market_data.ingest_log") == before
    assert project.processes() == []


def test_a_missing_key_does_not_turn_a_project_with_a_vendors_bars_into_a_synthetic_one(project: Project) -> None:
    project.postgres.ensure_running()
    assert project.run("market-data", "migrate", POLYGON_API_KEY="a-key-long-enough").code == 0
    with psycopg.connect(project.postgres.owner_url) as connection:
        columns = "insert into market_data.source (kind, host, plan, since)"
        connection.execute(f"{columns} values ('vendor', 'api.polygon.io', 'basic', now())".encode())
    done = project.run("market-data", "up", "--once")
    assert done.code == 2
    assert "holds bars of api.polygon.io" in sentence(done)
    assert project.processes() == []


def test_down_stops_the_embedded_server_whatever_database_it_is_told(project: Project, own_server: str) -> None:
    done = project.run("market-data", "down", DATABASE_URL=own_server)
    assert (done.code, done.err) == (0, "")
    assert "PostgreSQL" in done.out
    assert not project.postgres.is_running()
