"""Refresh one symbol: lock it, fetch what its series are missing, and commit them one by one.

Add here: the order of a symbol's work. Keep out: many symbols at once (shard) and Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.counters import NOTHING, Tally
from market_data_pipeline.domain.errors import FeatureError, PipelineError
from market_data_pipeline.domain.life import Life
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.bulk_load import with_known_vwap
from market_data_pipeline.ingest.commit import Change, CommitContext, commit, commit_failure, stored_bars
from market_data_pipeline.ingest.doubt import weighed, within
from market_data_pipeline.ingest.features import FeatureBasis
from market_data_pipeline.ingest.fetch import Answer, FailedFetch, fetch
from market_data_pipeline.ingest.fetch_plan import plan_fetch, reach
from market_data_pipeline.ingest.life import answer_without_ticker, expected_bars, fetched_until
from market_data_pipeline.ingest.own_days import own_days
from market_data_pipeline.ingest.resample import coarser
from market_data_pipeline.ingest.reverify import days_to_reverify, reopened
from market_data_pipeline.ingest.splits import symbol_splits
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.coverage import read_coverage, write_reverified
from market_data_pipeline.store.listings import read_listing
from market_data_pipeline.store.reference import read_splits
from market_data_pipeline.store.series_state import read_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date

    from market_data_pipeline.ingest.bulk_load import BulkLoad
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.market import Market
    from market_data_pipeline.ingest.outcome import Pending, SeriesOutcome, SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.polygon.client import BarSource
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Run:
    """What the symbols of one run share.

    Attributes:
        pipeline: vendor, database, clock and plan.
        run_id: the run, as the audit log names it.
        market: what was read for all symbols.
        pending: what the run's next series reports for the run.
        full: fetch and compare everything again.
        bulk: the vendor's flat files, where the run reads them.
    """

    pipeline: Pipeline
    run_id: str
    market: Market
    pending: Pending
    full: bool = False
    bulk: BulkLoad | None = None

    def bars_of(self, request: SymbolRequest) -> BarSource:
        """Return where a symbol's bars come from."""
        client = self.pipeline.client
        return client if self.bulk is None else self.bulk.source_for(request.symbol, request.tier)


class _Fetched(NamedTuple):
    """A fetched series, the timeframes to resample from it, the first answer to its plan, and the answers to come."""

    series: Series
    resampled: list[Timeframe]
    first: Answer | FailedFetch
    rest: Iterator[Answer | FailedFetch]

    @property
    def is_done(self) -> bool:
        """True when nothing more is fetched for it and the run goes on."""
        return not self.first.cause.stops_run if isinstance(self.first, FailedFetch) else self.first.is_last


def refresh_symbol(
    run: Run, connection: StoreConnection, request: SymbolRequest, *, on_fetched: Callable[[], None] = lambda: None
) -> Iterator[SeriesOutcome]:
    """Refresh the symbol's series and yield each outcome once it is committed.

    Args:
        run: what the run's symbols share.
        connection: this thread's own.
        request: symbol, tier and timeframes.
        on_fetched: called as soon as nothing more is fetched for this symbol, unless the run is about to stop.

    Raises:
        PipelineError: one that stops the whole run, after the series' failures were recorded; or one that fails the
            symbol before any of its series was started.
    """
    from market_data_pipeline.domain.adjustments import digest

    pipeline, symbol = run.pipeline, request.symbol
    with connection.symbol_lock(symbol):
        # Read under the lock, so that a run that had to wait finds the other one's work.
        timing = pipeline.timing(asset_class_of(symbol))
        today = timing.calendar.session_date(timing.now)
        context = CommitContext(connection, request, run.run_id, pipeline.clock, read_states(connection, symbol))
        fetched = _fetch_first(run, context, timing, digest(read_splits(connection, symbol), today))
        if all(each.is_done for each in fetched):
            on_fetched()
        try:
            basis = _basis(run, connection, symbol, fetched, timing)
            while fetched:
                yield from _commit_fetched(run, context, fetched.pop(0), basis)
        except PipelineError:
            run.pending.add(sum((left.first.counters for left in fetched), NOTHING))
            raise


def _basis(
    run: Run, connection: StoreConnection, symbol: str, fetched: Iterable[_Fetched], timing: Timing
) -> FeatureBasis:
    """Return what the symbol's features depend on besides its bars; the fetched ones help to tell its splits."""
    from market_data_pipeline.domain.adjustments import digest

    bars = {each.series.timeframe: each.first.bars for each in fetched if isinstance(each.first, Answer)}
    splits, doubts = symbol_splits(connection, symbol, run.market.unreadable_splits, bars, timing.now)
    today = timing.calendar.session_date(timing.now)
    return FeatureBasis(asset_class_of(symbol), splits, digest(splits, today), run.pipeline.own_features, doubts)


def fail_series(
    run: Run, connection: StoreConnection, request: SymbolRequest, timeframes: Iterable[Timeframe], error: PipelineError
) -> Iterator[SeriesOutcome]:
    """Record why series of a symbol failed before they were started; yield their outcomes."""
    connection.rollback()
    clock, states = run.pipeline.clock, read_states(connection, request.symbol)
    context = CommitContext(connection, request, run.run_id, clock, states)
    for timeframe in timeframes:
        yield commit_failure(context, timeframe, error, clock(), run.pending.take_counters())


def _fetch_first(run: Run, context: CommitContext, timing: Timing, splits_digest: str) -> list[_Fetched]:
    """Fetch the first part of each fetched series, before any is stored; a failure that stops the run is the last.

    Raises:
        PipelineError: the database refused before anything was requested.
    """
    pipeline, request, symbol = run.pipeline, context.request, context.request.symbol
    fetched: list[_Fetched] = []
    for base in BASE_TIMEFRAMES:
        series, state = Series(symbol, base), context.state(base)
        timeframes = [each for each in Timeframe if each.base is base and each in request.timeframes]
        if not timeframes:
            continue
        answers: Iterator[Answer | FailedFetch]
        try:
            coverage: Mapping[date, Coverage] = read_coverage(context.connection, series)
            identity = run.market.identities.get(symbol)
            ended = None if identity is None else identity.ended
            reached = reach(timing, pipeline.history_days, pipeline.plan.history, coverage, ended=ended)
            own = own_days(symbol, identity, reached, coverage, timing.now)
            within, coverage = own.within, own.coverage
            is_gone = state.life is Life.UNKNOWN and not run.full
            if request.reverify and not is_gone:
                changed = state.reverified_splits not in (None, splits_digest)
                days = days_to_reverify(within.sessions, coverage, base, timing.now, splits_changed=changed)
                write_reverified(context.connection, series, days, timing.now)
                coverage = reopened(coverage, days, within.sessions)
            if run.bulk is not None and (newer := run.bulk.replaced_days(base, coverage)):
                coverage = reopened(coverage, newer, within.sessions)
            asks_again = state.life.expects_bars or (request.reverify and not is_gone) or run.full or bool(own.replaced)
            asks_again = asks_again or ended is not None  # its days are few, and none of them is of today
            until = None if asks_again else fetched_until(state, read_listing(context.connection, symbol), timing)
            context.connection.commit()  # no transaction stays open while a request is sent
            plan = plan_fetch(
                series, within, coverage, timing, last_ts=state.last_ts, full=run.full, until=until, own=own
            )
            priority = PRIORITIES[request.tier]
            answers = fetch(run.bars_of(request), plan, run.market.days, priority=priority, clock=pipeline.clock)
        except PipelineError as error:
            if not fetched:
                raise
            answers = iter((FailedFetch(error, pipeline.clock()),))
        first = next(answers)
        fetched.append(_Fetched(series, [each for each in timeframes if each is not base], first, answers))
        if isinstance(first, FailedFetch) and first.cause.stops_run:
            break
    return fetched


def _commit_fetched(
    run: Run, context: CommitContext, fetched: _Fetched, basis: FeatureBasis
) -> Iterator[SeriesOutcome]:
    """Commit a fetched series and those resampled from it; a long history is fetched and committed part by part."""
    earlier: dict[Series, SeriesOutcome] = {}
    for answer in chain((fetched.first,), fetched.rest):
        if isinstance(answer, FailedFetch):
            gone, cost = answer_without_ticker(run.pipeline, context, answer)
            if gone is not None:
                for outcome in _commit_answer(run, context, gone, fetched.resampled, basis):
                    yield outcome.after(earlier.get(outcome.series))
                return
            counters = answer.counters + cost + run.pending.take_counters()
            base = fetched.series.timeframe
            failed = commit_failure(
                context, base, answer.cause, answer.started_at, counters, answer.days, answer.coverage
            )
            yield failed.after(earlier.get(fetched.series))
            for timeframe in fetched.resampled:
                yield commit_failure(context, timeframe, answer.cause, answer.started_at)
            if answer.cause.stops_run:
                raise answer.cause
            return
        last = answer.is_last
        for outcome in _commit_answer(run, context, answer, fetched.resampled, basis):
            last = last or (outcome.failed and outcome.series == fetched.series)
            earlier[outcome.series] = total = outcome.after(earlier.get(outcome.series))
            if last:
                yield total
        if last:
            return


def _commit_answer(
    run: Run, context: CommitContext, answer: Answer, resampled: list[Timeframe], basis: FeatureBasis
) -> Iterator[SeriesOutcome]:
    """Commit an answer to its series and to those resampled from it, one by one."""
    plan, base = answer.plan, answer.plan.series.timeframe
    revision, last_ts = context.state(base).revision, context.state(base).last_ts
    spent, warnings = answer.counters + run.pending.take_counters(), run.pending.take_warnings()
    tally = Tally(spent)
    try:
        with tally.storing():
            stored = stored_bars(context.connection, plan.series, answer.spans, last_ts)
        if run.bulk is not None:
            answer = replace(answer, bars=with_known_vwap(answer.bars, stored))
        answer = weighed(answer, stored)
        expected, cost = expected_bars(run.pipeline, context, answer, run.market.announced)
        spent, tally.counters = spent + cost, tally.counters + cost
        change = Change(
            series=plan.series,
            started_at=answer.started_at,
            bars=answer.bars,
            spans=answer.spans,
            coverage=answer.coverage,
            basis=basis,
            expected=expected,
            warnings=(*warnings, *answer.warnings),
            full=run.full,
            reverified=answer.is_last and (context.request.reverify or run.full),
            tally=tally,
            stored=within(stored, answer.spans),
            outside=answer.outside,
        )
        yield commit(context, change)
    except PipelineError as error:
        if context.connection.closed:  # it cannot be recorded now; the next series that can be records the requests
            run.pending.add(spent)
            raise
        yield commit_failure(context, base, error, answer.started_at, tally.counters)
        # The coarser series need only the bars, which have arrived, and have features of their own.
        if not isinstance(error, FeatureError):
            for timeframe in resampled:
                yield commit_failure(context, timeframe, error, answer.started_at)
            if error.stops_run:
                raise
            return
    for timeframe in resampled:
        series, started_at, tally = Series(plan.series.symbol, timeframe), context.clock(), Tally()
        state, base_state = context.state(timeframe), context.state(base)
        in_step = state.base_revision == revision and not run.full
        try:
            bars, spans = coarser(context.connection, series, state, base_state, answer, in_step=in_step, tally=tally)
            made = replace(
                change,
                series=series,
                started_at=started_at,
                bars=bars,
                spans=spans,
                coverage=(),
                stored=None,
                outside=None,
                expected=replace(change.expected, timeframe=timeframe, base_last_ts=base_state.last_ts),
                warnings=run.pending.take_warnings(),
                base_revision=base_state.revision,
                tally=tally,
            )
            yield commit(context, made)
        except PipelineError as error:
            if error.stops_run:
                raise
            yield commit_failure(context, timeframe, error, started_at, tally.counters)
