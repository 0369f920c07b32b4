"""The instruments of the synthetic market: price level, turnover, splits and dividends of each ticker.

It knows the 25 names of the packaged universe, others with unusual spellings (a class share, a preferred share), one
that was delisted (LEH), some crypto and currency pairs and indices, and `SYN0000` to `SYN9999` for load tests. Any
other ticker is unknown, which on the vendor's API looks the same as one without trades.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.bars import DividendRow

SEED: Final = 20_031_001
FIRST_YEAR: Final = 2004  # the vendor's minute bars begin in autumn 2003
ANCHOR_YEAR: Final = 2026  # the levels below are prices at the start of this year


@dataclass(frozen=True, slots=True)
class Instrument:
    """What the bars of a ticker are generated from."""

    ticker: str
    level: float  # typical price in dollars, at the start of `ANCHOR_YEAR`
    daily_volume: float  # shares, coins or quotes; of an index it only says in which minutes there is a value
    trades: float  # a day
    volatility: float  # standard deviation of a day's log return
    quiet_trades: float  # least expected trades of an extended-hours minute
    growth: float = 0.03  # log price a year

    @property
    def key(self) -> int:
        """A number that makes this ticker's random streams differ from all others."""
        return int.from_bytes(hashlib.blake2b(self.ticker.encode(), digest_size=8).digest(), "big")

    @property
    def asset_class(self) -> AssetClass:
        """The asset class, which decides the calendar."""
        return asset_class_of(self.ticker)


@dataclass(frozen=True, slots=True)
class SplitCycle:
    """A ticker that splits every four years; its price grows as much in between, so raw prices stay in one range."""

    phase: int  # years with year % 4 == phase
    month: int
    split_to: int

    def dates(self, through: int) -> tuple[dt.date, ...]:
        """Return the execution dates up to the end of the year `through`: the month's second Monday."""
        years = range(FIRST_YEAR, through + 1)
        return tuple(_second(_MONDAY, year, self.month) for year in years if year % 4 == self.phase)


_MONDAY, _FRIDAY = 0, 4


def _second(weekday: int, year: int, month: int) -> dt.date:
    first = dt.date(year, month, 1)
    return first + dt.timedelta(days=(weekday - first.weekday()) % 7 + 7)


# Two splits fall into any twelve months. June and October have no holiday on a second Monday that closes NYSE.
SPLIT_CYCLES: Final = {
    "AMZN": SplitCycle(phase=0, month=6, split_to=2),
    "GOOGL": SplitCycle(phase=0, month=10, split_to=2),
    "TSLA": SplitCycle(phase=1, month=6, split_to=3),
    "COST": SplitCycle(phase=1, month=10, split_to=2),
    "NVDA": SplitCycle(phase=2, month=6, split_to=4),
    "AMD": SplitCycle(phase=2, month=10, split_to=2),
    "AAPL": SplitCycle(phase=3, month=6, split_to=4),
    "NFLX": SplitCycle(phase=3, month=10, split_to=3),
}


# What these pay on the second Friday of February, May, August and November, in dollars a share: about as much of their
# price as in life. None of these Fridays is a holiday, and none is near a split.
QUARTERLY_DIVIDENDS: Final = {
    "AAPL": 0.26, "MSFT": 0.91, "SPY": 1.83, "QQQ": 0.71, "JPM": 1.5, "BAC": 0.28, "JNJ": 1.3, "KO": 0.51, "PG": 1.06,
    "XOM": 1.03, "CVX": 1.71, "PFE": 0.43,
}  # fmt: skip
_DECLARED: Final = dt.timedelta(days=15)  # before the ex date
_PAID: Final = dt.timedelta(days=7)  # after the ex date


def dividends(through: int) -> list[DividendRow]:
    """Return all dividends up to the end of the year `through`, by ex date and ticker."""
    days = [_second(_FRIDAY, year, month) for year in range(FIRST_YEAR, through + 1) for month in (2, 5, 8, 11)]
    return [
        DividendRow(ticker, day, amount, declared=day - _DECLARED, record=day, pay=day + _PAID)
        for day in days
        for ticker, amount in sorted(QUARTERLY_DIVIDENDS.items())
    ]


def _equity(ticker: str, level: float, millions: float, volatility: float = 0.016) -> Instrument:
    """Return a liquid stock: about 60 shares a trade, and trades in nearly every five minutes from 04:00 on."""
    shares = millions * 1e6
    return Instrument(ticker, level, shares, shares / 60, volatility, quiet_trades=0.6)


_LIQUID: Final = (
    _equity("AAPL", 262.0, 48, 0.015), _equity("MSFT", 478.0, 21, 0.014), _equity("NVDA", 186.0, 185, 0.026),
    _equity("AMZN", 228.0, 41, 0.018), _equity("GOOGL", 291.0, 35, 0.018), _equity("META", 655.0, 14, 0.02),
    _equity("TSLA", 428.0, 84, 0.034), _equity("SPY", 684.0, 72, 0.008), _equity("QQQ", 618.0, 51, 0.011),
    _equity("IWM", 246.0, 33, 0.012), _equity("DIA", 478.0, 4, 0.008), _equity("AMD", 221.0, 44, 0.03),
    _equity("AVGO", 346.0, 23, 0.025), _equity("NFLX", 112.0, 36, 0.02), _equity("JPM", 309.0, 9, 0.012),
    _equity("BAC", 53.5, 37, 0.013), _equity("WFC", 87.0, 15, 0.014), _equity("GS", 812.0, 2.1, 0.016),
    _equity("V", 342.0, 6.4, 0.011), _equity("MA", 561.0, 2.8, 0.011), _equity("UNH", 331.0, 8.5, 0.018),
    _equity("LLY", 1045.0, 3.4, 0.019), _equity("JNJ", 206.0, 7.6, 0.01), _equity("PFE", 25.3, 46, 0.012),
    _equity("MRK", 101.0, 11, 0.013), _equity("XOM", 119.0, 15, 0.013), _equity("CVX", 151.0, 8, 0.012),
    _equity("WMT", 112.0, 18, 0.011), _equity("COST", 884.0, 2, 0.012), _equity("HD", 358.0, 3.9, 0.012),
    _equity("PG", 144.0, 8.3, 0.009), _equity("KO", 70.5, 16, 0.008), _equity("PEP", 146.0, 7, 0.01),
    _equity("DIS", 113.0, 9, 0.014), _equity("INTC", 39.4, 88, 0.03), _equity("CRM", 262.0, 7, 0.018),
    _equity("ORCL", 197.0, 22, 0.027), _equity("ADBE", 352.0, 3.6, 0.017), _equity("CSCO", 77.0, 20, 0.012),
    _equity("PLTR", 181.0, 48, 0.033), _equity("BA", 217.0, 7.4, 0.018), _equity("ABBV", 228.0, 5.5, 0.012),
    _equity("GOOG", 292.0, 22, 0.018), _equity("GLD", 398.0, 11, 0.01), _equity("TLT", 87.4, 32, 0.007),
    _equity("C", 118.0, 13, 0.016), _equity("CAT", 583.0, 3, 0.017), _equity("IBM", 297.0, 4.4, 0.015),
    _equity("MCD", 306.0, 3.2, 0.009), _equity("NKE", 63.8, 14, 0.017), _equity("QCOM", 172.0, 8, 0.018),
)  # fmt: skip

_UNUSUAL: Final = (
    _equity("BRK.B", 503.0, 4.5, 0.009),
    Instrument("KIMpL", 20.6, 21_000, 160, 0.006, quiet_trades=0.0),
    Instrument("X:BTCUSD", 87_600.0, 9_500, 520_000, 0.024, quiet_trades=40.0),
    Instrument("X:ETHUSD", 2_970.0, 160_000, 330_000, 0.033, quiet_trades=25.0),
    Instrument("C:EURUSD", 1.17, 125_000, 125_000, 0.0045, quiet_trades=5.0, growth=0.0),
    Instrument("C:GBPUSD", 1.34, 110_000, 110_000, 0.005, quiet_trades=5.0, growth=0.0),
    Instrument("C:USDJPY", 156.4, 130_000, 130_000, 0.006, quiet_trades=5.0, growth=0.0),
    Instrument("I:SPX", 6_858.0, 390_000, 390_000, 0.008, quiet_trades=0.0),
    Instrument("I:NDX", 25_210.0, 390_000, 390_000, 0.011, quiet_trades=0.0),
)

INSTRUMENTS: Final = {
    made.ticker: Instrument(
        made.ticker, made.level, made.daily_volume, made.trades, made.volatility, made.quiet_trades,
        growth=float(np.log(SPLIT_CYCLES[made.ticker].split_to)) / 4 if made.ticker in SPLIT_CYCLES else made.growth,
    )
    for made in (*_LIQUID, *_UNUSUAL)
}  # fmt: skip

# What is not listed any more, and the last day on which it traded.
_PAST: Final = {"LEH": _equity("LEH", 38.0, 40, 0.03)}
LAST_DAYS: Final = {"LEH": dt.date(2008, 9, 16)}

_LOAD_TEST: Final = re.compile(r"SYN\d{4}")


@lru_cache(maxsize=20_000)
def instrument(ticker: str) -> Instrument | None:
    """Return the instrument of a case-sensitive ticker, None when the synthetic market does not know it."""
    if known := INSTRUMENTS.get(ticker) or _PAST.get(ticker):
        return known
    if not _LOAD_TEST.fullmatch(ticker):
        return None
    dice = np.random.default_rng([SEED, int(ticker[3:])])
    shares = float(10 ** dice.uniform(5.5, 7.3))
    return Instrument(
        ticker,
        level=round(float(10 ** dice.uniform(1.0, 2.6)), 2),
        daily_volume=shares,
        trades=shares / 70,
        volatility=float(dice.uniform(0.01, 0.035)),
        quiet_trades=float(dice.uniform(0.05, 0.6)),
    )
