"""What the vendor would be asked for now, told by the functions that a refresh asks.

Which days are worth a request (ingest.demand), which windows cover them (ingest.harvest), and which days one request
tells for all symbols (ingest.market_days). Keep out: what the answers cost (answer_sizes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.series import AssetClass, asset_class_of
from market_data_pipeline.domain.sessions import calendar_for
from market_data_pipeline.ingest.demand import Timing, reach, wanted, with_witnesses
from market_data_pipeline.ingest.harvest import served_windows
from market_data_pipeline.ingest.market_days import plan_market_days
from market_data_pipeline.operations.answer_sizes import Ask
from market_data_pipeline.polygon.plans import available_at
from market_data_pipeline.store.ledger import read_coverage

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.store.bulk import Bulk


class Lacking(NamedTuple):
    """A fetched series that lacks session days, and the requests that bring them."""

    series: Series
    sessions: int
    asked: Ask


class Vendor:
    """What the vendor would be asked for now.

    Args:
        bulk: a connection.
        plan: the vendor's subscription.
        history_days: calendar days of history that a series should hold.
        now: aware UTC.
    """

    def __init__(self, bulk: Bulk, plan: Plan, history_days: int, now: datetime) -> None:
        self.bulk = bulk
        self.plan = plan
        self.history_days = history_days
        self.now = now
        self.timing = {asset_class: self._timing(asset_class) for asset_class in AssetClass}

    def market_days(self, symbols: Collection[str]) -> tuple[tuple[date, ...], frozenset[str]]:
        """Return the days to ask for the whole market, and the symbols that need no request for day bars then."""
        timing = self.timing[AssetClass.US_EQUITY]
        made = plan_market_days(self.bulk, symbols, timing, self.history_days, self.plan)
        return tuple(session.date for session in made.asked), made.served

    def lacking(self, asked: Collection[Series], *, full: bool) -> list[Lacking]:
        """Return what each of the fetched series lacks, those that lack nothing left out."""
        found = []
        for series in asked:
            timing, held = self.timing[asset_class_of(series.symbol)], read_coverage(self.bulk, series)
            sessions = reach(timing, self.history_days, self.plan.history).sessions
            missing = wanted(sessions, held, series.timeframe, timing, full=full)
            if missing:
                days = with_witnesses(missing, sessions, held, series.timeframe, timing)
                requests = served_windows(days, series.timeframe, timing)
                found.append(Lacking(series, len(missing), Ask(series.symbol, requests, held)))
        return found

    def _timing(self, asset_class: AssetClass) -> Timing:
        calendar = calendar_for(asset_class)
        return Timing(calendar, lambda end: available_at(self.plan, calendar, end), self.now)
