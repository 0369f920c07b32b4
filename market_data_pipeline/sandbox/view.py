"""What a source offers, and what of it is visible at one instant on one plan: delay, history, bars in progress."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from market_data_pipeline.domain.calendar import END_DATE, FIRST_DATE, calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.bars import MINUTE_MS, NO_BARS, Bars, concat, days_of, join, to_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.domain.calendar import SessionCalendar
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.sandbox.bars import DividendRow, SplitRow

# A split is announced about two weeks before its day, and so is a dividend that does not say when it was declared.
SPLITS_AHEAD: Final = dt.timedelta(days=14)


FIRST_EVENT: Final = dt.date(2003, 9, 10)  # the vendor's changes of ticker begin with its bars


class Security(NamedTuple):
    """What the vendor knows of a ticker.

    Attributes:
        ticker: the one that was asked about.
        listed: its first day, where that is known.
        delisted: the day of its delisting, if any.
        name: of the company, which is the same under each of its tickers; by default the ticker.
        changes: the days from which it had a ticker, as far as the vendor lists them.
    """

    ticker: str
    listed: dt.date | None = None
    delisted: dt.date | None = None
    name: str | None = None
    changes: tuple[tuple[dt.date, str], ...] = ()

    @property
    def figi(self) -> str:
        """A made-up FIGI, the same under each of its tickers."""
        return "BBG" + hashlib.blake2b((self.name or self.ticker).encode(), digest_size=5).hexdigest().upper()[:9]


class Source(Protocol):
    """Raw bars, splits and dividends of many tickers; an unknown ticker has no bars."""

    @property
    def description(self) -> str:
        """What it is, for people."""

    def tickers(self) -> tuple[str, ...]:
        """Return the tickers of whole-market answers, in order."""

    def security(self, ticker: str) -> Security | None:
        """Return what is known of a ticker, or a FIGI, now; None for an unknown one."""

    def security_on(self, ticker: str, day: dt.date) -> Security | None:
        """Return what is known of the security that had a ticker on a day; None when none had."""

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield bars of `step_ms` made of the minutes in [start_ms, end_ms), in pieces.

        Each piece is ascending and made on demand; the pieces come in ascending or descending order. A bar may be cut
        between two pieces (`bars.join` puts it together).
        """

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the day bars that start in [start_ms, end_ms), each as it is once its day is over."""

    def splits(self) -> Sequence[SplitRow]:
        """Return all splits by ascending date, future ones included."""

    def dividends(self) -> Sequence[DividendRow]:
        """Return all dividends by ascending ex date, future ones included."""

    def closings(self) -> Sequence[dt.date]:
        """Return the days without trade that are announced although the calendar has a session, ascending."""


@dataclass(frozen=True)
class View:
    """What a subscriber of `plan` sees of a source at `now` (aware UTC)."""

    source: Source
    plan: Plan
    now: dt.datetime

    @property
    def status(self) -> str:
        """The status of every successful answer."""
        return "DELAYED" if self.plan.delay or self.plan.end_of_day else "OK"

    def visible_until(self, calendar: SessionCalendar) -> int:
        """Return the instant, in ms, before which trades are shown: now minus the delay, or the start of the day."""
        if self.plan.end_of_day:
            return to_ms(calendar.midnight(calendar.session_date(self.now)))
        return to_ms(self.now - self.plan.delay)

    @cached_property
    def history_start(self) -> int:
        """First instant of the plan's history in ms: a New York midnight, or the start of the calendars."""
        calendar = calendar_for(AssetClass.US_EQUITY)
        if self.plan.history is None:
            return to_ms(calendar.midnight(FIRST_DATE))
        return to_ms(calendar.midnight(calendar.session_date(self.now - self.plan.history)))

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield the visible bars that start in [start_ms, end_ms), the one in progress included, in pieces.

        Both bounds are multiples of `step_ms`.
        """
        start = max(start_ms, self.history_start // step_ms * step_ms)
        until = self.visible_until(calendar_for(asset_class_of(ticker)))
        over = until // step_ms * step_ms
        progress = self._so_far(ticker, max(over, start), until) if over < end_ms else NO_BARS
        if descending:
            yield to_step(progress, step_ms)
        if start < min(end_ms, over):
            yield from self.source.intraday(ticker, step_ms, start, min(end_ms, over), descending=descending)
        if not descending:
            yield to_step(progress, step_ms)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the visible day bars that start in [start_ms, end_ms), the one in progress included."""
        calendar = calendar_for(asset_class_of(ticker))
        start, until = max(start_ms, self.history_start), self.visible_until(calendar)
        today = calendar.session_date(from_ms(until))
        session = calendar.session_on(today)
        midnight = to_ms(calendar.midnight(today))
        if session is None or until >= to_ms(session.end):
            tomorrow = to_ms(calendar.midnight(today + dt.timedelta(days=1)))
            return self.source.days(ticker, start, min(end_ms, tomorrow))
        parts = [self.source.days(ticker, start, min(end_ms, midnight))] if start < midnight else []
        if start <= midnight < end_ms and len(self.source.days(ticker, midnight, midnight + 1)):
            minutes = self._so_far(ticker, to_ms(session.start), until)
            parts.append(days_of(minutes, [session], round_the_clock=not calendar.has_extended_hours)[0])
        return concat(parts)

    def splits(self) -> list[SplitRow]:
        """Return the splits announced by now, by ascending date."""
        last = self._today + SPLITS_AHEAD
        return [split for split in self.source.splits() if split.execution_date <= last]

    def dividends(self) -> list[DividendRow]:
        """Return the dividends declared by now, by ascending ex date."""
        today = self._today
        return [each for each in self.source.dividends() if (each.declared or each.ex_date - SPLITS_AHEAD) <= today]

    def adjusted(self, ticker: str, bars: Bars) -> Bars:
        """Return the bars rewritten by all splits executed by now, as the vendor's `adjusted=true`."""
        calendar = calendar_for(asset_class_of(ticker))
        factor = np.ones(len(bars))
        for split in self.source.splits():
            if split.ticker == ticker and split.execution_date <= self._today:
                factor[bars.t < to_ms(calendar.midnight(split.execution_date))] *= split.split_from / split.split_to
        return bars.scaled(factor)

    @property
    def _today(self) -> dt.date:
        return calendar_for(AssetClass.US_EQUITY).session_date(self.now)

    def _so_far(self, ticker: str, start_ms: int, until_ms: int) -> Bars:
        """Return the minutes from `start_ms` on; the one in progress at `until_ms` has only its first trades."""
        end = -(-until_ms // MINUTE_MS) * MINUTE_MS
        if end <= start_ms:
            return NO_BARS
        minutes = join(list(self.source.intraday(ticker, MINUTE_MS, start_ms, end)))
        if not len(minutes) or minutes.t[-1] + MINUTE_MS <= until_ms:
            return minutes
        last, part = minutes.take(slice(-1, None)), (until_ms - int(minutes.t[-1])) / MINUTE_MS
        some = replace(
            last,
            h=last.o,
            low=last.o,
            c=last.o,
            v=np.maximum(np.floor(last.v * part * 1e6) / 1e6, 1e-6),
            vw=np.where(np.isnan(last.vw), np.nan, last.o),
            n=np.maximum(np.floor(last.n * part), 1.0),
        )
        return concat((minutes.take(slice(0, -1)), some))


def to_ms(instant: dt.datetime) -> int:
    """Return an aware instant as whole ms since 1970 UTC."""
    return (instant - _EPOCH) // _MS


def from_ms(ms: int) -> dt.datetime:
    """Return ms since 1970 UTC as an aware UTC instant, moved into the calendars' range."""
    low, high = (to_ms(dt.datetime.combine(day, dt.time(), dt.UTC)) for day in (FIRST_DATE, END_DATE))
    return _EPOCH + min(max(ms, low + _DAY_MS), high - 2 * _DAY_MS) * _MS


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS: Final = dt.timedelta(milliseconds=1)
_DAY_MS: Final = 86_400_000
