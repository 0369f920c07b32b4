"""The share of time that a series was within its RPO: planted histories, and what real refreshes record."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.reports.attainment import rpo_attainment
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class History:
    """Symbols with the periods outside their RPO, as executions recorded them."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.engine = engine(url, as_of=NOW)

    def follow(self, symbol: str, tier: str, since: timedelta, *, due_in: timedelta = HOUR) -> None:
        self.connection.execute(
            "insert into market_data.symbols values (%s, %s, 'us_equity', true, %s)", (symbol, tier, NOW - since)
        )
        self.connection.execute(
            "insert into market_data.series_state (symbol, timeframe, tier, next_due_at, features_computed_at)"
            " select %s, unnest(array['5m', '15m', '1h', '4h', '1d']), %s, %s, %s",
            (symbol, tier, NOW + due_in, NOW),
        )

    def execution(self, symbol: str, finished: timedelta, outside: timedelta | None, timeframe: str = "5m") -> None:
        at = NOW - finished
        self.connection.execute(
            "insert into market_data.ingest_log"
            " (run_id, symbol, timeframe, started_at, finished_at, status, outside_rpo_since)"
            " values ('run', %s, %s, %s, %s, 'ok', %s)",
            (symbol, timeframe, at, at, None if outside is None else at - outside),
        )

    def shares(self, series: Series | None = None) -> dict[tuple[str, str], float]:
        with self.engine.connect() as connection:
            return {(one.tier, one.window): one.share for one in rpo_attainment(connection, series)}


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    planted = History(database_url)
    yield planted
    planted.connection.close()
    planted.engine.dispose()


def test_periods_outside_the_rpo_are_subtracted_from_the_time_of_all_series_of_the_tier(history: History) -> None:
    history.follow("AAPL", "critical", timedelta(days=60))
    history.follow("XOM", "standard", timedelta(days=60))
    history.execution("AAPL", 2 * HOUR, 6 * HOUR)
    history.execution("AAPL", HOUR, None)
    history.execution("AAPL", timedelta(days=3), 36 * HOUR, "1d")
    history.execution("AAPL", timedelta(days=40), 100 * HOUR)
    assert history.shares() == pytest.approx(
        {
            ("critical", "24h"): 1 - 6 / (5 * 24),
            ("critical", "30d"): 1 - 42 / (5 * 30 * 24),
            ("standard", "24h"): 1.0,
            ("standard", "30d"): 1.0,
        }
    )
    with history.engine.connect() as connection:
        day = rpo_attainment(connection)[0]
    assert (day.series, day.series_outside, day.worst_series) == (5, 1, "AAPL|5m")
    assert day.worst_share == pytest.approx(18 / 24)
    assert history.shares(Series("AAPL", Timeframe.D1)) == pytest.approx(
        {("critical", "24h"): 1.0, ("critical", "30d"): 1 - 36 / 720}
    )


def test_a_period_counts_as_far_as_it_lies_within_the_window(history: History) -> None:
    history.follow("AAPL", "critical", timedelta(days=60))
    history.execution("AAPL", 20 * HOUR, 10 * HOUR)
    series = Series("AAPL", Timeframe.M5)
    assert history.shares(series) == pytest.approx({("critical", "24h"): 20 / 24, ("critical", "30d"): 710 / 720})


def test_an_open_period_counts_up_to_now(history: History) -> None:
    history.follow("AAPL", "critical", timedelta(days=60), due_in=-5 * HOUR)
    assert history.shares()["critical", "24h"] == pytest.approx(20 / 24)
    # A failed execution has recorded the first of these hours.
    history.execution("AAPL", 3 * HOUR, HOUR)
    assert history.shares(Series("AAPL", Timeframe.M5))["critical", "24h"] == pytest.approx(20 / 24)


def test_time_counts_from_when_a_symbol_is_followed_and_it_has_its_rpo_to_be_loaded(history: History) -> None:
    history.follow("AAPL", "critical", 5 * HOUR)
    history.connection.execute("update market_data.series_state set next_due_at = null, features_computed_at = null")
    assert history.shares() == pytest.approx({("critical", "24h"): 1 / 5, ("critical", "30d"): 1 / 5})
    history.connection.execute("update market_data.symbols set followed_since = %s", (NOW - HOUR / 2,))
    assert history.shares() == pytest.approx({("critical", "24h"): 1.0, ("critical", "30d"): 1.0})


def test_an_empty_universe_has_no_attainment(history: History) -> None:
    assert history.shares() == {}


def outside(world: World, timeframe: str) -> list[object]:
    rows = world.query(
        f"select outside_rpo_since from market_data.ingest_log where timeframe = '{timeframe}' order by id"
    )
    return [row["outside_rpo_since"] for row in rows]


def test_a_closed_market_counts_as_inside_and_a_late_refresh_as_outside(make_world: MakeWorld) -> None:
    friday = datetime(2026, 11, 20, 20, 30, tzinfo=NEW_YORK)
    world = make_world(friday)
    with world.connect() as connection:
        connection.execute(
            "insert into market_data.symbols values ('AAPL', 'critical', 'us_equity', true, %s)", (friday,)
        )
    world.refresh("AAPL", history_days=3)
    # Monday, the first bar of 04:00 has been due since 04:07; then nothing runs for three hours.
    world.now = datetime(2026, 11, 23, 4, 30, tzinfo=NEW_YORK)
    world.refresh("AAPL", history_days=3)
    world.now = datetime(2026, 11, 23, 7, 30, tzinfo=NEW_YORK)
    world.refresh("AAPL", history_days=3)
    late_since = datetime(2026, 11, 23, 5, 37, tzinfo=NEW_YORK)  # 04:30 to 04:35 was due at 04:37, one hour ago
    assert outside(world, "5m") == [None, None, late_since]
    assert outside(world, "4h") == [None, None, None]


def test_a_failed_execution_records_what_the_next_one_continues_from(make_world: MakeWorld) -> None:
    noon = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
    world = make_world(noon)
    with world.connect() as connection:
        connection.execute(
            "insert into market_data.symbols values ('AAPL', 'critical', 'us_equity', true, %s)", (noon,)
        )
    world.refresh("AAPL", history_days=3)
    right, world.key = world.key, "wrong"
    world.now = noon + 2 * HOUR
    assert world.refresh("AAPL", history_days=3)["AAPL|5m"].failed
    world.key = right
    world.now = noon + 3 * HOUR
    world.refresh("AAPL", history_days=3)
    due = datetime(2026, 11, 20, 12, 7, tzinfo=NEW_YORK)
    assert outside(world, "5m") == [None, due + HOUR, noon + 2 * HOUR]
