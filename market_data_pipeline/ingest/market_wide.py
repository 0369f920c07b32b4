"""What a run asks once for all its symbols: the market's splits, and its newest day bars.

Add here: another answer that every symbol of a run shares. Keep out: what a symbol asks for itself (asking).
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING

from market_data_pipeline.domain.failures import PipelineError
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.domain.splits import NO_TICKER
from market_data_pipeline.ingest.market_days import read_market
from market_data_pipeline.ingest.reference import ensure_splits
from market_data_pipeline.polygon.limiter import PRIORITIES
from market_data_pipeline.polygon.usage import Usage
from market_data_pipeline.store.splits import unreadable_splits

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date

    from market_data_pipeline.ingest.market_days import MarketDay
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.bulk import Bulk

log = logging.getLogger(__name__)


class MarketWide:
    """Answers about the whole market; threads may share it once it was read.

    Args:
        spent: what the run has asked of the vendor before, to be counted with its first series.

    Attributes:
        days: whole-market answers at hand, by session date.
        unreadable: what is wrong with the vendor's splits of a symbol, which fails with that.
    """

    def __init__(self, spent: Usage) -> None:
        self.days: Mapping[date, MarketDay] = {}
        self.unreadable: Mapping[str, str] = {}
        self._lock = Lock()
        self._spent = spent
        self._notice: str | None = None

    def read(self, pipeline: Pipeline, bulk: Bulk, requests: Collection[SymbolRequest], *, full: bool) -> None:
        """Ask for what the run lacks; what it costs is counted whatever comes of it.

        Args:
            pipeline: vendor, clock and plan; no other thread asks yet.
            bulk: a connection without an open transaction.
            requests: the run's symbols.
            full: everything is asked for again, symbol by symbol.

        Raises:
            PipelineError: one that every symbol would fail with, as without any list of splits.
        """
        before = pipeline.client.usage
        try:
            late = ensure_splits(pipeline, bulk)
            if late is not None:
                log.warning("The market's splits could not be read today, the last list is used: %s", late)
            self.unreadable = unreadable_splits(bulk)
            if anonymous := self.unreadable.get(NO_TICKER):
                self._notice = (
                    f"The vendor lists a split without a readable ticker ({anonymous.rstrip('.')}). "
                    "It is left out: whose it is lacks a split until the list is mended."
                )
            daily = [request for request in requests if Timeframe.D1 in request.timeframes]
            if daily and not full:
                self._read_days(pipeline, bulk, daily)
            bulk.commit()
        finally:
            self._spent += pipeline.client.usage - before

    def _read_days(self, pipeline: Pipeline, bulk: Bulk, daily: Collection[SymbolRequest]) -> None:
        priority = min(PRIORITIES[request.tier] for request in daily)
        try:
            self.days = read_market(pipeline, bulk, [request.symbol for request in daily], priority)
        except PipelineError as error:
            if error.stops_run:
                raise
            log.warning("Day bars are asked for symbol by symbol, the market's cannot be had: %s", error)

    def take_usage(self) -> Usage:
        """Return, once, what the requests for the whole market cost: the first series of the run counts them."""
        with self._lock:
            usage, self._spent = self._spent, Usage()
        return usage

    def take_notice(self) -> str | None:
        """Return, once, what people should know of the market's answers: the first series that commits says it."""
        with self._lock:
            notice, self._notice = self._notice, None
        return notice
