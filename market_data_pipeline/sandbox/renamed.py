"""A source in which securities change their tickers, and tickers their securities, as a scenario's renames say.

The source below knows each security by its last ticker. Here, a ticker stands on each day for the security that had it
then: bars, splits and reference data follow.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.sandbox.bars import concat
from market_data_pipeline.sandbox.view import FIRST_EVENT, Security, to_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from market_data_pipeline.sandbox.bars import Bars, DividendRow, SplitRow
    from market_data_pipeline.sandbox.scenario import Rename
    from market_data_pipeline.sandbox.view import Source


class _Held(NamedTuple):
    """A security, by its last ticker, had a ticker in [start, end)."""

    security: str
    ticker: str
    start: dt.date
    end: dt.date


@dataclass(frozen=True)
class RenamedMarket:
    """The bars of `truth` under the tickers that `renames` give them, at the now of `clock` (aware UTC)."""

    truth: Source
    renames: tuple[Rename, ...]
    clock: Callable[[], dt.datetime]

    @property
    def description(self) -> str:
        """What it is, for people."""
        return f"{self.truth.description}, some of it renamed"

    @cached_property
    def _held(self) -> tuple[_Held, ...]:
        found: list[_Held] = []
        for security in dict.fromkeys(each.ticker for each in self.renames):
            changes = sorted((each for each in self.renames if each.ticker == security), key=lambda each: each.day)
            tickers = [*(each.was for each in changes), security]
            days = [dt.date.min, *(each.day for each in changes), dt.date.max]
            found += [_Held(security, ticker, *span) for ticker, span in zip(tickers, pairwise(days), strict=True)]
        return tuple(found)

    @property
    def _today(self) -> dt.date:
        return calendar_for(AssetClass.US_EQUITY).session_date(self.clock())

    def _holders(self, ticker: str) -> list[_Held]:
        """Return the securities that had a ticker, and when, ascending."""
        found = sorted((each for each in self._held if each.ticker == ticker), key=lambda each: each.start)
        if any(each.security == ticker for each in self._held):
            return found
        # A security of that name, which is never renamed, has the ticker whenever no other one has.
        ends, starts = [dt.date.min, *(each.end for each in found)], [*(each.start for each in found), dt.date.max]
        own = [_Held(ticker, ticker, *span) for span in zip(ends, starts, strict=True) if span[0] < span[1]]
        return sorted([*found, *own], key=lambda each: each.start)

    def tickers(self) -> tuple[str, ...]:
        """Return the tickers of whole-market answers now, in order."""
        names = {each.security: each.ticker for each in self._held if each.start <= self._today < each.end}
        return tuple(sorted(names.get(ticker, ticker) for ticker in self.truth.tickers()))

    def security(self, ticker: str) -> Security | None:
        """Return what is known of a ticker, or a FIGI, now."""
        today = self._today
        named = next(
            (each for each in self._held if each.start <= today < each.end and self._described(each).figi == ticker),
            None,
        )
        return self._known(named, today) if named is not None else self.security_on(ticker, today)

    def security_on(self, ticker: str, day: dt.date) -> Security | None:
        """Return what is known of the security that had a ticker on a day."""
        return next((self._known(held, day) for held in self._holders(ticker) if held.start <= day < held.end), None)

    def _described(self, held: _Held) -> Security:
        return Security(held.ticker, name=held.security)

    def _known(self, held: _Held, day: dt.date) -> Security | None:
        today = self._today
        known = self.truth.security(held.security) if day == today else self.truth.security_on(held.security, day)
        if known is None:
            return None
        tickers = [each for each in self._held if each.security == held.security and each.start <= today]
        listed = {(each.ticker, each.day): (each.dated or each.day, each.unlisted) for each in self.renames}
        first = known.listed or FIRST_EVENT
        changes = [(first, tickers[0].ticker)] if tickers else []
        for each in tickers[1:]:
            dated, unlisted = listed[held.security, each.start]
            if not unlisted:
                changes.append((dated, each.ticker))
        return known._replace(ticker=held.ticker, name=held.security, changes=tuple(changes))

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield the bars of `step_ms` in [start_ms, end_ms) of whichever security had the ticker."""
        for security, start, end in self._spans(ticker, start_ms, end_ms, descending=descending):
            yield from self.truth.intraday(security, step_ms, start, end, descending=descending)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the day bars that start in [start_ms, end_ms) of whichever security had the ticker."""
        return concat([self.truth.days(*span) for span in self._spans(ticker, start_ms, end_ms)])

    def _spans(
        self, ticker: str, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[tuple[str, int, int]]:
        calendar = calendar_for(asset_class_of(ticker))
        holders = self._holders(ticker)
        for held in reversed(holders) if descending else holders:
            start = start_ms if held.start == dt.date.min else to_ms(calendar.midnight(held.start))
            end = end_ms if held.end == dt.date.max else to_ms(calendar.midnight(held.end))
            if max(start, start_ms) < min(end, end_ms):
                yield held.security, max(start, start_ms), min(end, end_ms)

    def splits(self) -> Sequence[SplitRow]:
        """Return all splits by ascending date, under the ticker of their day."""
        return [
            split._replace(ticker=self._ticker_on(split.ticker, split.execution_date)) for split in self.truth.splits()
        ]

    def dividends(self) -> Sequence[DividendRow]:
        """Return all dividends by ascending ex date, under the ticker of their day."""
        return [each._replace(ticker=self._ticker_on(each.ticker, each.ex_date)) for each in self.truth.dividends()]

    def _ticker_on(self, security: str, day: dt.date) -> str:
        return next(
            (each.ticker for each in self._held if each.security == security and each.start <= day < each.end), security
        )

    def closings(self) -> Sequence[dt.date]:
        """Return the days without trade that are announced now."""
        return self.truth.closings()
