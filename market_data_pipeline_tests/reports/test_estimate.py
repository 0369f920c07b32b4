"""An estimate equals what then happens, or is a declared upper bound: the server's count of calls decides."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest
import requests
import sqlalchemy as sa

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.estimate import estimate_backfill
from market_data_pipeline.reports.models import BackfillEstimate
from market_data_pipeline.settings import load_settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.ingest.conftest import make_world as make_world

# All tickers trade in nearly every minute but KIMpL, a preferred share that trades in every seventh.
UNIVERSE = ("AAPL", "MSFT", "BRK.B", "KIMpL", "X:BTCUSD")
# The sandbox's market lists only the first two.
HALF_LISTED = ("AAPL", "MSFT", "SYN0001", "SYN0002", "SYN0003")


@pytest.fixture
def world(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(datetime(2026, 11, 19, 12, 0, 30, tzinfo=NEW_YORK))
    monkeypatch.setenv("DATABASE_URL", world.database_url)
    return world


@pytest.fixture
def database(world: World) -> Iterator[sa.Engine]:
    made = engine(world.database_url)
    yield made
    made.dispose()


class Backfill:
    """Estimates a backfill of the world's symbols and carries it out."""

    def __init__(self, world: World, database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.database, self.monkeypatch = world, database, monkeypatch
        self.symbols: tuple[str, ...] = ()

    def track(self, *symbols: str) -> None:
        self.world.track(*symbols)
        self.symbols = symbols

    def estimate(self, days: int, *timeframes: Timeframe, **arguments: bool) -> BackfillEstimate:
        self.monkeypatch.setenv("MARKET_DATA_AS_OF", self.world.now.isoformat())
        return estimate_backfill(self.database, load_settings(), (), timeframes, days, **arguments)

    def calls(self, days: int, **arguments: bool) -> int:
        """Refresh, and return how many requests the server counted."""
        before = self.count()
        self.world.refresh(*self.symbols, history_days=days, **arguments)
        return self.count() - before

    def count(self) -> int:
        status = requests.get(f"{self.world.base_url}/_sandbox/status", timeout=60).json()
        return int(status["requests"])


@pytest.fixture
def nothing_followed(world: World, database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Backfill:
    return Backfill(world, database, monkeypatch)


@pytest.fixture
def backfill(nothing_followed: Backfill) -> Backfill:
    nothing_followed.track(*UNIVERSE)
    return nothing_followed


def test_a_first_backfill_needs_the_calls_that_were_estimated(backfill: Backfill) -> None:
    estimate = backfill.estimate(45)
    assert estimate.market_days == []
    assert estimate.reads_splits
    assert backfill.count() == 0, "an estimate sends nothing"
    assert (estimate.calls, estimate.calls_at_least) == (17, 16)  # Bitcoin's 45 days are two pages if all minutes trade
    assert estimate.calls == estimate.pages == backfill.calls(45)
    assert backfill.estimate(45).is_empty


def test_pages_of_5m_bars_are_counted_as_if_every_minute_had_a_trade(backfill: Backfill) -> None:
    # 55 sessions are 52,800 minutes: two pages, but one for a symbol that trades in one minute of seven. Bitcoin's 81
    # days are 115,920: three.
    estimate = backfill.estimate(80)
    by_series = {(one.symbol, one.timeframe): (one.calls, one.calls_at_least) for one in estimate.series}
    assert by_series["AAPL", "5m"] == by_series["KIMpL", "5m"] == (2, 1)
    assert by_series["X:BTCUSD", "5m"] == (3, 1)
    assert by_series["AAPL", "1d"] == (1, 1)
    assert estimate.calls == 4 * 2 + 3 + 5 + 4 + 1 + 1  # minutes, day bars, securities, splits, and dividends
    assert estimate.calls_at_least == 5 + 5 + 4 + 1 + 1
    assert backfill.calls(80) == estimate.calls - 2  # KIMpL, and BRK.B, which trades in seven minutes of eight
    full = backfill.estimate(80, full=True)
    assert (full.calls, full.reads_splits) == (estimate.calls - 1 - 4, False)


def test_a_tick_a_night_and_a_quiet_hour_need_the_calls_that_were_estimated(backfill: Backfill) -> None:
    backfill.calls(10)
    for now, calls, market_days in (
        ((19, 12, 15), 5, 0),  # one for each symbol
        ((19, 20, 15), 6, 0),  # and Bitcoin's day bar: UTC's day is over
        ((20, 0, 15), 4, 1),  # Bitcoin's minutes, the new day's splits and dividends, and Thursday's day bars at once
        ((20, 0, 16), 0, 0),
        ((20, 11, 0), 7, 1),  # the days settle, Bitcoin's separately
        ((21, 11, 0), 9, 1),  # splits and dividends, Bitcoin's other day bar, and Friday settled on a Saturday
    ):
        backfill.world.now = datetime(2026, 11, *now, 30, tzinfo=NEW_YORK)
        estimate = backfill.estimate(10)
        assert (now, estimate.calls, len(estimate.market_days)) == (now, calls, market_days)
        assert (now, backfill.calls(10)) == (now, estimate.calls)
        assert (now, estimate.is_empty) == (now, calls == 0)


def test_a_gap_is_estimated_by_the_days_that_it_leaves(backfill: Backfill) -> None:
    backfill.calls(10)
    backfill.world.now = datetime(2026, 12, 11, 12, 0, 30, tzinfo=NEW_YORK)
    estimate = backfill.estimate(10)
    missing = {one.timeframe: one.sessions for one in estimate.series if one.symbol == "AAPL"}
    assert missing == {"5m": 9, "1d": 8}  # 1 to 11 December, today's day bar not yet available
    assert estimate.calls == backfill.calls(10)


def test_time_follows_from_the_calls_and_the_limit(backfill: Backfill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_CALLS_PER_MINUTE", "5")
    estimate = backfill.estimate(10)
    assert estimate.calls == 16
    assert estimate.seconds == pytest.approx(15 * 12.2)
    monkeypatch.setenv("POLYGON_CALLS_PER_MINUTE", "0")
    assert backfill.estimate(10).seconds == 0


def test_resampled_timeframes_need_their_base_only(backfill: Backfill) -> None:
    estimate = backfill.estimate(10, Timeframe.H4)
    assert {one.timeframe for one in estimate.series} == {"5m"}


def test_symbols_that_no_answer_for_the_market_lists_are_estimated_individually(nothing_followed: Backfill) -> None:
    """Which symbols the first answer lists is known only once it has arrived."""
    backfill = nothing_followed
    backfill.track(*HALF_LISTED)
    backfill.calls(10)
    for day, first in ((20, True), (21, False)):
        backfill.world.now = datetime(2026, 11, day, 0, 15, 30, tzinfo=NEW_YORK)
        estimate = backfill.estimate(10)
        unlisted = 3 if first else 0
        assert backfill.calls(10) == estimate.calls + unlisted
        if first:
            assert estimate.calls == 1 + 1 + 1 + 5  # splits, dividends, the market's day, minutes
            assert estimate.from_market_days == sorted(HALF_LISTED)


def test_the_cheaper_way_in_is_files_for_many_symbols_and_rest_for_few(backfill: Backfill) -> None:
    few = backfill.estimate(80).ways_in
    assert few.cheaper == "rest"
    assert few.files is not None
    assert (few.rest.requests, few.rest.files) == (backfill.estimate(80).calls, 0)
    assert few.files.files == 2 * 57, "each settled session: minutes, and day bars"
    assert few.why.startswith("By REST: ")
    backfill.track(*(f"SYN{number:04d}" for number in range(600)))
    many = backfill.estimate(8).ways_in
    assert many.cheaper == "files"
    assert many.files is not None
    assert many.files.requests < many.rest.requests
    assert many.why.startswith(f"By flat files: {many.files.files} files and ")
    assert backfill.count() == 0, "nothing is sent"


def test_without_an_access_key_the_estimate_says_why_files_are_not_taken(
    backfill: Backfill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "some-key")
    ways = backfill.estimate(45).ways_in
    assert (ways.cheaper, ways.files) == ("rest", None)
    assert "MARKET_DATA_FLAT_FILES_KEY_ID" in ways.why
