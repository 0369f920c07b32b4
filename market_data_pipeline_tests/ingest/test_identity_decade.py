"""Ten years of day bars with two renames, a reuse, a spin-off, a merger and a bankruptcy, read back under each name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.sandbox.bars import NO_BARS, Bars, DividendRow, SplitRow
from market_data_pipeline.sandbox.scenario import Scenario
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.sandbox.view import Security, to_ms
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOW = datetime(2024, 6, 14, 12, 0, 30, tzinfo=NEW_YORK)
FIRST, TODAY = date(2014, 6, 17), date(2024, 6, 14)  # 3,650 days
SESSIONS = EQUITIES.sessions(FIRST, TODAY)
STARTS = np.array([to_ms(session.day_start) for session in SESSIONS])

# Each company by its last ticker, and at which price it trades on the n-th day: none is ever near another one.
LEVELS = {"NOW": 100.0, "OLDNOW": 1_000.0, "SPUN": 10.0, "MERGED": 3_000.0, "BUST": 30.0}
FIRST_RENAME, SECOND_RENAME = date(2016, 3, 1), date(2019, 9, 3)
SPLIT, NEXT_SPLIT = date(2019, 9, 4), date(2019, 9, 5)  # on the days after a rename
SPUN_OFF, MERGER, BUST = date(2017, 5, 1), date(2018, 7, 20), date(2021, 2, 26)
SCENARIO = Scenario.model_validate(
    {
        "renames": [
            {"ticker": "NOW", "was": "FIRST", "day": FIRST_RENAME},
            {"ticker": "NOW", "was": "SECOND", "day": SECOND_RENAME},
            {"ticker": "OLDNOW", "was": "NOW", "day": SECOND_RENAME},
        ],
        "listings": [{"ticker": "SPUN", "first": SPUN_OFF}],
        "delistings": [{"ticker": "MERGED", "last": MERGER}, {"ticker": "BUST", "last": BUST}],
        "splits": [
            {"ticker": "NOW", "day": SPLIT, "split_to": 2},
            {"ticker": "NOW", "day": NEXT_SPLIT, "split_from": 5, "split_to": 1},
        ],
    }
)


def levels(ticker: str) -> np.ndarray:
    return np.round(LEVELS[ticker] * (1 + 0.3 * np.sin(np.arange(len(SESSIONS)) / 300)), 2)


class Companies:
    """Day bars of the companies, without minutes."""

    description = "five companies"

    def tickers(self) -> tuple[str, ...]:
        return tuple(sorted(LEVELS))

    def security(self, ticker: str) -> Security | None:
        return Security(ticker) if ticker in LEVELS else None

    def security_on(self, ticker: str, day: date) -> Security | None:
        return self.security(ticker)

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        yield NO_BARS

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        if ticker not in LEVELS:
            return NO_BARS
        price, ones = levels(ticker), np.ones(len(SESSIONS))
        bars = Bars(STARTS, price, price, price, price, 1e6 * ones, price, 1e4 * ones, ones.astype("int64"))
        return bars.between(start_ms, end_ms)

    def splits(self) -> Sequence[SplitRow]:
        return ()

    def dividends(self) -> Sequence[DividendRow]:
        return ()

    def closings(self) -> Sequence[date]:
        return ()


def lived(ticker: str, first: date = FIRST, last: date = date.max) -> dict[date, float]:
    """Return the adjusted closes of a company of the days that it lived: its level, times what splits did to it."""
    scale = 2.5 if ticker == "NOW" else 1.0  # before both splits a price of 1 is one of 1 * 1/2 * 5 today
    return {
        session.date: price * scale
        for session, price in zip(SESSIONS, levels(ticker).tolist(), strict=True)
        if first <= session.date <= last
    }


def test_a_decade_reads_back_under_each_of_its_names_now_and_as_it_was_known(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    clock: list[World] = []
    world = make_world(NOW, source=staged(Companies(), SCENARIO, lambda: clock[0].now))
    clock.append(world)
    # At first the second rename is dated a day late; an hour later the vendor's own date is known.
    late = (Tenure("FIRST", None, FIRST_RENAME), Tenure("SECOND", FIRST_RENAME, SPLIT), Tenure("NOW", SPLIT))
    for world.overrides in ({"NOW": Identity("", late, "override", "a mistake")}, {}):
        outcomes = world.refresh("NOW", "SPUN", "MERGED", "BUST", timeframes=(Timeframe.D1,), history_days=3650)
        assert not [(key, outcome.error) for key, outcome in outcomes.items() if outcome.failed]
        world.now += timedelta(hours=1)

    def closes(symbol: str, **options: object) -> dict[date, float]:
        settings = Settings(database_url=world.database_url, as_of=world.now, project_root=tmp_path)
        found = read_bars(symbol, "1d", settings=settings, **options)["close"]  # type: ignore[call-overload]
        close_connections()
        days = EQUITIES.session_days(found.index.as_unit("us").asi8).tolist()
        return dict(zip(days, found.to_list(), strict=True))

    truth = lived("NOW")
    for name in ("NOW", "SECOND", "FIRST"):
        assert closes(name) == pytest.approx(truth, rel=1e-9)
    assert closes("SPUN") == pytest.approx(lived("SPUN", first=SPUN_OFF), rel=1e-9)
    assert closes("MERGED") == pytest.approx(lived("MERGED", last=MERGER), rel=1e-9)
    assert closes("BUST") == pytest.approx(lived("BUST", last=BUST), rel=1e-9)

    instants = [NOW + timedelta(minutes=minutes) for minutes in (-1, 0, 59, 60, 61)]
    late_truth = {day: close for day, close in truth.items() if day != SECOND_RENAME}
    for instant, known in zip(instants, ({}, late_truth, late_truth, truth, truth), strict=True):
        assert closes("NOW", as_of=instant) == pytest.approx(known, rel=1e-9), instant
        if known:
            assert closes("FIRST", as_of=instant) == pytest.approx(known, rel=1e-9), instant
