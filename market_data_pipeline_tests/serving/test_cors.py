"""Which web pages of other sites a browser lets read: none, unless the settings name their sites."""

from __future__ import annotations

import pytest

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.settings import load_settings
from market_data_pipeline_tests.serving.conftest import BARS, Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import Seed

SITE = "https://notebooks.example.org"
ALLOWED = "Access-Control-Allow-Origin"


def test_no_other_site_may_read_by_default(api: Api, seed: Seed) -> None:
    seed.series("AAPL", count=1)
    answer = api.get(f"{BARS}/AAPL", timeframe="5m", headers={"Origin": SITE})
    assert (answer.status_code, ALLOWED in answer.headers) == (200, False)


def test_sites_that_the_settings_name_may_read_series_and_nothing_else(settings: MovableClock, seed: Seed) -> None:
    seed.series("AAPL", count=3)
    with serve(settings.model_copy(update={"cors_origins": [SITE]})) as api:
        api.wait_for_cache()
        for _ in range(2):  # the second from the response cache
            answer = api.get(f"{BARS}/AAPL", timeframe="5m", limit=1, headers={"Origin": SITE})
            assert answer.headers[ALLOWED] == SITE
            assert {"Link", "ETag", "X-Freshness"} <= set(answer.headers["Access-Control-Expose-Headers"].split(", "))
            assert "Origin" in answer.headers["Vary"]
        assert api.get("/api/v1/symbols", headers={"Origin": SITE}).headers[ALLOWED] == SITE
        assert api.get(f"{BARS}/NOPE", headers={"Origin": SITE}).headers[ALLOWED] == SITE
        asks = {
            "Origin": SITE,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "authorization",
        }
        asked = api.session.options(f"{api.base}{BARS}/AAPL", headers=asks, timeout=60)
        assert (asked.status_code, asked.headers[ALLOWED]) == (200, SITE)
        for path in ("/", "/health", "/api/v1/admin/features/staleness"):
            assert ALLOWED not in api.get(path, headers={"Origin": SITE}).headers
        other = api.get(f"{BARS}/AAPL", timeframe="5m", headers={"Origin": "https://example.net"})
        assert ALLOWED not in other.headers


def test_origins_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_DATA_API_CORS_ORIGINS", "https://Notebooks.example.org/, http://localhost:8888")
    assert load_settings().cors_origins == [SITE, "http://localhost:8888"]
    monkeypatch.setenv("MARKET_DATA_API_CORS_ORIGINS", "notebooks.example.org")
    with pytest.raises(
        ConfigurationError, match=r"MARKET_DATA_API_CORS_ORIGINS has 'notebooks\.example\.org', which is not"
    ):
        load_settings()
