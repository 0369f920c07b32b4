"""The page of a series as it is served: what is held, what is missing and why, what was corrected, what was run."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from pydantic import SecretStr

from market_data_pipeline_tests.serving.conftest import Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import NOW, Seed


def section(page: str, name: str) -> str:
    """Return the part of a page from one heading to the next."""
    start = page.index(f'<h2 id="{name}"')
    return page[start : page.find("</section>", start)]


def cover(seed: Seed, day: date, status: str, rows: int = 190) -> None:
    seed.run(
        "insert into market_data.coverage (symbol, timeframe, session_date, status, rows, fetched_at, run_id)"
        " values ('AAPL', '5m', %s, %s, %s, %s, 'run')",
        *(day, status, rows, NOW - timedelta(minutes=2)),
    )


def test_corrections_show_each_version_with_what_replaced_it(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    ts = NOW - timedelta(minutes=90)
    seed.correct("AAPL", "5m", ts, 70.5, NOW - timedelta(minutes=20))
    seed.correct("AAPL", "5m", ts, 71.25, NOW - timedelta(minutes=10))
    corrections = section(api.get("/series/AAPL/5m").text, "corrections")
    first = "close <del>100</del> → <ins>70.5</ins>"
    second = "close <del>70.5</del> → <ins>71.25</ins>"
    assert corrections.index(second) < corrections.index(first)
    assert "volume" not in corrections  # which did not change


def test_the_latest_dividends_are_among_the_facts(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    seed.dividend("AAPL", "2026-03-12", 0.26)
    seed.run("update market_data.dividends set type = 'long_term_gain'")
    page = api.get("/series/AAPL/5m").text
    assert "<div><dt>Dividend, ex 2026-03-12</dt><dd>0.26 USD, long term gain</dd></div>" in page


def test_the_tickers_of_a_security_and_what_became_known_of_them_are_among_the_facts(api: Api, seed: Seed) -> None:
    seed.series("META")
    for ticker, since, until in (("FB", "2012-05-18", "2022-06-09"), ("META", "2022-06-09", None)):
        seed.run(
            "insert into market_data.symbol_history (security, symbol, valid_from, valid_until, source, first_seen_at)"
            " values ('BBG000MM2P62', %s, %s, %s, 'events', %s)",
            *(ticker, since, until, NOW),
        )
    seed.run("insert into market_data.identity_news (symbol, change, seen_at) values ('META', 'was FB', %s)", NOW)
    page = api.get("/series/META/5m").text
    assert "<div><dt>Security</dt><dd>BBG000MM2P62</dd></div>" in page
    assert "<div><dt>Ticker FB</dt><dd>from 2012-05-18 until 2022-06-09</dd></div>" in page
    assert "<div><dt>Ticker META</dt><dd>from 2022-06-09 on</dd></div>" in page
    assert "<dd>META was FB</dd>" in page


def test_a_withdrawn_bar_is_a_correction(api: Api, seed: Seed) -> None:
    seed.series("AAPL")
    seed.run(
        "select market_data.supersede_bars('AAPL', '5m', array[min(ts)], %s, 'run')"
        " from market_data.bars where symbol = 'AAPL' and timeframe = '5m'",
        NOW,
    )
    assert "withdrawn by the vendor" in section(api.get("/series/AAPL/5m").text, "corrections")


def test_coverage_and_gaps_show_every_day_of_the_history(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL")
    cover(seed, date(2026, 3, 9), "complete")
    cover(seed, date(2026, 3, 10), "empty_confirmed", 0)
    cover(seed, date(2026, 3, 11), "provisional", 12)
    with serve(settings.model_copy(update={"history_days": 5})) as api:
        page = api.get("/series/AAPL/15m").text
    coverage = section(page, "coverage")
    for title in (
        "Fri 2026-03-06: never asked, 0 bars",
        "Mon 2026-03-09: complete, 190 bars",
        "Tue 2026-03-10: empty confirmed, 0 bars",
        "Wed 2026-03-11: provisional, 12 bars",
    ):
        assert f"<title>{title}</title>" in coverage
    assert "of 5m bars, from which 15m bars are made" in coverage
    gaps = section(page, "gaps")
    assert "never asked" in gaps
    assert "vendor gave none (confirmed on 2026-03-11)" in gaps


def test_only_operators_read_what_went_wrong(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL", consecutive_failures=2, last_error="no answer", last_error_class="TransientError")
    seed.log("run", "AAPL", "5m", "failed", error_class="TransientError", error="no answer")
    with serve(settings.model_copy(update={"api_token": SecretStr("token")})) as api:
        path = "/series/AAPL/5m"
        assert api.get(path, headers={"Authorization": "Bearer token"}).text.count("no answer") >= 2
        stranger = api.get(path).text
    assert "no answer" not in stranger
    assert "The last 2 executions failed" in stranger
    assert "✗ failed" in section(stranger, "log")


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("", "http://localhost:3000/runs/run"),  # the host that the reader uses
        ("https://example.org/dagster", "https://example.org/dagster/runs/run"),
    ],
)
def test_links_to_runs_lead_where_people_reach_dagster(
    settings: MovableClock, seed: Seed, monkeypatch: pytest.MonkeyPatch, url: str, link: str
) -> None:
    seed.series("AAPL")
    seed.correct("AAPL", "5m", datetime(2026, 3, 11, 13, 30, tzinfo=UTC), 70.0, NOW)
    monkeypatch.setenv("MARKET_DATA_UI_URL", url)
    configured = MovableClock(database_url=settings.database_url, project_root=settings.project_root, as_of=NOW)
    with serve(configured) as api:
        assert f'href="{link}"' in api.get("/series/AAPL/5m", headers={"Host": "localhost"}).text


def test_a_series_that_was_never_loaded_says_how_to_load_it(api: Api, seed: Seed) -> None:
    seed.symbol("AAPL")
    page = api.get("/series/AAPL/1d").text
    assert "market-data backfill --symbols AAPL" in page
    assert seed.run("select count(*) from market_data.backfill_requests") == [(0,)]
    api.get("/api/v1/features/quant/AAPL", timeframe="1d")
    assert "A backfill was requested at 2026-03-11 15:00:00Z and is queued" in api.get("/series/AAPL/1d").text


def test_an_address_that_names_no_series_says_why(api: Api, seed: Seed) -> None:
    seed.symbol("AAPL")
    for path, sentence in (
        ("/series/aapl/5m", "Did you mean AAPL?"),
        ("/series/NOPE/5m", "NOPE is not tracked."),
        ("/series/AAPL/2h", "known are 5m, 15m, 1h, 4h, 1d"),
        ("/series/%00/5m", r"\x00 is not tracked."),
        ("/series/<b>/5m", "&lt;b&gt; is not tracked."),
    ):
        response = api.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"].startswith("text/html")
        assert sentence in response.text


def test_short_addresses_lead_to_a_series(api: Api, seed: Seed) -> None:
    seed.series("X:BTCUSD", "1d", count=3)
    assert api.get("/series/X:BTCUSD").url == f"{api.base}/series/X%3ABTCUSD/1d"
    assert api.get("/series", symbol="X:BTCUSD", timeframe="1d").url == f"{api.base}/series/X%3ABTCUSD/1d"
    assert api.get("/series").url == f"{api.base}/"
    assert api.get("/series", symbol="//evil.example", timeframe="1d").status_code == 404


def test_a_symbol_means_the_same_however_it_is_written(api: Api, seed: Seed) -> None:
    seed.series("BRK.B", "1d", count=3)
    for written in ("BRK.B", "BRK/B", "BRK%2FB", "BRK.B/", "%20BRK.B"):
        for endpoint in ("bars", "features/quant"):
            answer = api.get(f"/api/v1/{endpoint}/{written}", timeframe="1d")
            assert (answer.status_code, answer.json()["symbol"]) == (200, "BRK.B")
        assert "<h1>BRK.B " in api.get(f"/series/{written}/1d").text
    for address in ("/api/v1/bars/BRK.B%0A", "/api/v1/features/quant/BRK.B%0A", "/series/BRK.B%0A/1d"):
        assert api.get(address, timeframe="1d").status_code == 404
    assert api.get("/series/BRK.B/").url == f"{api.base}/series/BRK.B/1d"
    assert api.get("/series", symbol="BRK/B").url == f"{api.base}/series/BRK.B/1d"
    assert api.get("/series/BRK.B/1d/").url == f"{api.base}/series/BRK.B/1d"


def test_without_a_database_the_page_of_a_series_says_so(settings: MovableClock) -> None:
    gone = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/nothing"})
    with serve(gone) as api:
        response = api.get("/series/AAPL/5m")
        assert response.status_code == 503
        assert "The database cannot be reached" in response.text
        assert api.get("/static/style.css").status_code == 200
