"""One symbol: lock it, find what it lacks, fetch all of that, and commit its series one by one.

Add here: the order of a symbol's work. Keep out: many symbols at once (shard) and Dagster.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from market_data_pipeline.domain.counters import Counters, Tally
from market_data_pipeline.domain.errors import DataError, FeatureError, PipelineError
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.commit import Change, commit, log_row
from market_data_pipeline.ingest.coverage import Due
from market_data_pipeline.ingest.fetch import Asking, Harvest, HarvestError
from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest, failed_outcome
from market_data_pipeline.ingest.resample import coarser
from market_data_pipeline.store.coverage import write_failed_days
from market_data_pipeline.store.reference import read_splits
from market_data_pipeline.store.series_state import read_states, state_of, write_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date, datetime

    from market_data_pipeline.domain.adjustments import Split
    from market_data_pipeline.ingest.fetch import Family
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.shard import MarketWide
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState


class SymbolRefresh:
    """The refresh of one symbol on one thread's connection.

    Args:
        pipeline: vendor, clock and plan.
        connection: the thread's connection.
        request: symbol, tier and timeframes.
        run_id: the run that the audit rows name.
        full: ask for and compare everything again.
        market: what the run asked for the whole market; who comes first counts what that cost, and tells what it said.
        asked: called as soon as nothing more is asked of the vendor for this symbol, unless the run is to stop.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        connection: StoreConnection,
        request: SymbolRequest,
        run_id: str,
        *,
        market: MarketWide,
        full: bool = False,
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipeline = pipeline
        self.connection = connection
        self.request = request
        self.run_id = run_id
        self.full = full
        self.market = market
        self.extra = market.take_usage()
        self.asked = asked
        self.asset_class = asset_class_of(request.symbol)
        self.timing: Timing = pipeline.timing(self.asset_class)
        self.states: dict[Timeframe, SeriesState] = {}
        self.splits: tuple[Split, ...] = ()
        self.digest = ""

    def outcomes(self) -> Iterator[SeriesOutcome]:
        """Refresh the symbol's series and yield each outcome when it is committed.

        Raises:
            PipelineError: one that stops the whole run, after the series' failures were recorded; or one that the
                symbol fails with before any of its series was begun.
        """
        from market_data_pipeline.domain.adjustments import digest

        with self.connection.symbol_lock(self.request.symbol):
            # Read under the lock: a run that had to wait finds the other one's work and leaves it be.
            self.timing = self.pipeline.timing(self.asset_class)
            self.states = read_states(self.connection, self.request.symbol)
            self.splits = read_splits(self.connection, self.request.symbol)
            if (unreadable := self.market.unreadable.get(self.request.symbol)) is not None:
                raise DataError(f"The vendor's splits of {self.request.symbol} cannot be read: {unreadable}")
            self.digest = digest(self.splits, self.timing.calendar.session_date(self.timing.now))
            asking = Asking(
                self.pipeline, self.request, self.timing, self.states, self.digest, self.market.days, self.full
            )
            families = asking.families(self.connection)
            if all(family.nothing_more for family in families):
                self.asked()
            while families:
                family = families.pop(0)
                try:
                    yield from self._family(family, asking)
                except PipelineError:
                    self.extra = sum((left.answer.usage for left in families), self.extra)
                    raise

    def _family(self, family: Family, asking: Asking) -> Iterator[SeriesOutcome]:
        """Commit a base series and those that are made of it; of a long history ask for part after part."""
        series, resampled, started_at, answer = family
        earlier: dict[Series, SeriesOutcome] = {}
        last = False
        while not last:
            if isinstance(answer, HarvestError):
                self.connection.rollback()
                usage, self.extra = answer.usage + self.extra, Counters()
                failed = self._failed(series, answer.cause, started_at, usage, answer.days)
                yield failed.after(earlier.get(series))
                yield from self._all_failed(resampled, answer.cause, started_at)
                if answer.cause.stops_run:
                    raise answer.cause from None
                return
            last = answer.complete
            for outcome in self._stored(series, resampled, answer, started_at):
                last = last or (outcome.failed and outcome.series == series)
                whole = outcome.after(earlier.get(outcome.series))
                if last:
                    yield whole
                earlier[outcome.series] = whole
            if not last:
                started_at, answer = self.pipeline.clock(), asking.ask(series, answer.days())

    def _stored(
        self, series: Series, resampled: list[Timeframe], answer: Harvest, started_at: datetime
    ) -> Iterator[SeriesOutcome]:
        """Commit an answer to the base and to what is made of it, one by one."""
        tally, self.extra = Tally(answer.usage + self.extra), Counters()
        revision = state_of(self.states, series.timeframe, self.request.tier).revision
        change = self._change(series, answer, tally)
        try:
            yield self._commit(change, started_at)
        except FeatureError as error:
            # The coarser series are made of the bars, which are at hand, and have features of their own.
            yield self._failed(series, error, started_at, tally.counters)
        except PipelineError as error:
            yield self._failed(series, error, started_at, tally.counters)
            yield from self._all_failed(resampled, error, started_at)
            if error.stops_run:
                raise
            return
        for timeframe in resampled:
            yield self._resampled(Series(series.symbol, timeframe), answer, revision)

    def _all_failed(
        self, timeframes: list[Timeframe], error: PipelineError, started_at: datetime
    ) -> Iterator[SeriesOutcome]:
        for timeframe in timeframes:
            yield self._failed(Series(self.request.symbol, timeframe), error, started_at, Counters())

    def _change(self, series: Series, answer: Harvest, tally: Tally) -> Change:
        state = state_of(self.states, series.timeframe, self.request.tier)
        audited = answer.complete and (self.request.audit or self.full)
        return Change(
            series=series,
            tier=self.request.tier,
            asset_class=self.asset_class,
            state=replace(state, reverified_splits=self.digest) if audited else state,
            answer=answer.bars,
            spans=answer.spans,
            coverage=answer.coverage,
            splits=self.splits,
            splits_digest=self.digest,
            due=Due(series.timeframe, self.timing, answer.sessions, answer.days()),
            notice=" ".join(
                filter(None, (self.market.take_notice(), *(answer.doubts if series == answer.base else ())))
            ),
            full=self.full,
            own=self.pipeline.own_features,
            tally=tally,
        )

    def _resampled(self, series: Series, answer: Harvest, revision: int) -> SeriesOutcome:
        """Make a coarser series of its base as it is stored now, and commit it.

        Args:
            series: a resampled series.
            answer: what was fetched for its base just now.
            revision: the base's before that.
        """
        started_at, tally = self.pipeline.clock(), Tally()
        state = state_of(self.states, series.timeframe, self.request.tier)
        base = state_of(self.states, answer.base.timeframe, self.request.tier)
        in_step = state.base_revision == revision and not self.full
        try:
            bars, spans = coarser(
                self.connection, series, state, base, answer, self.timing, in_step=in_step, tally=tally
            )
            change = replace(
                self._change(series, answer, tally),
                answer=bars,
                spans=spans,
                coverage=(),
                base_revision=base.revision,
            )
            return self._commit(change, started_at)
        except PipelineError as error:
            self.connection.rollback()
            if error.stops_run:
                raise
            return self._failed(series, error, started_at, tally.counters)

    def _commit(self, change: Change, started_at: datetime) -> SeriesOutcome:
        outcome, self.states[change.series.timeframe] = commit(
            self.connection, change, run_id=self.run_id, started_at=started_at, clock=self.pipeline.clock
        )
        return outcome

    def fail(self, series: Series, error: PipelineError) -> SeriesOutcome:
        """Record that a series was not even begun, and why."""
        self.connection.rollback()
        usage, self.extra = self.extra, Counters()
        return self._failed(series, error, self.pipeline.clock(), usage)

    def _failed(
        self,
        series: Series,
        error: PipelineError,
        started_at: datetime,
        counters: Counters,
        days: tuple[date, ...] = (),
    ) -> SeriesOutcome:
        """Record that a series failed, keeping all that it held, and return the outcome."""
        state = state_of(self.states, series.timeframe, self.request.tier)
        outcome = failed_outcome(series, self.request.tier, error, state=state, counters=counters)
        if self.connection.closed:
            raise error  # there is nothing to record it with
        now = self.pipeline.clock()
        row = log_row(outcome, self.run_id, started_at, now, due_at=state.next_due_at)
        write_failure(self.connection, series, self.request.tier, row)
        write_failed_days(self.connection, series, days, now, self.run_id)
        self.connection.commit()
        return outcome
