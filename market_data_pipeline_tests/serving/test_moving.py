"""What readers see while the bars of an older database are being moved to the table of records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psycopg
import pytest

from market_data_pipeline import read_bars, read_features, read_records
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline_tests.conftest import SQL
from market_data_pipeline_tests.serving.conftest import Api, MovableClock, serve
from market_data_pipeline_tests.serving.seeding import NOW
from market_data_pipeline_tests.store.old_layout import make_old_database

# Each series of the old database, moved or waiting, alone, with others, as it was, and in the regular hours.
PATHS: Final = (
    "/api/v1/features/quant/AAPL?timeframe=5m&limit=50",
    "/api/v1/features/quant/AAPL?timeframe=1h",
    "/api/v1/features/quant/AAPL?timeframe=1d",
    "/api/v1/features/quant/I:SPX?timeframe=1d",
    "/api/v1/bars/AAPL?timeframe=5m&limit=50",
    "/api/v1/bars/AAPL?timeframe=5m&session=regular",
    "/api/v1/bars/AAPL?timeframe=1h&session=regular",
    "/api/v1/bars/AAPL?timeframe=1d&as_of=2025-03-01T12:00:02Z",
    "/api/v1/bars/AAPL?timeframe=1d&adjustment=all",
    "/api/v1/bars/X:BTCUSD?timeframe=4h",
    "/api/v1/bars?symbols=AAPL,I:SPX&timeframe=1d",
    "/api/v1/features/quant?symbols=AAPL,I:SPX&timeframe=1d&format=columns",
)


class Stopped(Exception):
    """What ends a move."""


def stop(done: int, _total: int) -> None:
    if done == 2:
        raise Stopped


@pytest.fixture
def moving_url(empty_database_url: str, tmp_path: Path) -> str:
    """A database of which AAPL's days and hours have been moved, and its minutes and other symbols have not."""
    make_old_database(empty_database_url, tmp_path / "old")
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(
            """
            update market_data.series_state as s
            set
                first_ts = b.first_ts, last_ts = b.last_ts, bar_count = b.bars, verified_at = %(now)s,
                next_due_at = %(now)s, features_computed_at = case when s.symbol not like 'X:%%' then %(now)s end
            from (
                select symbol, timeframe, min(ts) as first_ts, max(ts) as last_ts, count(*) as bars
                from market_data.bars group by symbol, timeframe
            ) as b
            where s.symbol = b.symbol and s.timeframe = b.timeframe
            """,
            {"now": NOW},
        )
    with pytest.raises(Stopped):
        migrate_database(empty_database_url, SQL, on_move=stop)
    return empty_database_url


@pytest.fixture
def api_of_moving(moving_url: str, tmp_path: Path) -> Iterator[Api]:
    with serve(MovableClock(database_url=moving_url, project_root=tmp_path, as_of=NOW)) as api:
        yield api


@contextmanager
def move_under_way(url: str) -> Iterator[None]:
    """Be in the middle of moving AAPL's minutes."""
    with psycopg.connect(url) as connection:
        connection.execute("select market_data.move_series('AAPL', '5m')")
        yield
        connection.rollback()


def answers(api: Api) -> list[Any]:
    found = [api.get(path) for path in PATHS]
    assert [response.status_code for response in found] == [200] * len(PATHS), [each.text[:200] for each in found]
    return [response.json() for response in found]


def frames() -> list[pd.DataFrame]:
    return [
        read_records(["AAPL", "I:SPX"], ["5m", "1h", "1d"]),
        read_bars(["AAPL", "X:BTCUSD"], ["5m", "1h", "4h"]),
        read_bars("AAPL", "5m", session="regular"),
        read_bars("AAPL", "1d", as_of="2025-03-01T12:00:02Z"),
        read_features("AAPL", ["5m", "1d"]),
    ]


def test_the_api_and_the_readers_give_every_row_while_bars_are_moved(
    moving_url: str, api_of_moving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", moving_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", NOW.isoformat())

    half, read_half = answers(api_of_moving), frames()
    with move_under_way(moving_url):
        within, read_within = answers(api_of_moving), frames()
    migrate_database(moving_url, SQL)
    whole, read_whole = answers(api_of_moving), frames()

    assert [len(frame) for frame in read_half[:2]] == [90 + 40 + 5 + 5, 90 + 40 + 20]
    assert half[0]["records_returned"] == 50
    assert half == within == whole
    for moving, moved in zip(read_half + read_within, read_whole * 2, strict=True):
        pd.testing.assert_frame_equal(moving, moved)
