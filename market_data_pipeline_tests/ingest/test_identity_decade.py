"""Ten years of day bars of companies to which everything happens, read back under each name, now and as it was known.

Two renames, a reuse, a spin-off, a merger, a bankruptcy, splits and dividends on neighbouring days, and a dividend that
is corrected a month later. The expected closes are those of an account that holds the stock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.identity import Identity, Tenure
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.lake.tables import table_named
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.sandbox.bars import NO_BARS, Bars, DividendRow, SplitRow
from market_data_pipeline.sandbox.scenario import Scenario
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.sandbox.view import Security, to_ms
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.account import adjusted_closes
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World

NOW = datetime(2024, 6, 14, 12, 0, 30, tzinfo=NEW_YORK)
FIRST, TODAY = date(2014, 6, 17), date(2024, 6, 14)  # 3,650 days
SESSIONS = EQUITIES.sessions(FIRST, TODAY)
STARTS = np.array([to_ms(session.day_start) for session in SESSIONS])

MINUTES = timedelta(minutes=1)

# Each company by its last ticker, and at which price it trades on the n-th day: none is ever near another one.
LEVELS = {"NOW": 100.0, "OLDNOW": 1_000.0, "SPUN": 10.0, "MERGED": 3_000.0, "BUST": 30.0}
FIRST_RENAME, SECOND_RENAME = date(2016, 3, 1), date(2019, 9, 3)
SPLIT, NEXT_SPLIT = date(2019, 9, 4), date(2019, 9, 5)  # on the days after a rename
SPUN_OFF, MERGER, BUST = date(2017, 5, 1), date(2018, 7, 20), date(2021, 2, 26)
SPLITS = {
    "NOW": {SPLIT: (1, 2), NEXT_SPLIT: (5, 1)},
    "OLDNOW": {date(2019, 8, 30): (1, 3)},  # the day before the ticker changes hands
    "MERGED": {date(2018, 7, 19): (1, 10)},  # the day before its last one
}
CORRECTED_AT = NOW + timedelta(days=31)
WRONG, RIGHT = (date(2024, 5, 20), 0.8), (date(2024, 5, 21), 0.9)
DIVIDENDS = {
    "NOW": [
        (date(2016, 2, 29), 0.5), (FIRST_RENAME, 0.6),  # under the first ticker and, a day later, the second one
        (SECOND_RENAME, 1.5), (SPLIT, 0.7), (NEXT_SPLIT, 4.0), (date(2019, 9, 6), 3.0),
        *((date(year, 11, 15), 0.4 + year / 5000) for year in (2017, 2018, 2021, 2022, 2023)),
    ],
    "OLDNOW": [(date(2018, 3, 1), 9.0), (date(2019, 8, 30), 4.0), (SECOND_RENAME, 5.0)],
    "SPUN": [(SPUN_OFF + timedelta(days=1), 0.1)],
    "MERGED": [(date(2018, 7, 18), 40.0), (date(2018, 7, 19), 3.0), (MERGER, 2.0)],
    "BUST": [(date(2020, 1, 2), 0.2)],
}  # fmt: skip
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
            {"ticker": ticker, "day": day, "split_from": old, "split_to": new}
            for ticker, splits in SPLITS.items()
            for day, (old, new) in splits.items()
        ],
        "dividends": [
            *(
                {"ticker": ticker, "ex": day, "amount": amount}
                for ticker, dividends in DIVIDENDS.items()
                for day, amount in dividends
            ),
            {"ticker": "NOW", "ex": WRONG[0], "amount": WRONG[1], "withdrawn": CORRECTED_AT},
            {"ticker": "NOW", "ex": RIGHT[0], "amount": RIGHT[1], "listed": CORRECTED_AT},
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


LIVED = {"SPUN": (SPUN_OFF, date.max), "MERGED": (FIRST, MERGER), "BUST": (FIRST, BUST)}


def traded(ticker: str) -> dict[date, float]:
    """Return the closes of a company on the days that it lived, as traded."""
    first, last = LIVED.get(ticker, (FIRST, date.max))
    found = {}
    for session, price in zip(SESSIONS, levels(ticker).tolist(), strict=True):
        old_for_new = [old / new for day, (old, new) in SPLITS.get(ticker, {}).items() if day <= session.date]
        if first <= session.date <= last:
            found[session.date] = round(price * float(np.prod(old_for_new)), 4)
    return found


def expected(ticker: str, adjusted: str, instant: datetime | None = None) -> dict[date, float]:
    """Return the closes that are to be read, as known at an instant, by the account."""
    instant = instant or CORRECTED_AT
    if instant < NOW:
        return {}
    raw, paid = traded(ticker), dict(DIVIDENDS[ticker])
    if ticker == "NOW":
        paid |= [RIGHT if instant >= CORRECTED_AT else WRONG]
    if ticker == "NOW" and instant < NOW + 60 * MINUTES:  # the day on which the ticker was thought to be nobody's
        del raw[SECOND_RENAME], paid[SECOND_RENAME]
    if adjusted == "none":
        return raw
    splits = {day: new / old for day, (old, new) in SPLITS.get(ticker, {}).items()}
    return adjusted_closes(raw, splits, paid if adjusted == "all" else {})


INSTANTS = [
    NOW - MINUTES, NOW, NOW + 59 * MINUTES, NOW + 60 * MINUTES, NOW + 61 * MINUTES, NOW + timedelta(days=1),
    NOW + timedelta(days=15), CORRECTED_AT - MINUTES, CORRECTED_AT, CORRECTED_AT + MINUTES,
]  # fmt: skip


def test_a_decade_reads_back_under_each_of_its_names_now_and_as_it_was_known(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    clock: list[World] = []
    world = make_world(NOW, source=staged(Companies(), SCENARIO, lambda: clock[0].now))
    clock.append(world)
    # At first the second rename is dated a day late; an hour later the vendor's own date is known.
    late = (Tenure("FIRST", None, FIRST_RENAME), Tenure("SECOND", FIRST_RENAME, SPLIT), Tenure("NOW", SPLIT))
    mistake = {"NOW": Identity("", late, "override", "a mistake")}
    for world.now, world.overrides in ((NOW, mistake), (NOW + 60 * MINUTES, {}), (CORRECTED_AT, {})):
        outcomes = world.refresh(*LEVELS, timeframes=(Timeframe.D1,), history_days=3650)
        assert not [(key, outcome.error) for key, outcome in outcomes.items() if outcome.failed]
    settings = Settings(
        database_url=world.database_url, as_of=world.now, project_root=tmp_path, lake_url=str(tmp_path / "lake")
    )
    sync(settings, tables=[table_named("bars_1d"), table_named("bar_revisions_1d")], until_now=True)

    every = ("none", "splits", "all")

    def check(
        symbol: str,
        ticker: str,
        as_of: datetime | None = None,
        source: str = "database",
        kinds: tuple[str, ...] = every,
    ) -> None:
        for adjusted in kinds:
            options = {"as_of": as_of, "adjusted": adjusted, "source": source}
            found = read_bars(symbol, "1d", settings=settings, **options)["close"]  # type: ignore[call-overload]
            truth = expected(ticker, adjusted, as_of)
            where = f"{symbol} {adjusted} {as_of} {source}"
            assert EQUITIES.session_days(found.index.as_unit("us").asi8).tolist() == list(truth), where
            closes = np.array([*truth.values()])
            np.testing.assert_allclose(found, closes, rtol=1e-9, err_msg=where)
            np.testing.assert_allclose(
                found.pct_change().iloc[1:], closes[1:] / closes[:-1] - 1, rtol=1e-9, atol=1e-12, err_msg=where
            )

    try:
        for ticker in LEVELS:
            check(ticker, ticker)
            check(ticker, ticker, source="lake")
        for name in ("FIRST", "SECOND"):
            check(name, "NOW")
            check(name, "NOW", source="lake")
        options: dict[str, Any] = {"settings": settings, "as_arrow": True}
        both = read_bars(["FIRST", "NOW", "SECOND"], "1d", source="lake", **options)
        assert both.equals(read_bars(["FIRST", "NOW", "SECOND"], "1d", source="database", **options))
        with pytest.raises(UsageError, match=r"'FIRST'; .* by a name that a followed symbol had before"):
            read_bars("FIRST", "1d", as_of=NOW, source="lake", **options)
        for instant in INSTANTS:
            for ticker in ("NOW", "OLDNOW"):  # nothing new becomes known of the others
                check(ticker, ticker, as_of=instant)
            if instant >= NOW:  # before, nobody knew who had been called so
                check("FIRST", "NOW", as_of=instant, kinds=("all",))
        check("NOW", "NOW", as_of=NOW, source="lake")
    finally:
        close_connections()
