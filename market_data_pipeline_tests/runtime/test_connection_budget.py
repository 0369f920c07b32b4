"""Whether a server allows enough connections, asked of a real one."""

from __future__ import annotations

import pytest

from market_data_pipeline.runtime import connection_budget
from market_data_pipeline.runtime.connection_budget import NEEDED, too_few_connections
from market_data_pipeline.settings import Settings


def test_a_server_that_allows_too_few_connections_is_named_with_what_is_needed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(database_url=database_url, dagster_postgres_url=database_url)
    assert too_few_connections(settings) is None
    monkeypatch.setattr(connection_budget, "NEEDED", 10_000)
    assert NEEDED < 100
    said = too_few_connections(settings)
    assert said is not None
    assert "it needs up to 10000. Raise max_connections" in said
