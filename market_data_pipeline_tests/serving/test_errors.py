"""Every failure is a problem document that says what to do and shows nothing internal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
import requests

from market_data_pipeline.serving import database
from market_data_pipeline_tests.conftest import with_database
from market_data_pipeline_tests.server_clients import end_clients
from market_data_pipeline_tests.serving.conftest import BARS, FEATURES, Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import Seed
from market_data_pipeline_tests.waiting import until


def problem(response: requests.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document: dict[str, object] = response.json()
    assert document["status"] == status
    assert {"type", "title", "detail", "instance"} <= set(document)
    return document


@pytest.mark.parametrize(
    ("params", "parameter", "words"),
    [
        ({"limit": "0"}, "limit", "at least 1; '0'"),
        ({"limit": "10001"}, "limit", "at most 10000; '10001'"),
        ({"limit": "many"}, "limit", "'many'"),
        ({"timeframe": "7m"}, "timeframe", "'7m'; known are 5m, 15m, 1h, 4h, 1d"),
        ({"start": "yesterday"}, "start", "not an ISO 8601 date or instant such as"),
        ({"start": "2026-02-30"}, "start", "'2026-02-30' is not an ISO 8601 date"),
        ({"end": "2026-03-01T10:00:00"}, "end", "append Z"),
        ({"end": "20260301"}, "end", "such as 2026-01-05"),
        ({"start": "0001-01-01T00:00:00+14:00"}, "start", "years 1 to 9999"),
        ({"start": "2026-03-02T05:00:01Z", "end": "2026-03-02"}, "start", "must not be after end"),
        ({"cursor": "abc"}, "cursor", "not one that this address gave"),
        ({"limti": "5"}, "limti", "no such parameter"),
    ],
)
def test_a_bad_parameter_is_named(api: Api, params: dict[str, str], parameter: str, words: str) -> None:
    for path in (FEATURES, BARS):
        document = problem(api.get(f"{path}/AAPL", **params), 422)
        errors = document["errors"]
        assert isinstance(errors, list)
        assert [error["parameter"] for error in errors] == [parameter]
        assert words in errors[0]["detail"]
        assert parameter in str(document["detail"])


def test_all_bad_parameters_are_named_at_once(api: Api) -> None:
    document = problem(api.get(f"{FEATURES}/AAPL", limit="0", timeframe="x"), 422)
    assert isinstance(document["errors"], list)
    assert {error["parameter"] for error in document["errors"]} == {"limit", "timeframe"}


@pytest.mark.parametrize("path", ["/nope", "/api/v1/features", "/api/v2/bars/AAPL"])
def test_an_unknown_address_is_a_problem_document(api: Api, path: str) -> None:
    problem(api.get(path), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_refused_with_the_ones_offered(api: Api, method: str) -> None:
    response = api.session.request(method, f"{api.base}{FEATURES}/AAPL", timeout=60)
    problem(response, 405)
    assert response.headers["Allow"] == "GET, HEAD"


@contextmanager
def unreachable(database_url: str, postgres_url: str) -> Iterator[None]:
    name = urlsplit(database_url).path.lstrip("/")
    with psycopg.connect(with_database(postgres_url, "postgres"), autocommit=True) as connection:
        connection.execute(f"alter database {name} allow_connections false")
        end_clients(with_database(postgres_url, "postgres"), database=name)
        try:
            yield
        finally:
            connection.execute(f"alter database {name} allow_connections true")


def test_a_lost_database_is_503_with_retry_after_and_its_return_is_noticed(
    api: Api, seed: Seed, database_url: str, postgres_url: str
) -> None:
    seed.series("AAPL")
    api.wait_for_cache()
    api.get(f"{FEATURES}/AAPL", timeframe="5m")

    with unreachable(database_url, postgres_url):
        until(lambda: api.get(f"{FEATURES}/AAPL", timeframe="5m").status_code == 503)
        for path in (f"{FEATURES}/AAPL", f"{BARS}/AAPL", "/api/v1/admin/features/staleness", "/health"):
            response = api.get(path)
            problem(response, 503)
            assert int(response.headers["Retry-After"]) > 0
            for inside in ("select", "psycopg", "socket", urlsplit(database_url).path[1:], "postgres:"):
                assert inside not in response.text
        assert api.get("/health").json()["database"]["reachable"] is False
        assert "market_data_database_up 0.0" in api.get("/metrics").text
        page = api.get("/")
        assert (page.status_code, "cannot be reached" in page.text) == (503, True)

    until(lambda: api.get(f"{FEATURES}/AAPL", timeframe="5m").status_code == 200)
    api.wait_for_cache()


def test_the_api_starts_without_a_database(
    settings: MovableClock, seed: Seed, database_url: str, postgres_url: str
) -> None:
    with unreachable(database_url, postgres_url), serve(settings) as api:
        problem(api.get(f"{FEATURES}/AAPL"), 503)
        problem(api.get("/health"), 503)
        assert api.get("/openapi.json").status_code == 200


def test_a_database_without_the_schema_is_503(empty_database_url: str, settings: MovableClock) -> None:
    with serve(settings.model_copy(update={"database_url": empty_database_url})) as api:
        problem(api.get(f"{FEATURES}/AAPL"), 503)


def test_a_statement_that_takes_too_long_is_503(
    settings: MovableClock, seed: Seed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database._SETTINGS, "statement_timeout", "200")
    seed.series("AAPL")
    with serve(settings) as api, psycopg.connect(database_url) as other:
        other.execute("lock table market_data.features in access exclusive mode")
        problem(api.get(f"{FEATURES}/AAPL", timeframe="5m"), 503)


def test_an_unexpected_failure_reveals_nothing_internal(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    seed.run(
        "create or replace function market_data.clock() returns timestamptz language plpgsql stable"
        " as $$ begin return now() + interval '1 day' / 0; end $$"
    )
    document = problem(api.get(f"{FEATURES}/AAPL", timeframe="5m"), 500)
    assert document["detail"] == "Something went wrong here; the server's log says what."
