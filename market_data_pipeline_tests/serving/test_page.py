"""The status page as it is served: what it says, to which reader, in which state, and what its headers allow."""

from __future__ import annotations

import gzip
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from market_data_pipeline_tests.server_clients import end_clients
from market_data_pipeline_tests.serving.conftest import Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import NOW, Seed
from market_data_pipeline_tests.serving.test_reports import critical_refresh, seed_universe


def test_the_page_shows_every_series_readable_without_colour(
    api: Api, seed: Seed, dagster_instance: dg.DagsterInstance
) -> None:
    seed_universe(seed)
    run = critical_refresh.execute_in_process(instance=dagster_instance).run_id
    seed.log(run, "NVDA", "5m", "failed", error_class="DataError", error="<b>prices</b> below zero")

    response = api.get("/")

    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = response.text
    for text in (">✓</span>", ">◔▲</span> 2h", ">!✗▲</span> 9h", ">?</span>", "never computed", "Low priority"):
        assert text in page
    for text in (" late, stale, 3 failures in a row, outside its RPO", "critical_refresh", f"/runs/{run}"):
        assert text in page
    assert "&lt;b&gt;prices&lt;/b&gt; below zero" in page


def test_everyone_sees_whose_bars_they_are(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    assert api.get("/api/v1/admin/scheduler-health").json()["source"] is None
    assert 'id="source"' not in api.get("/").text
    seed.run("insert into market_data.source (kind, plan, since) values ('sandbox', 'advanced', %s)", NOW)
    assert api.get("/api/v1/admin/scheduler-health").json()["source"] == {
        "kind": "sandbox", "host": None, "plan": "advanced", "since": "2026-03-11T15:00:00Z",
    }  # fmt: skip
    assert "Synthetic bars of the sandbox" in api.get("/").text
    seed.run("update market_data.source set kind = 'vendor', host = 'api.polygon.io'")
    assert "Bars of api.polygon.io, plan advanced, since 2026-03-11." in api.get("/").text


def test_failures_with_one_reason_are_one_row(api: Api, seed: Seed, dagster_instance: dg.DagsterInstance) -> None:
    for symbol in ("AAPL", "MSFT", "NVDA", "AMZN", "META", "SPY", "TSLA"):
        seed.series(symbol, consecutive_failures=2, last_error="no answer", last_error_class="TransientError")
    page = api.get("/").text
    failing = page[page.index('id="failing"') : page.index('id="executions"')]
    assert failing.count("no answer") == 1
    assert "and 2 more" in failing


def test_everything_comes_from_this_server(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    response = api.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in policy
    for outside in ("http://", "https://", "<style", "onclick", 'style="'):
        assert outside not in response.text.replace("http://127.0.0.1", "")


def test_static_files_are_known_by_their_etag(api: Api) -> None:
    first = api.get("/static/style.css")
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = api.get("/static/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.get("/static/../page.py").status_code == 404
    assert api.get("/static/nothing.js").status_code == 404
    assert first.headers["content-encoding"] == "gzip"


def test_every_vendored_file_has_its_licence_and_the_recorded_hash() -> None:
    import hashlib

    vendored = Path(__file__).parents[2] / "market_data_pipeline" / "serving" / "static" / "vendor"
    noted = (vendored / "README.md").read_text()
    for file in set(vendored.iterdir()) - {vendored / "README.md", *vendored.glob("*.LICENSE")}:
        line = next(line for line in noted.splitlines() if line.startswith(f"| `{file.name}`"))
        assert hashlib.sha256(file.read_bytes()).hexdigest() in line
        assert (vendored / line.split(".LICENSE")[0].rpartition("`")[2]).with_suffix(".LICENSE").is_file()


def test_the_page_is_compressed_for_clients_that_accept_it(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    assert api.get("/", headers={"Accept-Encoding": "identity"}).headers.get("content-encoding") is None
    response = api.session.get(api.base + "/", headers={"Accept-Encoding": "gzip"}, stream=True, timeout=60)
    assert "within their rpo" in gzip.decompress(response.raw.read(decode_content=False)).decode().lower()


def test_an_empty_universe_has_a_page_that_says_what_to_do(api: Api, seed: Seed) -> None:
    assert "market-data universe import" in api.get("/").text


def test_a_universe_without_bars_has_a_page_that_says_how_to_load_it(api: Api, seed: Seed) -> None:
    seed.symbol("AAPL")
    page = api.get("/").text
    assert "No series is loaded yet" in page
    assert "market-data backfill" in page


def test_a_daemon_that_is_down_is_named(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    page = api.get("/").text
    assert "Degraded" in page
    assert "Dagster&#39;s storage cannot be read." in page


def test_without_a_database_the_page_says_so(settings: MovableClock) -> None:
    gone = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/nothing"})
    with serve(gone) as api:
        response = api.get("/")
        assert response.status_code == 503
        assert "The database cannot be reached" in response.text
        assert "nobody" not in response.text


def test_strangers_see_how_fresh_everything_is_and_no_failure(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL", late=timedelta(hours=9), last_error="no answer", consecutive_failures=3)
    seed.log("run", "AAPL", "5m", "failed", error="no answer")
    with serve(settings.model_copy(update={"api_token": SecretStr("token")})) as api:
        page = api.get("/", headers={"X-Forwarded-For": "192.0.2.1"}).text
        assert "9h" in page
        assert "no answer" not in page
        assert "no answer" in api.get("/", headers={"X-Forwarded-For": "1", "Authorization": "Bearer token"}).text


@pytest.mark.usefixtures("dagster_instance")
def test_the_page_shows_how_well_the_objectives_were_met(api: Api, seed: Seed) -> None:
    seed.series("AAPL", tier="critical")
    seed.run("update market_data.symbols set added_at = %s", NOW - timedelta(days=60))
    seed.run(
        "insert into market_data.series_state (symbol, timeframe, tier, next_due_at, features_computed_at)"
        " select 'AAPL', unnest(array['15m', '1h', '4h', '1d']), 'critical', %s, %s",
        NOW + timedelta(minutes=5),
        NOW,
    )
    seed.log("run", "AAPL", "5m", "ok", at=NOW - timedelta(seconds=2), outside_rpo_since=NOW - timedelta(hours=3))
    page = api.get("/").text
    assert "97.50 %" in page  # 3 of 5 x 24 hours
    assert "99.91 %" in page  # 3 of 5 x 720 hours, rounded down
    assert "AAPL 5m: 87.50 %" in page


def test_a_database_that_goes_away_leaves_a_page(api: Api, seed: Seed, postgres_url: str, database_url: str) -> None:
    seed.series("AAPL")
    name = urlsplit(database_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"alter database {name} with allow_connections false")
        end_clients(postgres_url, database=name)
        assert api.get("/").status_code == 503
        connection.execute(f"alter database {name} with allow_connections true")
    assert api.get("/").status_code == 200


def many_symbols(seed: Seed, count: int, error: str = "no answer") -> None:
    """Follow symbols whose series are on time, but for every tenth: one of its series is late, and fails."""
    seed.run(
        "insert into market_data.symbols select 'S' || lpad(i::text, 4, '0'), 'standard', 'us_equity', true, %s"
        " from generate_series(1, %s) as i",
        NOW - timedelta(days=60),
        count,
    )
    seed.run(
        "insert into market_data.series_state (symbol, timeframe, tier, next_due_at, features_computed_at)"
        " select symbol, unnest(array['5m', '15m', '1h', '4h', '1d']), tier, %s, %s from market_data.symbols",
        NOW + timedelta(minutes=5),
        NOW,
    )
    seed.run(
        "update market_data.series_state set next_due_at = %s - right(symbol, 4)::integer * interval '1 hour',"
        " consecutive_failures = 1, last_error_class = 'TransientError', last_error = %s || symbol"
        " where timeframe = '1h' and symbol like '%%0'",
        NOW,
        error,
    )


def symbols_in(page: str) -> list[str]:
    return re.findall(r'data-symbol="([^"]+)"', page)


def next_in(page: str) -> str | None:
    found = re.search(r'<a href="([^"]+)" rel="next">', page)
    return found[1].replace("&amp;", "&") if found else None


def test_each_symbol_is_on_one_page_the_furthest_behind_on_the_first(api: Api, seed: Seed) -> None:
    many_symbols(seed, 230)
    found, path, pages = [], "/", 0
    while path:
        page = api.get(path).text
        found += symbols_in(page)
        path = urljoin("/", link) if (link := next_in(page)) else ""
        pages += 1
    late = [f"S{number:04}" for number in range(230, 0, -10)]
    on_time = [f"S{number:04}" for number in range(1, 231) if number % 10]
    assert (found, pages) == (late + on_time, 3)
    assert symbols_in(api.get("/", page=9).text) == found[200:]  # fewer are left than when the link was made


def test_an_address_filters_by_symbol_tier_and_state(api: Api, seed: Seed) -> None:
    many_symbols(seed, 120)
    seed.series("AAPL", late=timedelta(hours=2))
    assert symbols_in(api.get("/", tier="critical").text) == ["AAPL"]
    assert symbols_in(api.get("/", symbol="s003", state="stale").text) == ["S0030"]
    assert symbols_in(api.get("/", state=["aging", "missing"]).text) == ["AAPL"]
    assert len(symbols_in(api.get("/", state="failing").text)) == 12
    assert symbols_in(api.get("/", state="fresh", tier="critical").text) == []
    page = api.get("/", symbol="s01", order="symbol", state="fresh").text
    assert symbols_in(page) == [f"S{number:04}" for number in range(100, 121)]
    assert ">21 of\n121 symbols" in page
    page = api.get("/", symbol="NOPE").text
    assert "No series matches" in page
    assert 'value="NOPE"' in page


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"tier": "vital"}, "tier is one of critical, standard, low_priority, not &#39;vital&#39;."),
        ({"state": "STALE"}, "state is one of fresh, aging, stale"),
        ({"order": "up"}, "order is one of worst, symbol, not &#39;up&#39;."),
        ({"page": "0"}, "page is a whole number from 1 on, not &#39;0&#39;."),
        ({"page": "9" * 30}, "page is a whole number"),
        ({"page": "²"}, "page is a whole number"),
        ({"symbol": "A\x00"}, "symbol is a part of a symbol"),
    ],
)
def test_an_address_that_asks_for_what_cannot_be_is_told_what_can(
    api: Api, seed: Seed, query: dict[str, str], sentence: str
) -> None:
    seed.symbol("AAPL")
    response = api.get("/", **query)
    assert response.status_code == 422
    assert sentence in response.text


@pytest.mark.usefixtures("dagster_instance")
def test_no_default_answer_is_large_however_many_symbols_there_are(api: Api, seed: Seed) -> None:
    many_symbols(seed, 1_000, error="no answer " * 200)
    for number in range(1, 26):
        seed.log("run", f"S{number * 10:04}", "1h", "failed", error="no answer " * 200, warning=f"a warning {number}")
    for path in ("/", "/series/S0010/1h", "/api/v1/symbols", "/api/v1/admin/scheduler-health",
                 "/api/v1/admin/scheduler/execution-history", "/metrics"):  # fmt: skip
        response = api.get(path)
        assert (response.status_code, len(response.content) < 200_000) == (200, True), path
