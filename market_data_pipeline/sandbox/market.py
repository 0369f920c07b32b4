"""The synthetic market as a source: months are generated on demand (by `synthetic`) and cached."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from market_data_pipeline.domain.calendar import END_DATE, SessionCalendar, calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.bars import MINUTE_MS, NO_BARS, Bars, DividendRow, SplitRow, concat, to_step
from market_data_pipeline.sandbox.catalogue import FIRST_YEAR, INSTRUMENTS, LAST_DAYS, dividends, instrument
from market_data_pipeline.sandbox.synthetic import day_bars, month_minutes, splits
from market_data_pipeline.sandbox.view import Security, to_ms

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from market_data_pipeline.domain.calendar import Session

FIVE_MINUTES_MS: Final = 5 * MINUTE_MS
_HOUR_MS: Final = 60 * MINUTE_MS

# A year of 25 symbols' 5m bars takes 87 MB, the newest two months of all of them 15 MB; a month's minutes take 1.5 MB.
_CACHE_BYTES: Final = 96_000_000


class SyntheticMarket:
    """Synthetic bars from `FIRST_YEAR` on; see `catalogue` for the tickers it knows."""

    def __init__(self, load_test_symbols: int = 0) -> None:
        """List this many load-test symbols, `SYN0000` on, in whole-market answers; by name, all of them exist."""
        self._tickers = tuple(sorted([*INSTRUMENTS, *(f"SYN{i:04d}" for i in range(min(load_test_symbols, 10_000)))]))
        self._splits = [SplitRow(ticker, day, 1.0, float(to)) for ticker, day, to in splits(END_DATE.year - 1)]
        self._dividends = dividends(END_DATE.year - 1)
        self._cache: LRUCache[Hashable, Bars] = LRUCache(_CACHE_BYTES, getsizeof=lambda bars: bars.nbytes)

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"synthetic market of {len(self._tickers)} tickers from {FIRST_YEAR} on"

    def tickers(self) -> tuple[str, ...]:
        """Return the listed tickers in order."""
        return self._tickers

    def security(self, ticker: str) -> Security | None:
        """Return a ticker of the catalogue."""
        last = LAST_DAYS.get(ticker)
        delisted = None if last is None else last + dt.timedelta(days=1)
        return Security(ticker, delisted=delisted) if instrument(ticker) is not None else None

    def security_on(self, ticker: str, day: dt.date) -> Security | None:
        """Return the same on each day that it was listed on: no ticker was ever another security."""
        known = self.security(ticker)
        if known is None or known.delisted is None:
            return known
        return known._replace(delisted=None) if day < known.delisted else None

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield bars of `step_ms` made of the minutes in [start_ms, end_ms), a month at a time."""
        if instrument(ticker) is None:
            return
        end_ms = _until(ticker, end_ms)
        found = _months(calendar_for(asset_class_of(ticker)), start_ms, end_ms)
        for year, month in reversed(found) if descending else found:
            if _HOUR_MS % step_ms == 0:  # no month begins inside such a bar
                yield self._month(ticker, year, month, step_ms).between(start_ms, end_ms)
            else:
                yield to_step(self._month(ticker, year, month, MINUTE_MS).between(start_ms, end_ms), step_ms)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the day bars that start in [start_ms, end_ms)."""
        if instrument(ticker) is None:
            return NO_BARS
        end_ms = _until(ticker, end_ms)
        found = _months(calendar_for(asset_class_of(ticker)), start_ms, end_ms)
        return concat(self._month(ticker, year, month, 0) for year, month in found).between(start_ms, end_ms)

    def splits(self) -> Sequence[SplitRow]:
        """Return all splits by ascending date."""
        return self._splits

    def dividends(self) -> Sequence[DividendRow]:
        """Return all dividends by ascending ex date; prices do not show them."""
        return self._dividends

    def closings(self) -> Sequence[dt.date]:
        """Return none: nothing is announced that the calendar does not know."""
        return ()

    def _month(self, ticker: str, year: int, month: int, step_ms: int) -> Bars:
        """Return a month's bars of a step that divides the hour, or its day bars for 0.

        A client that requests 5m or day bars soon requests the other, so both are made at once.
        """
        if (found := self._cache.get((ticker, year, month, step_ms))) is not None:
            return found
        item = instrument(ticker)
        assert item is not None  # noqa: S101 - callers have checked; narrows the type
        sessions = _sessions(item.asset_class, year, month)
        if (minutes := self._cache.get((ticker, year, month, MINUTE_MS))) is None:
            minutes = month_minutes(item, sessions, year, month)
        five = to_step(minutes, FIVE_MINUTES_MS)
        made = {0: day_bars(item, five, sessions), FIVE_MINUTES_MS: five}
        if step_ms not in made:
            made[step_ms] = to_step(minutes, step_ms)
        for step, bars in made.items():
            self._cache[ticker, year, month, step] = bars
        return made[step_ms]


def _until(ticker: str, end_ms: int) -> int:
    """Return where a range of a ticker's bars ends: at the latest with its last day."""
    last = LAST_DAYS.get(ticker)
    if last is None:
        return end_ms
    return min(end_ms, to_ms(calendar_for(AssetClass.US_EQUITY).midnight(last + dt.timedelta(days=1))))


def _months(calendar: SessionCalendar, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Return the (year, month) on the exchange's clock that overlap [start_ms, end_ms)."""
    if end_ms <= start_ms:
        return []
    earliest = dt.date(FIRST_YEAR, 1, 1)
    first = max(earliest, calendar.session_date(dt.datetime.fromtimestamp(start_ms / 1000, dt.UTC)))
    last = min(
        END_DATE - dt.timedelta(days=1), calendar.session_date(dt.datetime.fromtimestamp((end_ms - 1) / 1000, dt.UTC))
    )
    numbers = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    return [(number // 12, number % 12 + 1) for number in numbers]


@lru_cache(maxsize=512)
def _sessions(asset_class: AssetClass, year: int, month: int) -> tuple[Session, ...]:
    start = dt.date(year, month, 1)
    end = dt.date(year + month // 12, month % 12 + 1, 1)
    return calendar_for(asset_class).sessions(start, end)
