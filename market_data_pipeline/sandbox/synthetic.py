"""Synthetic minute bars, generated from a seed: the same in every process at every instant.

A ticker's log price runs through one point a year and one a day (`daily_path`); the minutes of a month run from
each day's first point to its last (`month_minutes`). Each year and each month has a random stream of its own, so any
month can be generated without those before it, prices are continuous at every boundary, and neither the order of
requests nor the clock matters.

Keep out: what each ticker is like (catalogue), and caching (market).
"""

from __future__ import annotations

import calendar as months
import datetime as dt
from functools import lru_cache
from math import exp, log
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.sandbox.bars import CLOSE, EARLY_CLOSE, MINUTE_MS, NO_BARS, OPEN, Bars, days_of
from market_data_pipeline.sandbox.catalogue import ANCHOR_YEAR, FIRST_YEAR, SEED, SPLIT_CYCLES, Instrument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.sandbox.bars import Floats

    Single = np.ndarray[Any, np.dtype[np.float32]]

FRACTIONAL_SINCE: Final = 2026  # the vendor's volumes have had fractions of a share since then
CENTS: Final = 100  # in ten-thousandths of a dollar, the unit of prices below

_YEARLY_NOISE: Final = 0.06  # standard deviation of a year's first log price around the trend
_OVERNIGHT: Final = 0.35  # part of a day's move that happens before 04:00
_INTRADAY: Final = 0.8  # a session's own wandering, in daily volatilities
_LATE_TRADES: Final = 0.0035  # part of a day's volume that belongs to no minute
_MINUTE: Final = dt.timedelta(minutes=1)
_SPLIT_PENNY: Final = 0.1  # part of the bars whose prices are not whole cents


def month_minutes(item: Instrument, sessions: Sequence[Session], year: int, month: int) -> Bars:
    """Return all minute bars of a month, raw.

    Args:
        item: the instrument.
        sessions: all sessions of the month, ascending.
        year: the month's year, local to the exchange.
        month: 1 to 12.
    """
    if not sessions or year < FIRST_YEAR:
        return NO_BARS
    profile = _profiles(item.asset_class)
    rows = np.array([int(s.early_close) for s in sessions])
    shape = (len(sessions), profile.share.shape[1])
    forex = item.asset_class is AssetClass.FOREX
    dice = np.random.Generator(np.random.SFC64([SEED, item.key, year, month]))

    # Prices: a walk whose steps follow the day's rhythm, bent so that it ends at the day's last point.
    first, last = _endpoints(item, sessions, year)
    rhythm = profile.rhythm[rows] * np.float32(item.volatility * _INTRADAY)
    walk = np.cumsum(dice.standard_normal(shape, dtype=np.float32) * rhythm, axis=1)
    walk += (last - first - walk[:, -1]).astype(np.float32)[:, None] * profile.elapsed[rows]
    # 1 + x + x²/2 stands for exp(x): multiplication and addition round the same on every CPU.
    base = np.array([1e4 * exp(x) for x in first])
    close = base[:, None] * (1.0 + walk * (1.0 + 0.5 * walk))
    opened = np.empty_like(close)
    opened[:, 0] = base
    opened[:, 1:] = close[:, :-1]
    chance = dice.random(shape, dtype=np.float32)
    opened *= 1.0 + (chance - np.float32(0.5)) * rhythm
    reach = rhythm * np.float32(0.5)
    high = np.maximum(opened, close) * (1.0 + dice.standard_exponential(shape, dtype=np.float32) * reach)
    low = np.minimum(opened, close) * (1.0 - dice.standard_exponential(shape, dtype=np.float32) * reach)

    # Trades, and which minutes have any.
    expected = np.float32(item.trades) * profile.share[rows]
    expected = np.where(profile.live[rows], np.maximum(expected, np.float32(item.quiet_trades)), np.float32(0.0))
    busy = dice.standard_exponential(shape, dtype=np.float32)
    trades = np.floor(expected * (np.float32(0.3) + np.float32(0.7) * busy) + chance)
    trades[~profile.live[rows]] = 0.0
    if forex:  # Friday ends in the middle of a day, and Sunday begins there
        trades[~_within_sessions(sessions, shape[1])] = 0.0
    size = dice.standard_exponential(shape, dtype=np.float32)
    held = np.flatnonzero(trades)
    count = trades.ravel()[held].astype("float64")
    shares = count * (0.3 + 0.7 * size.ravel()[held].astype("float64")) * (item.daily_volume / item.trades)
    if item.ticker in SPLIT_CYCLES:
        shares *= np.array([_shares_for_one(item, s.date) for s in sessions])[held // shape[1]]
    micro = np.floor(shares + 1.0) * 1e6
    if forex:
        micro = count * 1e6  # its volume counts quotes
    elif item.asset_class is AssetClass.CRYPTO or year >= FRACTIONAL_SINCE:
        micro += np.floor(dice.random(len(held), dtype=np.float32) * np.float32(999_999.0))

    starts = np.array([int(s.grid_start.timestamp()) * 1000 for s in sessions], dtype="int64")
    t = (starts[:, None] + np.arange(shape[1], dtype="int64") * MINUTE_MS).ravel()[held]
    # One tick for a bar's four prices keeps low <= open, close <= high through the rounding.
    split_penny = 1.0 if forex else _SPLIT_PENNY
    tick = np.where((chance.ravel()[held] * 8.0) % 1.0 < split_penny, 1.0, CENTS)
    o, c, h, lo = (np.rint(price.ravel()[held] / tick) * tick for price in (opened, close, high, low))
    vw = np.rint((o + c + h + lo) * 0.25)
    prices = (o / 1e4, h / 1e4, lo / 1e4, c / 1e4)
    if not item.asset_class.market.has_volume:
        none = np.full(len(held), np.nan)
        return Bars(t, *prices, none, none, none, np.ones(len(held), dtype="int64"))
    return Bars(t, *prices, micro / 1e6, vw / 1e4, count, np.ones(len(held), dtype="int64"))


def _within_sessions(sessions: Sequence[Session], minutes: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask of sessions and minutes of their day: True where the minute lies in the session."""
    bounds = np.array([((s.start - s.grid_start) / _MINUTE, (s.end - s.grid_start) / _MINUTE) for s in sessions])
    minute = np.arange(minutes)
    within: np.ndarray[Any, np.dtype[np.bool_]] = (minute >= bounds[:, :1]) & (minute < bounds[:, 1:])
    return within


def day_bars(item: Instrument, bars: Bars, sessions: Sequence[Session]) -> Bars:
    """Return the day bars of whole sessions, from all their bars of any length that divides half an hour.

    The close is the auction's, up to three cents off the last regular minute's; and trades that belong to no minute
    make the volume a little larger than the minutes' sum. Round-the-clock markets and indices have neither.
    """
    round_the_clock = not item.asset_class.market.keeps_exchange_days
    days, regular = days_of(bars, sessions, round_the_clock=round_the_clock)
    if round_the_clock or not item.asset_class.market.has_volume or not len(days):
        return days
    # The auction's price is derived from the digits of the day's VWAP, so it needs no random stream.
    cents = np.rint(days.c * 100) + np.where(regular, np.rint(days.vw * 1e4) % 7 - 3, 0.0)
    close = np.where(regular, np.maximum(cents, 1.0) / 100, days.c)
    late = np.floor(days.v * _LATE_TRADES)
    return Bars(
        days.t,
        days.o,
        np.maximum(days.h, close),
        np.minimum(days.low, close),
        close,
        np.rint((days.v + late) * 1e6) / 1e6,
        days.vw,
        days.n,
        days.base,
    )


def splits(through: int) -> list[tuple[str, dt.date, int]]:
    """Return (ticker, execution date, new shares for one) of all synthetic splits up to the end of a year."""
    found = [(t, day, cycle.split_to) for t, cycle in SPLIT_CYCLES.items() for day in cycle.dates(through)]
    return sorted(found, key=lambda split: (split[1], split[0]))


@lru_cache(maxsize=1024)
def daily_path(item: Instrument, year: int) -> Floats:
    """Return the log price, as if there were no splits, at the end of every calendar day of a year.

    Element 0 is the beginning of the year, so there are 366 or 367; the last equals the next year's element 0.
    """
    days = 366 if months.isleap(year) else 365
    dice = np.random.Generator(np.random.SFC64([SEED, item.key, year]))
    steps = dice.standard_normal(days) * item.volatility
    if item.asset_class is not AssetClass.CRYPTO:
        weekday = (dt.date(year, 1, 1).weekday() + np.arange(days)) % 7
        steps *= np.where(weekday < 5, 1.0, 0.3)
    walk = np.concatenate(([0.0], np.cumsum(steps)))
    start, end = _year_start(item, year), _year_start(item, year + 1)
    path: Floats = start + walk + (end - start - walk[-1]) * (np.arange(days + 1) / days)
    return path


def _year_start(item: Instrument, year: int) -> float:
    noise = float(np.random.default_rng([SEED, item.key, year, 0]).standard_normal())
    return log(item.level) + item.growth * (year - ANCHOR_YEAR) + _YEARLY_NOISE * noise


def _endpoints(item: Instrument, sessions: Sequence[Session], year: int) -> tuple[Floats, Floats]:
    """Return the log price at which each session starts and ends, raw: divided by the splits since the anchor."""
    path = daily_path(item, year)
    day = np.array([s.date.timetuple().tm_yday for s in sessions])
    before, last = path[day - 1], path[day]
    first = before + (_OVERNIGHT * (last - before) if item.asset_class.market.keeps_exchange_days else 0.0)
    factor = np.array([_split_factor(item.ticker, s.date) for s in sessions])
    return first - factor, last - factor


def _shares_for_one(item: Instrument, day: dt.date) -> float:
    """Return how many shares trade on `day` for each one at the start of the anchor year.

    A split multiplies them as it divides the price; between splits they decrease as the price grows. So the dollar
    volume stays the same from cycle to cycle.
    """
    years = day.year - ANCHOR_YEAR + (day.timetuple().tm_yday - 1) / 366
    return exp(_split_factor(item.ticker, day) - item.growth * years)


@lru_cache(maxsize=65_536)
def _split_factor(ticker: str, day: dt.date) -> float:
    """Return the log of the number of shares on `day` that were one at the start of the anchor year."""
    cycle = SPLIT_CYCLES.get(ticker)
    if cycle is None:
        return 0.0
    anchor = dt.date(ANCHOR_YEAR, 1, 1)
    dates = cycle.dates(max(day.year, ANCHOR_YEAR))
    since = sum(anchor < split <= day for split in dates) - sum(day < split <= anchor for split in dates)
    return since * log(cycle.split_to)


class _Profiles:
    """A day's rhythm, one row for a full session and one for an early close; float32, [row, minute].

    `live`: whether there is trading; `share`: of the day's trades; `rhythm`: standard deviation of the minute's step
    where the session's is 1; `elapsed`: part of the session's variance up to and including the minute.
    """

    def __init__(self, share: Floats, live: Floats) -> None:
        self.live = live > 0
        self.share: Single = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
        # Extended hours move more than their share of trades suggests.
        variance = np.where(self.live, share / share.sum(axis=1, keepdims=True) + 0.15 / share.shape[1], 0.0)
        variance /= variance.sum(axis=1, keepdims=True)
        self.rhythm: Single = np.sqrt(variance).astype(np.float32)
        self.elapsed: Single = np.cumsum(variance, axis=1).astype(np.float32)


@lru_cache(maxsize=4)
def _profiles(asset_class: AssetClass) -> _Profiles:
    if not asset_class.market.keeps_exchange_days:
        minute = np.arange(1440)
        return _Profiles((1.0 + 0.35 * np.cos((minute - 900) / 1440 * 2 * np.pi))[None, :], np.ones((1, 1440)))
    share, live = np.zeros((2, 960)), np.zeros((2, 960))
    for row, (close, end) in enumerate(((CLOSE, 960), (EARLY_CLOSE, 780))):
        live[row, :end] = 1.0
        share[row, :180] = 0.002  # from 04:00
        share[row, 180:OPEN] = 0.03  # from 07:00
        place = np.linspace(-1.0, 1.0, close - OPEN)
        share[row, OPEN:close] = 0.75 + 1.1 * place**4 + 0.35 * np.exp(-(place + 1.0) * 12.0)  # the smile
        share[row, close] = 14.0  # the closing auction's print
        share[row, close + 1 : end] = 0.006
        if asset_class is AssetClass.INDEX:  # computed in regular hours
            share[row, :OPEN] = share[row, close:] = live[row, :OPEN] = live[row, close:] = 0.0
    return _Profiles(share, live)
