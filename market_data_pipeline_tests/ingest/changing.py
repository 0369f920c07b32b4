"""A vendor that changes its mind: the sandbox's market with bars hidden, altered, and splits added, at any time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime

import numpy as np

from market_data_pipeline.sandbox.bars import Bars, DividendRow, SplitRow
from market_data_pipeline.sandbox.view import Security, Source, to_ms


@dataclass
class ChangingSource:
    """A source whose answers follow what the test says now.

    Attributes:
        truth: what is served unless the test says otherwise.
        hidden: (ticker, start, end): bars that start in [start, end) are not served. Day bars start at midnight, so a
            session's hours hide its minutes alone.
        volumes: by (ticker, start of the bar): the volume that is served.
        more_splits: served besides those of the truth.
        dividends_listed: served instead of those of the truth, unless None.
    """

    truth: Source
    hidden: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    volumes: dict[tuple[str, datetime], float] = field(default_factory=dict)
    more_splits: list[SplitRow] = field(default_factory=list)
    dividends_listed: list[DividendRow] | None = None

    @property
    def description(self) -> str:
        return f"{self.truth.description}, changed"

    def tickers(self) -> tuple[str, ...]:
        return self.truth.tickers()

    def security(self, ticker: str) -> Security | None:
        return self.truth.security(ticker)

    def security_on(self, ticker: str, day: date) -> Security | None:
        return self.truth.security_on(ticker, day)

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        for piece in self.truth.intraday(ticker, step_ms, start_ms, end_ms, descending=descending):
            yield self._changed(ticker, piece)

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        return self._changed(ticker, self.truth.days(ticker, start_ms, end_ms))

    def splits(self) -> Sequence[SplitRow]:
        return sorted([*self.truth.splits(), *self.more_splits], key=lambda split: split.execution_date)

    def dividends(self) -> Sequence[DividendRow]:
        listed = self.truth.dividends() if self.dividends_listed is None else self.dividends_listed
        return sorted(listed, key=lambda dividend: dividend.ex_date)

    def closings(self) -> Sequence[date]:
        return self.truth.closings()

    def _changed(self, ticker: str, bars: Bars) -> Bars:
        shown = np.ones(len(bars), dtype=bool)
        for name, start, end in self.hidden:
            if name == ticker:
                shown &= (bars.t < to_ms(start)) | (bars.t >= to_ms(end))
        volumes = bars.v.copy()
        for (name, start), volume in self.volumes.items():
            if name == ticker:
                volumes[bars.t == to_ms(start)] = volume
        return replace(bars, v=volumes).take(shown)
