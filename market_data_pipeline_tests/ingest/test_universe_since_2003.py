"""What the names of the packaged universe went through since 2003: each series is one company's, at adjusted prices."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from market_data_pipeline import read_bars
from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.reading.connections import close_connections
from market_data_pipeline.sandbox.bars import NO_BARS, Bars, DividendRow, SplitRow
from market_data_pipeline.sandbox.scenario import Scenario
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.sandbox.view import Security, to_ms
from market_data_pipeline.settings import Settings
from market_data_pipeline.settings.project import PACKAGE
from market_data_pipeline.store.universe import load_universe_file
from market_data_pipeline_tests.account import adjusted_closes
from market_data_pipeline_tests.domain.strategies import EQUITIES
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World
from market_data_pipeline_tests.recorded import FULL, needs_full

NOW = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK)
FIRST, TODAY = date(2003, 9, 10), date(2026, 11, 20)
FACTS: Mapping[str, Sequence[Mapping[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "universe_since_2003.yaml").read_text(encoding="utf-8")
)
SESSIONS = EQUITIES.sessions(FIRST, TODAY)
DAYS = [session.date for session in SESSIONS]
STARTS = np.array([to_ms(session.day_start) for session in SESSIONS])


@dataclass
class Lived:
    """A company by its last ticker, as the facts have it."""

    ticker: str
    splits: dict[date, float] = field(default_factory=dict)  # new shares for an old one
    terms: dict[date, tuple[float, float]] = field(default_factory=dict)
    dividends: dict[date, float] = field(default_factory=dict)
    renames: list[dict[str, Any]] = field(default_factory=list)
    listed: date | None = None

    @classmethod
    def of(cls, ticker: str) -> Lived:
        one = cls(ticker)
        for fact in FACTS[ticker]:
            day = fact["day"]
            if "split" in fact:
                one.terms[day] = old, new = fact["split"]
                one.splits[day] = new / old
            elif "dividend" in fact:
                one.dividends[day] = fact["dividend"]
            elif "listed" in fact:
                one.listed = day
            else:
                one.renames.append({"ticker": ticker, "was": fact["was"], "day": day})
        return one

    @property
    def names(self) -> list[str]:
        return [*(each["was"] for each in self.renames), self.ticker]

    def traded(self) -> dict[date, float]:
        """Its closes as traded: about 150 dollars in the end, so that no dividend is as large as a price."""
        closes = level(self.ticker).copy()
        for day, shares in self.splits.items():
            closes[bisect_left(DAYS, day) :] /= shares
        return {
            day: close
            for day, close in zip(DAYS, closes.round(4).tolist(), strict=True)  # as the vendor rounds
            if self.listed is None or day >= self.listed
        }


@lru_cache
def level(ticker: str) -> np.ndarray:
    waves: np.ndarray = 1 + 0.2 * np.sin(np.arange(len(SESSIONS)) / 90 + sorted(FACTS).index(ticker))
    # Whole cents in the end, and in whole cents before each split as well: the vendor rounds nothing.
    return np.round(150.0 * waves, 2) * float(np.prod([*Lived.of(ticker).splits.values()]))


class Names:
    """Day bars of the names, before splits, without minutes."""

    description = "the names of the packaged universe since 2003"

    def tickers(self) -> tuple[str, ...]:
        return tuple(sorted(FACTS))

    def security(self, ticker: str) -> Security | None:
        return Security(ticker) if ticker in FACTS else None

    def security_on(self, ticker: str, day: date) -> Security | None:
        return self.security(ticker)

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        yield NO_BARS

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        if ticker not in FACTS:
            return NO_BARS
        price, ones = level(ticker), np.ones(len(SESSIONS))
        bars = Bars(STARTS, price, price, price, price, 1e6 * ones, price, 1e4 * ones, ones.astype("int64"))
        return bars.between(start_ms, end_ms)

    def splits(self) -> Sequence[SplitRow]:
        return ()

    def dividends(self) -> Sequence[DividendRow]:
        return ()

    def closings(self) -> Sequence[date]:
        return ()


def scenario() -> Scenario:
    companies = [Lived.of(ticker) for ticker in FACTS]
    return Scenario.model_validate(
        {
            "renames": [rename for each in companies for rename in each.renames],
            "listings": [{"ticker": each.ticker, "first": each.listed} for each in companies if each.listed],
            "splits": [
                {"ticker": each.ticker, "day": day, "split_from": old, "split_to": new}
                for each in companies
                for day, (old, new) in each.terms.items()
            ],
            "dividends": [
                {"ticker": each.ticker, "ex": day, "amount": amount}
                for each in companies
                for day, amount in each.dividends.items()
            ],
        }
    )


def test_the_facts_are_of_the_packaged_universe() -> None:
    universe = load_universe_file(PACKAGE / "universe.yaml")
    followed = {symbol for tier in Tier for symbol in universe.get(tier, ())}
    assert followed == set(FACTS) - {"METV", "GOOG"}
    assert all(fact["day"] in set(DAYS) for facts in FACTS.values() for fact in facts)


def test_each_series_is_its_companys_under_every_name_raw_and_adjusted(make_world: MakeWorld, tmp_path: Path) -> None:
    clock: list[World] = []
    world = make_world(NOW, source=staged(Names(), scenario(), lambda: clock[0].now))
    clock.append(world)
    followed = sorted(ticker for ticker in set(FACTS) - {"METV", "GOOG"} if FACTS[ticker])
    outcomes = world.refresh(*followed, timeframes=(Timeframe.D1,), history_days=(TODAY - FIRST).days)
    assert {(outcome.status, outcome.error, outcome.warning) for outcome in outcomes.values()} == {("ok", None, None)}
    settings = Settings(database_url=world.database_url, as_of=world.now, project_root=tmp_path)

    def closes(symbol: str, adjusted: str) -> dict[date, float]:
        found = read_bars(symbol, "1d", adjusted=adjusted, settings=settings)["close"]  # type: ignore[call-overload]
        return dict(zip(EQUITIES.session_days(found.index.as_unit("us").asi8).tolist(), found.to_list(), strict=True))

    for ticker in followed:
        company = Lived.of(ticker)
        raw = company.traded()
        expected = {
            "none": raw,
            "splits": adjusted_closes(raw, company.splits, {}),
            "all": adjusted_closes(raw, company.splits, company.dividends),
        }
        for adjusted, truth in expected.items():
            found = closes(ticker, adjusted)
            assert list(found) == list(truth), (ticker, adjusted)
            np.testing.assert_allclose([*found.values()], [*truth.values()], rtol=1e-9, err_msg=f"{ticker} {adjusted}")
    assert closes("FB", "all") == closes("META", "all")
    assert closes("QQQQ", "none") == closes("QQQ", "none")
    assert closes("GOOG", "splits") == closes("GOOGL", "splits")  # class C is not followed
    close_connections()

    rows = world.query(
        "select symbol, array_agg(asked order by first) as names from ("
        " select symbol, coalesce(ticker, symbol) as asked, min(session_date) as first from market_data.coverage"
        " where rows > 0 group by 1, 2, (symbol = 'QQQ' and session_date >= '2011-03-23')) as spans group by 1"
    )  # fmt: skip
    assert {row["symbol"]: row["names"] for row in rows} == {each: Lived.of(each).names for each in followed}
    splits = world.query("select symbol, execution_date, split_from, split_to from market_data.splits")
    assert {tuple(row.values()) for row in splits if row["symbol"] in followed} == {
        (ticker, day, *terms) for ticker in followed for day, terms in Lived.of(ticker).terms.items()
    }
    dividends = world.query("select symbol, ex_date, amount from market_data.dividends")
    assert {tuple(row.values()) for row in dividends} == {
        (ticker, *paid) for ticker in followed for paid in Lived.of(ticker).dividends.items()
    }


@needs_full
@pytest.mark.parametrize("ticker", ["AAPL", "GOOGL", "GOOG", "SPY"])
def test_the_facts_agree_with_recorded_factors_and_names(ticker: str) -> None:
    """The recorded ones end in March 2021; each row is of the last day before what happened."""

    def rows(kind: str) -> list[list[str]]:
        with (FULL / "actions" / kind / f"{ticker.lower()}.csv").open(newline="") as file:
            return list(csv.reader(file))

    def after(day: str) -> date:
        last = datetime.strptime(day, "%Y%m%d").replace(tzinfo=NEW_YORK).date()
        return EQUITIES.sessions(last + timedelta(days=1), last + timedelta(days=9))[0].date

    company = Lived.of(ticker)
    factors = [
        (after(day), float(price), float(split), float(close)) for day, price, split, close in rows("factor_files")[:-1]
    ]
    factors.append((date.max, 1.0, 1.0, 0.0))
    recorded_splits, recorded_dividends = {}, {}
    for (day, price, split, close), (_, next_price, next_split, _) in pairwise(factors):
        if day >= FIRST and split != next_split:
            recorded_splits[day] = next_split / split
        if day >= FIRST and price != next_price:
            recorded_dividends[day] = close * (1 - price / next_price)
    known = date(2021, 3, 31)
    assert {day: shares for day, shares in company.splits.items() if day <= known} == pytest.approx(
        recorded_splits, rel=1e-4
    )
    for day, amount in company.dividends.items():
        if day <= known:
            assert recorded_dividends[day] == pytest.approx(amount, abs=0.002), day
    names = [(day, name.upper()) for day, name, _ in rows("map_files")]
    changes = [(after(day), name) for (day, name), (_, following) in pairwise(names) if following != name]
    assert [(each["day"], each["was"]) for each in company.renames] == changes
