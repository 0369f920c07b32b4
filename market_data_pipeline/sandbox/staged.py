"""Any source with a scenario on top: what happened to the market, and what the vendor says of it at an instant.

The market's own events (listings, delistings, closings, halts, splits) decide which bars exist and at which price; the
vendor's (withheld, repeated and stray bars, late lists of splits, dividends) decide what an answer holds at the clock's
now.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.bars import MINUTE_MS, NO_BARS, Bars, DividendRow, SplitRow, concat, to_step
from market_data_pipeline.sandbox.query import Refusal
from market_data_pipeline.sandbox.renamed import RenamedMarket
from market_data_pipeline.sandbox.view import Security, to_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from market_data_pipeline.sandbox.scenario import Repeated, Scenario, Stray, Withheld
    from market_data_pipeline.sandbox.view import Source

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class StagedMarket:
    """The bars of `truth` as `scenario` changes them, at the now of `clock` (aware UTC)."""

    truth: Source
    scenario: Scenario
    clock: Callable[[], dt.datetime]

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"{self.truth.description}, changed by a scenario"

    def tickers(self) -> tuple[str, ...]:
        """Return the tickers of whole-market answers, in order."""
        return tuple(ticker for ticker in self.truth.tickers() if not self._is_purged(ticker))

    def _is_purged(self, ticker: str) -> bool:
        now = self.clock()
        return any(each.ticker == ticker and each.purged and each.purged <= now for each in self.scenario.delistings)

    def security(self, ticker: str) -> Security | None:
        """Return what is known of a ticker at now."""
        known = self.truth.security(ticker)
        today = calendar_for(AssetClass.US_EQUITY).session_date(self.clock())
        listed = next((event.first for event in self.scenario.listings if event.ticker == ticker), None)
        if known is None or (listed is not None and today < listed) or self._is_purged(ticker):
            return None
        last = next((event.last for event in self.scenario.delistings if event.ticker == ticker), None)
        return known._replace(
            listed=listed or known.listed, delisted=last + _DAY if last is not None and last < today else None
        )

    def security_on(self, ticker: str, day: dt.date) -> Security | None:
        """Return what was known of a ticker on a day."""
        known = self.truth.security_on(ticker, day)
        listed = next((event.first for event in self.scenario.listings if event.ticker == ticker), None)
        last = next((event.last for event in self.scenario.delistings if event.ticker == ticker), None)
        if known is None or (listed is not None and day < listed) or (last is not None and last < day):
            return None
        return known._replace(listed=listed or known.listed)

    def _check(self, ticker: str) -> None:
        if self._is_purged(ticker):
            raise Refusal(404, "Ticker not found.")

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield the bars of `step_ms` in [start_ms, end_ms), in one piece; a 404 of a purged ticker."""
        self._check(ticker)
        minutes = concat(self.truth.intraday(ticker, MINUTE_MS, start_ms, end_ms))
        strays = _strays(s for s in self.scenario.strays if s.ticker == ticker and s.timespan == "minute")
        happened = _merged(self._happened(ticker, minutes), strays.between(start_ms, end_ms))
        shown = to_step(self._shown(ticker, happened, lossy=False), step_ms)
        yield self._with_repeats(ticker, self._shown(ticker, shown, lossy=True), step_ms)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the day bars that start in [start_ms, end_ms); a 404 of a purged ticker."""
        self._check(ticker)
        days = self._happened(ticker, self.truth.days(ticker, start_ms, end_ms))
        strays = _strays(s for s in self.scenario.strays if s.ticker == ticker and s.timespan == "day")
        shown = self._shown(ticker, _merged(days, strays.between(start_ms, end_ms)), lossy=False)
        return self._shown(ticker, shown, lossy=True)

    def splits(self) -> Sequence[SplitRow]:
        """Return the splits that are listed now, by ascending date."""
        now = self.clock()
        listed = [
            SplitRow(split.ticker, split.day, split.split_from, split.split_to)
            for split in self.scenario.splits
            if (split.listed is None or split.listed <= now) and (split.cancelled is None or now < split.cancelled)
        ]
        return sorted([*self.truth.splits(), *listed], key=lambda split: (split.execution_date, split.ticker))

    def dividends(self) -> Sequence[DividendRow]:
        """Return the dividends that are listed now, by ascending ex date."""
        now = self.clock()
        listed = [
            DividendRow(
                each.ticker, each.ex, each.amount, each.currency, each.declared, each.record, each.pay, each.frequency,
                each.type,
            )
            for each in self.scenario.dividends
            if (each.listed is None or each.listed <= now) and (each.withdrawn is None or now < each.withdrawn)
        ]  # fmt: skip
        return sorted([*self.truth.dividends(), *listed], key=lambda each: (each.ex_date, each.ticker))

    def closings(self) -> Sequence[dt.date]:
        """Return the days without trade that are announced now although the calendar has a session, ascending."""
        now = self.clock()
        announced = [
            each.day
            for each in self.scenario.closings
            if each.announced and each.announced <= now and (each.withdrawn is None or now < each.withdrawn)
        ]
        return sorted([*self.truth.closings(), *announced])

    def _happened(self, ticker: str, bars: Bars) -> Bars:
        """Return the bars that exist, at the prices of the splits."""
        calendar = calendar_for(asset_class_of(ticker))
        exists = np.ones(len(bars), dtype=bool)
        for listing in self.scenario.listings:
            if listing.ticker == ticker:
                exists &= bars.t >= to_ms(calendar.midnight(listing.first))
        for delisting in self.scenario.delistings:
            if delisting.ticker == ticker:
                exists &= bars.t < to_ms(calendar.midnight(delisting.last + _DAY))
        for halt in self.scenario.halts:
            if halt.ticker == ticker:
                exists &= ~_within(bars, halt.start, halt.end)
        if calendar.asset_class.market.keeps_exchange_days:
            for day in self.scenario.closed_days:
                exists &= ~_within(bars, calendar.midnight(day), calendar.midnight(day + _DAY))
        factor = np.ones(len(bars))
        for split in self.scenario.splits:
            if split.ticker == ticker and split.cancelled is None:
                factor[bars.t >= to_ms(calendar.midnight(split.day))] *= split.split_from / split.split_to
        return bars.scaled(factor).take(exists)

    def _shown(self, ticker: str, bars: Bars, *, lossy: bool) -> Bars:
        """Return the bars that the vendor does not withhold now: whole stretches, or every so many when `lossy`."""
        now = self.clock()
        shown = np.ones(len(bars), dtype=bool)
        for event in self.scenario.withheld:
            if (event.every > 1) == lossy and _concerns(event, ticker, now):
                lost = np.flatnonzero(_within(bars, event.start, event.end))
                shown[lost[event.every - 1 :: event.every]] = False
        return bars.take(shown)

    def _with_repeats(self, ticker: str, bars: Bars, step_ms: int) -> Bars:
        now = self.clock()
        for event in self.scenario.repeated:
            if event.ticker != ticker or event.minutes * MINUTE_MS != step_ms or not _given(event, now):
                continue
            again = bars.take(bars.t == to_ms(event.bar))
            if event.close is not None and len(again):
                close = np.array([event.close])
                again = replace(again, c=close, h=np.maximum(again.h, close), low=np.minimum(again.low, close))
            bars = _merged(bars, again)
        return bars


def staged(truth: Source, scenario: Scenario, clock: Callable[[], dt.datetime]) -> Source:
    """Return the bars of `truth` as `scenario` changes them, its renames included, at the now of `clock`."""
    market = StagedMarket(truth, scenario, clock)
    return RenamedMarket(market, scenario.renames, clock) if scenario.renames else market


def _concerns(event: Withheld, ticker: str, now: dt.datetime) -> bool:
    return (not event.tickers or ticker in event.tickers) and _given(event, now)


def _given(event: Withheld | Repeated, now: dt.datetime) -> bool:
    """Return whether an answer given now shows the event."""
    return (event.since is None or event.since <= now) and (event.until is None or now < event.until)


def _within(bars: Bars, start: dt.datetime, end: dt.datetime) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    within: np.ndarray[tuple[int], np.dtype[np.bool_]] = (bars.t >= to_ms(start)) & (bars.t < to_ms(end))
    return within


def _strays(events: Iterable[Stray]) -> Bars:
    """Return the bars of the events, ascending."""
    found = sorted(events, key=lambda event: event.bar)
    if not found:
        return NO_BARS
    columns = [[getattr(event, name) for event in found] for name in ("open", "high", "low", "close", "volume")]
    o, h, low, c, v = (np.array(column, dtype="float64") for column in columns)
    ones = np.ones(len(found))
    return Bars(np.array([to_ms(event.bar) for event in found]), o, h, low, c, v, c, ones, ones.astype("int64"))


def _merged(one: Bars, other: Bars) -> Bars:
    """Return the bars of both in ascending order; of two with one start, that of `one` comes first."""
    if not len(other):
        return one
    both = Bars(*(np.concatenate(columns) for columns in zip(one.columns(), other.columns(), strict=True)))
    return both.take(np.argsort(both.t, kind="stable"))
