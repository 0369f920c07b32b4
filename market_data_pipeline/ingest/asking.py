"""Ask the vendor for all that one symbol lacks, before anything of it is stored.

Add here: the order in which a symbol's fetched series are asked for. Keep out: which days and in which requests
(harvest), and what becomes of the answers (refresh).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.failures import PipelineError
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Timeframe
from market_data_pipeline.ingest.audit import opened_for_audit
from market_data_pipeline.ingest.harvest import Harvest, HarvestError, harvest
from market_data_pipeline.polygon.limiter import PRIORITIES
from market_data_pipeline.polygon.usage import Usage
from market_data_pipeline.store.ledger import read_coverage, states_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime

    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.ingest.market_days import MarketDay
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.ledger import Coverage, SeriesState


class Family(NamedTuple):
    """A base series, those to be made of it, and what the vendor answered: a part of it, all, or a failure."""

    series: Series
    resampled: list[Timeframe]
    started_at: datetime
    answer: Harvest | HarvestError

    @property
    def nothing_more(self) -> bool:
        """Whether nothing more is asked for it, nor is the run to stop."""
        if isinstance(self.answer, HarvestError):
            return not self.answer.cause.stops_run
        return self.answer.complete


class Asking(NamedTuple):
    """What is asked for one symbol, and of whom.

    Attributes:
        pipeline: vendor, clock and plan.
        request: symbol, tier and timeframes.
        timing: when bars can be had, and now.
        states: of the symbol's series; kept up by who commits.
        splits_digest: the symbol's splits in force now.
        market_days: whole-market answers at hand.
        full: ask for everything again.
    """

    pipeline: Pipeline
    request: SymbolRequest
    timing: Timing
    states: Mapping[Timeframe, SeriesState]
    splits_digest: str
    market_days: Mapping[date, MarketDay]
    full: bool

    def families(self, bulk: Bulk) -> list[Family]:
        """Ask for what the symbol lacks; what fails is kept, and nothing is asked after what stops the run.

        Raises:
            PipelineError: the database refused before anything was asked.
        """
        families: list[Family] = []
        for base in BASE_TIMEFRAMES:
            wanted = [each for each in Timeframe if each.base is base and each in self.request.timeframes]
            if not wanted:
                continue
            resampled = [timeframe for timeframe in wanted if timeframe is not base]
            series, started_at = Series(self.request.symbol, base), self.pipeline.clock()
            answer: Harvest | HarvestError
            try:
                answer = self.ask(series, self._coverage(bulk, series))
            except PipelineError as error:  # of the database
                if not families:
                    raise
                answer = HarvestError(error, Usage(), (), 0.0)
            families.append(Family(series, resampled, started_at, answer))
            if isinstance(answer, HarvestError) and answer.cause.stops_run:
                break
        return families

    def ask(self, series: Series, held: Mapping[date, Coverage]) -> Harvest | HarvestError:
        """Return the answer for a base series of which `held` is known."""
        try:
            return harvest(
                series,
                self.pipeline.client,
                self.timing,
                held,
                last_ts=states_of(self.states, series.timeframe, self.request.tier).last_ts,
                history_days=self.pipeline.history_days,
                history_limit=self.pipeline.plan.history,
                priority=PRIORITIES[self.request.tier],
                market_days=self.market_days,
                full=self.full,
            )
        except HarvestError as error:
            return error

    def _coverage(self, bulk: Bulk, series: Series) -> Mapping[date, Coverage]:
        held: Mapping[date, Coverage] = read_coverage(bulk, series)
        if self.request.audit:
            state = states_of(self.states, series.timeframe, self.request.tier)
            held = opened_for_audit(bulk, series, held, state, self.splits_digest, self.timing, self.pipeline)
        bulk.commit()  # no transaction stays open while the vendor is asked
        return held
