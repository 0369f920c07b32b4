"""Databases of earlier releases, with what they hold, migrated to this code's schema."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from market_data_pipeline.backup.verify import verify
from market_data_pipeline.reading import read_bars, read_features
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.releases import RELEASES, Held, held, load_release

LATER = datetime(2025, 3, 14, 20, 0, tzinfo=UTC)


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, empty_database_url: str, migrated_template: str) -> str:
    """The number of a release, whose database is at `empty_database_url`; the template's migration made the roles."""
    load_release(empty_database_url, request.param)
    return str(request.param)


def test_an_upgrade_loses_no_row_and_changes_no_value_and_work_goes_on(
    release: str, empty_database_url: str, tmp_path: Path
) -> None:
    before = held(empty_database_url)
    assert {name: len(rows) for name, (_, rows) in before.items() if name in {"bars", "features", "bar_revisions"}} == {
        "bars": 1876,
        "features": 1876,
        "bar_revisions": 8,
    }

    applied = migrate_database(empty_database_url, SQL)

    assert [name[:4] for name in applied] == [number for number in _numbers() if number > release]
    assert _differences(before, held(empty_database_url, before)) == []
    assert migrate_database(empty_database_url, SQL) == []
    settings = Settings(database_url=empty_database_url, dagster_postgres_url=empty_database_url, project_root=tmp_path)
    assert verify(settings, None).problems == []

    with running_server(open_source(None), lambda: LATER, plan="advanced") as base_url:
        outcomes = World(base_url, empty_database_url, LATER).refresh("AAPL", "X:BTCUSD", history_days=3)
    assert {outcome.status for outcome in outcomes.values()} <= {"ok", "unchanged"}
    assert {outcomes[key].status for key in ("AAPL|5m", "X:BTCUSD|5m")} == {"ok"}
    assert verify(settings, None).problems == []


def test_readers_get_the_bars_and_features_that_the_release_stored(
    release: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        question = "select {} from market_data.{} where symbol = 'AAPL' and timeframe = '1h' order by ts"
        bars = connection.execute(question.format("ts, open, high, low, close, volume, vwap", "bars")).fetchall()
        features = connection.execute(question.format("ts, log_return, atr", "features")).fetchall()
        adjusted = connection.execute(
            "select close from market_data.bars_adjusted where symbol = 'NVDA' order by ts"
        ).fetchall()
    migrate_database(empty_database_url, SQL)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    read = read_bars("AAPL", "1h", adjusted=False)
    computed = read_features("AAPL", "1h")

    assert list(read[["open", "high", "low", "close", "volume", "vwap"]].itertuples(name=None)) == bars
    assert len(bars) > 20
    for name, position in {"log_return": 1, "atr": 2}.items():
        assert computed[name].dropna().tolist() == [row[position] for row in features if row[position] is not None]
    assert read_bars("NVDA", "1d")["close"].tolist() == [close for (close,) in adjusted]


def test_what_the_roles_may_do_is_as_in_a_new_database(
    release: str, empty_database_url: str, database_url: str
) -> None:
    migrate_database(empty_database_url, SQL)

    assert _privileges(empty_database_url) == _privileges(database_url)


def _numbers() -> list[str]:
    return sorted(file.name[:4] for file in SQL.glob("[0-9]*.sql"))


def _differences(before: Held, after: Held) -> list[str]:
    return [
        f"{name}: {len(rows)} rows before, {len(after[name][1])} after; for example {was} became {now}"
        for name, (columns, rows) in before.items()
        for was, now in [
            next((pair for pair in zip(rows, after[name][1], strict=False) if not _same(name, columns, *pair)), (0, 0))
        ]
        if len(rows) != len(after[name][1]) or was != now
    ]


def _same(name: str, columns: tuple[str, ...], was: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Return whether a row is as it was, but that migration 0050 rounds when features were computed."""
    if name != "features":
        return was == now
    place = columns.index("features_computed_at")
    return was[:place] + was[place + 1 :] == now[:place] + now[place + 1 :] and timedelta(0) <= now[place] - was[
        place
    ] < timedelta(seconds=1)


def _privileges(url: str) -> list[tuple[object, ...]]:
    """Return each privilege of each group on each relation and function of the schema, but on partitions with rows."""
    statement = """
        select o.name, r.rolname, p.privilege_type, p.is_grantable
        from (
            select oid::regclass::text as name, relacl as acl, relowner as owner, relnamespace as namespace
            from pg_class where relkind in ('r', 'p', 'v') and not (relkind = 'r' and relispartition)
            union all
            select oid::regprocedure::text, proacl, proowner, pronamespace from pg_proc
        ) as o
        cross join lateral aclexplode(o.acl) as p
        left join pg_roles as r on r.oid = p.grantee
        where o.namespace = 'market_data'::regnamespace and p.grantee <> o.owner
        order by 1, 2, 3
    """
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()
