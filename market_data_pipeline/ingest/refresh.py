"""Refresh one symbol: lock it, fetch what its series miss, and commit them one by one.

Add here: the order of a symbol's work. Keep out: many symbols at once (shard) and Dagster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.counters import NOTHING, Counters, Tally
from market_data_pipeline.domain.errors import DataError, FeatureError, PipelineError
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.commit import Change, commit, commit_failure
from market_data_pipeline.ingest.coverage import ExpectedBars
from market_data_pipeline.ingest.features import FeatureBasis
from market_data_pipeline.ingest.fetch import Answer, FetchError, fetch
from market_data_pipeline.ingest.fetch_plan import plan_fetch, reach
from market_data_pipeline.ingest.market_days import answer_from
from market_data_pipeline.ingest.resample import coarser
from market_data_pipeline.ingest.reverify import days_to_reverify, reopened
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.coverage import read_coverage, write_reverified
from market_data_pipeline.store.reference import read_splits
from market_data_pipeline.store.series_state import read_states, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date, datetime

    from market_data_pipeline.ingest.fetch_plan import FetchPlan, Timing
    from market_data_pipeline.ingest.market import Market
    from market_data_pipeline.ingest.outcome import SeriesOutcome, SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage
    from market_data_pipeline.store.series_state import SeriesState


class Pending:
    """What the run has counted and not reported yet: its next series reports it. Threads may share it."""

    def __init__(self, counters: Counters) -> None:
        self._lock = Lock()
        self._counters = counters
        self._warnings: tuple[str, ...] = ()

    def add(self, counters: Counters, warning: str | None = None) -> None:
        """Add to what is to be reported."""
        with self._lock:
            self._counters += counters
            self._warnings += (warning,) if warning else ()

    def take_counters(self) -> Counters:
        """Return, once, what was counted."""
        with self._lock:
            counters, self._counters = self._counters, NOTHING
        return counters

    def take_warnings(self) -> tuple[str, ...]:
        """Return, once, the warnings; the first series that commits reports them."""
        with self._lock:
            warnings, self._warnings = self._warnings, ()
        return warnings


@dataclass(frozen=True, slots=True)
class Run:
    """What the symbols of one run share.

    Attributes:
        pipeline: vendor, database, clock and plan.
        run_id: the run, as the audit log names it.
        market: what was read for all symbols.
        pending: what the run's next series reports for the run.
        full: fetch and compare everything again.
    """

    pipeline: Pipeline
    run_id: str
    market: Market
    pending: Pending
    full: bool = False


@dataclass(frozen=True, slots=True)
class _Symbol:
    """A locked symbol; `states` follows its commits."""

    run: Run
    connection: StoreConnection
    request: SymbolRequest
    timing: Timing
    basis: FeatureBasis
    states: dict[Timeframe, SeriesState]

    def state(self, timeframe: Timeframe) -> SeriesState:
        return state_of(self.states, timeframe, self.request.tier)


class _Family(NamedTuple):
    """A fetched series, the timeframes to make of it, and the first answer to its fetch plan."""

    series: Series
    resampled: list[Timeframe]
    started_at: datetime
    answer: Answer | FetchError

    @property
    def is_fetched(self) -> bool:
        """True when no more is to be fetched for it, nor is the run to stop."""
        if isinstance(self.answer, FetchError):
            return not self.answer.cause.stops_run
        return self.answer.is_last


def refresh_symbol(
    run: Run, connection: StoreConnection, request: SymbolRequest, *, on_fetched: Callable[[], None] = lambda: None
) -> Iterator[SeriesOutcome]:
    """Refresh the symbol's series and yield each outcome once it is committed.

    Args:
        run: what the run's symbols share.
        connection: the thread's own.
        request: symbol, tier and timeframes.
        on_fetched: called as soon as nothing more is fetched for this symbol, unless the run is to stop.

    Raises:
        PipelineError: one that stops the whole run, after the series' failures were recorded; or one that the symbol
            fails with before any of its series was begun.
    """
    with connection.symbol_lock(request.symbol):
        symbol = _read_symbol(run, connection, request)
        families = _fetch_families(symbol)
        if all(family.is_fetched for family in families):
            on_fetched()
        while families:
            family = families.pop(0)
            try:
                yield from _commit_family(symbol, family)
            except PipelineError:
                run.pending.add(sum((left.answer.counters for left in families), NOTHING))
                raise


def fail_series(
    run: Run,
    connection: StoreConnection,
    request: SymbolRequest,
    timeframes: Iterable[Timeframe],
    error: PipelineError,
) -> Iterator[SeriesOutcome]:
    """Record that series of a symbol were not even begun, and why; yield their outcomes."""
    connection.rollback()
    states = read_states(connection, request.symbol)
    for timeframe in timeframes:
        yield commit_failure(
            connection,
            Series(request.symbol, timeframe),
            error,
            state=state_of(states, timeframe, request.tier),
            tier=request.tier,
            run_id=run.run_id,
            started_at=run.pipeline.clock(),
            clock=run.pipeline.clock,
            counters=run.pending.take_counters(),
        )


def _read_symbol(run: Run, connection: StoreConnection, request: SymbolRequest) -> _Symbol:
    """Return the symbol as it is under its lock: a run that had to wait finds the other one's work."""
    from market_data_pipeline.domain.adjustments import digest

    if (unreadable := run.market.unreadable.get(request.symbol)) is not None:
        raise DataError(f"The vendor's splits of {request.symbol} cannot be read: {unreadable}")
    asset_class = asset_class_of(request.symbol)
    timing = run.pipeline.timing(asset_class)
    splits = read_splits(connection, request.symbol)
    today = timing.calendar.session_date(timing.now)
    basis = FeatureBasis(asset_class, splits, digest(splits, today), run.pipeline.own_features)
    return _Symbol(run, connection, request, timing, basis, read_states(connection, request.symbol))


def _fetch_families(symbol: _Symbol) -> list[_Family]:
    """Fetch the first part of each fetched series before any of it is stored; nothing after what stops the run.

    Raises:
        PipelineError: the database refused before anything was requested.
    """
    families: list[_Family] = []
    for base in BASE_TIMEFRAMES:
        timeframes = [each for each in symbol.request.timeframes if each.base is base]
        if not timeframes:
            continue
        series, started_at = Series(symbol.request.symbol, base), symbol.run.pipeline.clock()
        answer: Answer | FetchError
        try:
            answer = _fetch(symbol, _plan(symbol, series))
        except PipelineError as error:  # of the database
            if not families:
                raise
            answer = FetchError(error)
        resampled = [timeframe for timeframe in Timeframe if timeframe in timeframes and timeframe is not base]
        families.append(_Family(series, resampled, started_at, answer))
        if isinstance(answer, FetchError) and answer.cause.stops_run:
            break
    return families


def _plan(symbol: _Symbol, series: Series) -> FetchPlan:
    run, timing, state = symbol.run, symbol.timing, symbol.state(series.timeframe)
    within = reach(timing, run.pipeline.history_days, run.pipeline.plan.history)
    coverage: Mapping[date, Coverage] = read_coverage(symbol.connection, series)
    if symbol.request.reverify:
        splits_changed = state.reverified_splits not in (None, symbol.basis.splits_digest)
        days = days_to_reverify(within.sessions, coverage, series.timeframe, timing.now, splits_changed=splits_changed)
        write_reverified(symbol.connection, series, days, timing.now)
        coverage = reopened(coverage, days, within.sessions)
    symbol.connection.commit()  # no transaction stays open while a request is sent
    return plan_fetch(series, within, coverage, timing, last_ts=state.last_ts, full=run.full)


def _fetch(
    symbol: _Symbol, plan: FetchPlan, part: int = 0, known: Mapping[date, Coverage] | None = None
) -> Answer | FetchError:
    run = symbol.run
    if part == 0 and (answer := answer_from(plan, run.market.days)) is not None:
        return answer
    try:
        return fetch(run.pipeline.client, plan, priority=PRIORITIES[symbol.request.tier], part=part, known=known)
    except FetchError as error:
        return error


def _commit_family(symbol: _Symbol, family: _Family) -> Iterator[SeriesOutcome]:
    """Commit a fetched series and those made of it; of a long history fetch and commit part after part."""
    series, resampled, started_at, answer = family
    earlier: dict[Series, SeriesOutcome] = {}
    last = False
    while not last:
        if isinstance(answer, FetchError):
            counters = answer.counters + symbol.run.pending.take_counters()
            failed = _failed(symbol, series, answer.cause, started_at, counters, answer.days)
            yield failed.after(earlier.get(series))
            yield from _all_failed(symbol, resampled, answer.cause, started_at)
            if answer.cause.stops_run:
                raise answer.cause from None
            return
        last = answer.is_last
        for outcome in _commit_answer(symbol, answer, resampled, started_at):
            last = last or (outcome.failed and outcome.series == series)
            total = outcome.after(earlier.get(outcome.series))
            if last:
                yield total
            earlier[outcome.series] = total
        if not last:
            started_at = symbol.run.pipeline.clock()
            answer = _fetch(symbol, answer.plan, answer.part + 1, answer.known)


def _commit_answer(
    symbol: _Symbol, answer: Answer, resampled: list[Timeframe], started_at: datetime
) -> Iterator[SeriesOutcome]:
    """Commit an answer to its series and to those made of it, one by one."""
    series = answer.plan.series
    revision = symbol.state(series.timeframe).revision
    tally = Tally(answer.counters + symbol.run.pending.take_counters())
    try:
        yield _commit(symbol, _change(symbol, series, answer, tally), started_at)
    except FeatureError as error:
        # The coarser series are made of the bars alone, which have arrived, and have features of their own.
        yield _failed(symbol, series, error, started_at, tally.counters)
    except PipelineError as error:
        yield _failed(symbol, series, error, started_at, tally.counters)
        yield from _all_failed(symbol, resampled, error, started_at)
        if error.stops_run:
            raise
        return
    for timeframe in resampled:
        yield _commit_resampled(symbol, Series(series.symbol, timeframe), answer, revision)


def _commit_resampled(symbol: _Symbol, series: Series, answer: Answer, revision: int) -> SeriesOutcome:
    """Make a coarser series of its base as it is stored now, and commit it.

    Args:
        symbol: the symbol.
        series: a resampled series.
        answer: what was just fetched for its base.
        revision: the base's revision before that.
    """
    started_at, tally = symbol.run.pipeline.clock(), Tally()
    state, base = symbol.state(series.timeframe), symbol.state(answer.plan.series.timeframe)
    in_step = state.base_revision == revision and not symbol.run.full
    try:
        bars, spans = coarser(symbol.connection, series, state, base, answer, in_step=in_step, tally=tally)
        change = _change(symbol, series, answer, tally)
        change = replace(change, bars=bars, spans=spans, coverage=(), base_revision=base.revision)
        return _commit(symbol, change, started_at)
    except PipelineError as error:
        if error.stops_run:
            symbol.connection.rollback()
            raise
        return _failed(symbol, series, error, started_at, tally.counters)


def _change(symbol: _Symbol, series: Series, answer: Answer, tally: Tally) -> Change:
    run, state = symbol.run, symbol.state(series.timeframe)
    if answer.is_last and (symbol.request.reverify or run.full):
        state = replace(state, reverified_splits=symbol.basis.splits_digest)
    return Change(
        series=series,
        tier=symbol.request.tier,
        state=state,
        bars=answer.bars,
        spans=answer.spans,
        coverage=answer.coverage,
        basis=symbol.basis,
        expected=ExpectedBars(series.timeframe, symbol.timing, answer.plan.sessions, answer.known),
        warnings=(*run.pending.take_warnings(), *(answer.warnings if series == answer.plan.series else ())),
        full=run.full,
        tally=tally,
    )


def _commit(symbol: _Symbol, change: Change, started_at: datetime) -> SeriesOutcome:
    run = symbol.run
    outcome, state = commit(
        symbol.connection, change, run_id=run.run_id, started_at=started_at, clock=run.pipeline.clock
    )
    symbol.states[change.series.timeframe] = state
    return outcome


def _failed(
    symbol: _Symbol,
    series: Series,
    error: PipelineError,
    started_at: datetime,
    counters: Counters = NOTHING,
    days: tuple[date, ...] = (),
) -> SeriesOutcome:
    run = symbol.run
    return commit_failure(
        symbol.connection,
        series,
        error,
        state=symbol.state(series.timeframe),
        tier=symbol.request.tier,
        run_id=run.run_id,
        started_at=started_at,
        clock=run.pipeline.clock,
        counters=counters,
        days=days,
    )


def _all_failed(
    symbol: _Symbol, timeframes: list[Timeframe], error: PipelineError, started_at: datetime
) -> Iterator[SeriesOutcome]:
    for timeframe in timeframes:
        yield _failed(symbol, Series(symbol.request.symbol, timeframe), error, started_at)
