"""A decade of splits and dividends, corrected as it was: raw, split-adjusted and fully adjusted closes of every reader.

The expected values come from an account that holds the stock: it has one share at first, splits change the number, and
each dividend buys shares at the close before its ex date. What the account is worth, for each share that it ends with,
is the adjusted close.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest

from market_data_pipeline import read_bars, read_records
from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.lake.sync import sync
from market_data_pipeline.lake.tables import table_named
from market_data_pipeline.sandbox.bars import DividendRow, SplitRow
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.settings import Settings, load_settings
from market_data_pipeline_tests.conftest import copy_database, drop_database, with_database
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import World

ROOT = Path(__file__).resolve().parent.parent
CALENDAR = calendar_for(AssetClass.US_EQUITY)
FIRST, LAST = date(2014, 1, 2), date(2024, 1, 12)
START = datetime(2023, 12, 1, 12, 0, tzinfo=NEW_YORK)
DAYS = [session.date for session in CALENDAR.sessions(FIRST, LAST + timedelta(days=1))]
# Neighbouring days, a weekend between, and the same day.
SPLITS = [
    SplitRow("TEN", date(2015, 6, 9), 1, 7),
    SplitRow("TEN", date(2018, 5, 11), 1, 2),
    SplitRow("TEN", date(2020, 8, 31), 1, 4),
    SplitRow("TEN", date(2022, 3, 7), 8, 1),
]
LATE_SPLIT = SplitRow("TEN", date(2023, 12, 6), 1, 3)
QUARTERLY = [
    DividendRow("TEN", DAYS[at], 0.4 + at / 5000) for at in range(40, len(DAYS) - 40, 63)
]  # the last of them in autumn 2023
AROUND = [
    DividendRow("TEN", date(2015, 6, 8), 5.5),  # the day before a split
    DividendRow("TEN", date(2018, 5, 11), 0.73),  # its day, twice
    DividendRow("TEN", date(2018, 5, 11), 2.0, type="special", frequency=0),
    DividendRow("TEN", date(2020, 9, 1), 0.21),  # the day after
    DividendRow("TEN", date(2022, 3, 4), 0.09),
    DividendRow("TEN", date(2022, 3, 8), 1.0),
    DividendRow("TEN", date(2019, 2, 4), 4.0, "CAD"),  # no price is in this currency
]
RECENT = DividendRow("TEN", date(2023, 11, 20), 0.8)
CORRECTED = DividendRow("TEN", date(2023, 11, 20), 0.9)
COMING = DividendRow("TEN", date(2023, 12, 15), 0.7, declared=date(2023, 12, 1))
ON_THE_SPLIT = DividendRow("TEN", date(2023, 12, 6), 0.25, declared=date(2023, 12, 4))
ALL = [*QUARTERLY, *AROUND]


class Told(NamedTuple):
    """What the vendor says from an instant on."""

    at: datetime
    dividends: list[DividendRow]
    splits: list[SplitRow]


HISTORY = [
    Told(START, [*ALL, RECENT], SPLITS),
    Told(START + timedelta(days=3), [*ALL, RECENT, COMING, ON_THE_SPLIT], SPLITS),
    Told(START + timedelta(days=6), [*ALL, RECENT, COMING, ON_THE_SPLIT], [*SPLITS, LATE_SPLIT]),
    Told(START + timedelta(days=20), [*ALL, RECENT, ON_THE_SPLIT, COMING], [*SPLITS, LATE_SPLIT]),
    Told(START + timedelta(days=31), [*ALL, CORRECTED, COMING, ON_THE_SPLIT], [*SPLITS, LATE_SPLIT]),
    Told(START + timedelta(days=38), [*ALL, CORRECTED, ON_THE_SPLIT], [*SPLITS, LATE_SPLIT]),
]
NOW = HISTORY[-1].at
INSTANTS = [
    START - timedelta(microseconds=1),
    START,
    START + timedelta(days=3),
    datetime(2023, 12, 5, 23, 59, 59, tzinfo=NEW_YORK),
    datetime(2023, 12, 6, 0, 0, tzinfo=NEW_YORK),
    START + timedelta(days=6),
    datetime(2023, 12, 15, 0, 0, tzinfo=NEW_YORK),
    HISTORY[4].at - timedelta(microseconds=1),
    HISTORY[4].at,
    NOW - timedelta(microseconds=1),
]


def written(folder: Path) -> Path:
    """Write the decade's day bars, as traded: a random walk that splits and dividends move as in life."""
    generator = np.random.default_rng(20_140_102)
    level = 90 * np.exp(np.cumsum(generator.normal(0.0003, 0.015, len(DAYS))))
    for split in (*SPLITS, LATE_SPLIT):
        level[np.array([day >= split.execution_date for day in DAYS])] *= split.split_from / split.split_to
    closes = level.round(2)
    opens, volume = (closes * 1.001).round(4), generator.integers(1_000_000, 9_000_000, len(DAYS))
    (folder / "day").mkdir(parents=True)
    with gzip.open(folder / "day" / "TEN.csv.gz", "wt") as file:
        file.write("ticker,volume,open,close,high,low,window_start,transactions\n")
        for day, o, c, v in zip(DAYS, opens, closes, volume, strict=True):
            start = int(CALENDAR.midnight(day).timestamp()) * 10**9
            file.write(f"TEN,{v},{o},{c},{max(o, c)},{min(o, c)},{start},\n")
    return folder


@dataclass
class Decade:
    """The database after everything was said, and the raw closes that it holds."""

    database_url: str
    lake_url: str
    raw: pd.Series[float]

    @property
    def settings(self) -> Settings:
        return load_settings(database_url=self.database_url, as_of=NOW.astimezone(UTC), lake_url=self.lake_url)

    def expected(self, instant: datetime, adjusted: str) -> pd.Series[float]:
        """The closes as known at an instant, computed with the account."""
        said = [told for told in HISTORY if told.at <= instant]
        if not said:
            return self.raw.iloc[:0]
        today, told = instant.astimezone(NEW_YORK).date(), said[-1]
        held = self.raw[self.raw.index <= last_stored(told.at)]
        if adjusted == "none":
            return held
        splits: dict[date, float] = {}
        for split in told.splits:
            if split.execution_date <= today:
                splits[split.execution_date] = split.split_to / split.split_from
        paid: dict[date, float] = {}
        for dividend in told.dividends if adjusted == "all" else ():
            if dividend.ex_date <= today and dividend.currency == "USD":
                paid[dividend.ex_date] = paid.get(dividend.ex_date, 0.0) + dividend.amount
        shares, worth, before = 1.0, [], None
        # Also what is in force on a day that has no bar yet.
        for day in sorted({*held.index, *splits, *paid}):
            old_shares_for_one = splits.get(day, 1.0)
            shares *= old_shares_for_one
            if day in paid and before is not None:
                price = before / old_shares_for_one
                shares *= price / (price - paid[day])
            if day in held.index:
                before = float(held[day])
                worth.append(shares * before)
            elif before is not None:
                before = before / old_shares_for_one
        return pd.Series(np.array(worth) / shares, held.index)


def last_stored(at: datetime) -> date:
    """The last session that was over when the vendor was asked at noon: the day before, or earlier."""
    return CALENDAR.previous_session(at.astimezone(NEW_YORK).date()).date


@pytest.fixture(scope="module")
def decade(postgres_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decade]:
    folder = written(tmp_path_factory.mktemp("decade"))
    name = copy_database(postgres_url, migrated_template)
    source = ChangingSource(open_source(folder))
    world = World("", with_database(postgres_url, name), START.astimezone(UTC))
    with running_server(source, world.clock, plan="advanced") as world.base_url:
        for told in HISTORY:
            world.now = told.at.astimezone(UTC)
            source.dividends_listed, source.more_splits = told.dividends, told.splits
            outcomes = world.refresh("TEN", timeframes=(Timeframe.D1,), history_days=3_700)
            assert [(outcome.error, outcome.warning) for outcome in outcomes.values()] == [(None, None)]
    found = Decade(world.database_url, str(tmp_path_factory.mktemp("lake") / "lake"), pd.Series(dtype="float64"))
    found.raw = closes(read_bars("TEN", "1d", adjusted="none", settings=found.settings))
    sync(found.settings, tables=[table_named("bars_1d"), table_named("bar_revisions_1d")], until_now=True)
    yield found
    drop_database(postgres_url, urlsplit(world.database_url).path[1:])


def closes(bars: pd.DataFrame) -> pd.Series[float]:
    found: pd.Series[float] = bars["close"].set_axis(bars.index.tz_convert(NEW_YORK).date)
    return found


def in_sql(decade: Decade, statement: str, *values: object) -> pd.Series[float]:
    world = World("", decade.database_url, NOW)
    with world.connect() as connection:
        connection.execute("select set_config('market_data.as_of', %s, false)", (NOW.isoformat(),))
        rows = connection.execute(statement, values).fetchall()
    days = [row["ts"].astimezone(NEW_YORK).date() for row in rows]
    return pd.Series([row["close"] for row in rows], days, "float64")


Reader = Callable[[Decade, datetime | None, str], "pd.Series[float]"]


def from_database(decade: Decade, as_of: datetime | None, adjusted: str) -> pd.Series[float]:
    options: dict[str, Any] = {"adjusted": adjusted, "as_of": as_of, "source": "database"}
    return closes(read_bars("TEN", "1d", settings=decade.settings, **options))


def from_lake(decade: Decade, as_of: datetime | None, adjusted: str) -> pd.Series[float]:
    options: dict[str, Any] = {"adjusted": adjusted, "as_of": as_of, "source": "lake"}
    return closes(read_bars("TEN", "1d", settings=decade.settings, **options))


def from_functions(decade: Decade, as_of: datetime | None, adjusted: str) -> pd.Series[float]:
    if as_of is None:
        view = {"none": "bars", "splits": "bars_adjusted", "all": "bars_total_return"}[adjusted]
        return in_sql(decade, f"select ts, close from market_data.{view} where symbol = 'TEN' order by ts")
    function = "select ts, close from market_data.bars_total_return_as_of('TEN', '1d', %s) order by ts"
    return in_sql(decade, function, as_of)


@pytest.mark.parametrize("reader", [from_database, from_lake, from_functions])
def test_closes_and_returns_are_those_of_an_account_that_holds_the_stock(decade: Decade, reader: Reader) -> None:
    seen = set()
    for as_of in (None, *INSTANTS):
        for adjusted in ("none", "splits", "all"):
            if as_of is not None and adjusted != "all" and reader is not from_database:
                continue
            found, expected = reader(decade, as_of, adjusted), decade.expected(as_of or NOW, adjusted)
            assert found.index.tolist() == expected.index.tolist(), (as_of, adjusted)
            np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=f"{as_of} {adjusted}")
            np.testing.assert_allclose(found.pct_change(), expected.pct_change(), rtol=1e-9, atol=1e-12)
            seen.add(float(found.iloc[0]) if len(found) else None)
    assert len(seen) >= 7, "the instants know different things"


def test_the_lake_and_the_database_give_the_same_numbers(decade: Decade) -> None:
    for as_of in (None, HISTORY[3].at):
        pd.testing.assert_series_equal(from_lake(decade, as_of, "all"), from_database(decade, as_of, "all"))


def test_volume_is_adjusted_for_splits_alone_and_records_follow(decade: Decade) -> None:
    whole, split = (read_bars("TEN", "1d", adjusted=each, settings=decade.settings) for each in ("all", "splits"))
    pd.testing.assert_series_equal(whole["volume"], split["volume"])
    for name in ("open", "high", "low"):
        np.testing.assert_allclose(whole[name] / split[name], whole["close"] / split["close"], rtol=1e-12)
    records = read_records("TEN", "1d", adjusted="all", settings=decade.settings)
    pd.testing.assert_series_equal(records["close"], whole["close"])
    returns = records["log_return"], np.log(split["close"]).diff()  # features stay on split-adjusted prices
    np.testing.assert_allclose(*(each.iloc[1:].astype(float) for each in returns), atol=1e-9)


def test_a_lake_without_the_closes_before_dividends_says_so(decade: Decade, tmp_path: Path) -> None:
    settings = load_settings(
        database_url=decade.database_url, as_of=NOW.astimezone(UTC), lake_url=str(tmp_path / "lake")
    )
    sync(settings, tables=[table_named("features_1d")])
    with pytest.raises(UsageError, match="has no bars_1d yet"):
        read_bars("TEN", "1d", adjusted="all", source="lake", settings=settings)


def test_the_terms_of_each_dividend_are_in_sql(decade: Decade) -> None:
    world = World("", decade.database_url, NOW)
    [row] = world.query("select * from market_data.dividend_factors('TEN', %s) where ex_date = '2018-05-11'", NOW)
    before = float(decade.raw[date(2018, 5, 10)])
    assert (row["amount"], row["previous_close"], row["shares"]) == (2.73, before, 0.5)
    assert row["factor"] == pytest.approx(1 - 2.73 / (before / 2), rel=1e-12)
    assert row["in_force_from"] == CALENDAR.midnight(date(2018, 5, 11))


def test_the_documented_statements_give_price_and_total_returns(
    decade: Decade, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "adjustments.md").read_text(encoding="utf-8").replace("AAPL", "TEN")
    [script] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    returns, then = re.findall(r"```sql\n(.*?;)\n\n(.*?;)\n```", page, re.DOTALL)[0]
    monkeypatch.setenv("DATABASE_URL", decade.database_url)
    monkeypatch.setenv("MARKET_DATA_AS_OF", NOW.isoformat())
    found: dict[str, Any] = {}
    exec(script, found)
    whole, price = (decade.expected(NOW, each) for each in ("all", "splits"))
    assert found["total_return"].iloc[-1] == pytest.approx(whole.iloc[-1] / whole.iloc[0] - 1, rel=1e-9)
    with World("", decade.database_url, NOW).connect() as connection:
        connection.execute("select set_config('market_data.as_of', %s, false)", (NOW.isoformat(),))
        rows = connection.execute(returns).fetchall()
        assert len(connection.execute(then).fetchall()) == len(rows)
    for name, closes_of in (("price_return", price), ("total_return", whole)):
        shown = np.array([row[name] for row in rows], "float64")
        np.testing.assert_allclose(shown, closes_of.pct_change(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["by_day"], whole.pct_change(), rtol=1e-9, atol=1e-12)
