"""Commit one series: bars, features, coverage, state and audit log row, in one transaction.

Add here: what belongs in that one transaction. Keep out: fetching (fetch) and the order of a symbol's series (refresh).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import from_us
from market_data_pipeline.domain.counters import NOTHING, Counters, Tally
from market_data_pipeline.domain.errors import TransactionConflictError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Series
from market_data_pipeline.ingest.compare import changes_of, compare
from market_data_pipeline.ingest.doubt import within
from market_data_pipeline.ingest.features import store_records
from market_data_pipeline.ingest.jumps import jump_doubts
from market_data_pipeline.ingest.outcome import SeriesOutcome, failed_outcome
from market_data_pipeline.store.audit_log import LogRow, append_log
from market_data_pipeline.store.bars import extent, read_bars, supersede_bars
from market_data_pipeline.store.coverage import write_coverage, write_failed_days
from market_data_pipeline.store.series_state import state_of, write_failure, write_state
from market_data_pipeline.store.stray_bars import write_stray_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.errors import PipelineError
    from market_data_pipeline.domain.intervals import Intervals
    from market_data_pipeline.domain.series import Timeframe
    from market_data_pipeline.ingest.compare import Delta
    from market_data_pipeline.ingest.coverage import ExpectedBars
    from market_data_pipeline.ingest.features import FeatureBasis
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage
    from market_data_pipeline.store.series_state import SeriesState

_ATTEMPTS: Final = 3  # per transaction; a conflict with another of our own passes in milliseconds


@dataclass(frozen=True, slots=True)
class CommitContext:
    """What the commits of one symbol share.

    Attributes:
        connection: this thread's own.
        request: symbol, tier and timeframes.
        run_id: the run, as the audit log names it.
        clock: returns the current instant, aware UTC.
        states: the states of the symbol's series; each commit replaces the one it changes.
    """

    connection: StoreConnection
    request: SymbolRequest
    run_id: str
    clock: Callable[[], datetime]
    states: dict[Timeframe, SeriesState]

    def state(self, timeframe: Timeframe) -> SeriesState:
        """Return the state of one of the symbol's series."""
        return state_of(self.states, timeframe, self.request.tier)


@dataclass(frozen=True, slots=True)
class Change:
    """Everything that one execution of a series brings to its commit.

    Attributes:
        series: what is stored.
        started_at: when the execution began, aware UTC.
        bars: a bar frame that the stored bars must equal within `spans`.
        spans: half-open UTC intervals of whole bars, disjoint and ascending; empty when nothing was fetched.
        coverage: the days' coverage, stored with the bars (fetched series only).
        basis: what the features depend on besides the bars.
        expected: which bars the series should hold.
        warnings: of the run and of the answer, reported with this series.
        base_revision: the revision of the fetched series that a resampled one is made from; 0 for a fetched series.
        full: compute and compare everything again.
        reverified: with this change, all days due for it have been reverified under the splits in force.
        tally: what the execution has counted so far.
        stored: a bar frame of what is stored within `spans`, where the caller has read it.
        outside: a bar frame of what the vendor sent although it lies in no session; None for nothing.
    """

    series: Series
    started_at: datetime
    bars: pd.DataFrame
    spans: Intervals
    coverage: tuple[Coverage, ...]
    basis: FeatureBasis
    expected: ExpectedBars
    warnings: tuple[str, ...] = ()
    base_revision: int = 0
    full: bool = False
    reverified: bool = False
    tally: Tally = field(default_factory=Tally)
    stored: pd.DataFrame | None = None
    outside: pd.DataFrame | None = None


def commit(context: CommitContext, change: Change) -> SeriesOutcome:
    """Store a change and return its outcome.

    A transaction that PostgreSQL rolled back because of a conflict is retried, up to twice, with the same bars.

    Raises:
        PipelineError: the database refused or was lost, or a formula failed. Nothing is stored; the caller rolls back.
    """
    for _ in range(1, _ATTEMPTS):
        try:
            return _commit(context, change)
        except TransactionConflictError:
            context.connection.rollback()
    return _commit(context, change)


def commit_failure(
    context: CommitContext,
    timeframe: Timeframe,
    error: PipelineError,
    started_at: datetime,
    counters: Counters = NOTHING,
    days: tuple[date, ...] = (),
    coverage: tuple[Coverage, ...] = (),
) -> SeriesOutcome:
    """Roll back, record that a series failed, and return the outcome; the data it already has stays.

    Args:
        context: what the symbol's commits share.
        timeframe: which of its series failed.
        error: why it failed.
        started_at: when the execution began, aware UTC.
        counters: what was counted by then.
        days: session days whose fetch failed.
        coverage: of the days that were refused.

    Raises:
        PipelineError: `error` itself when the connection is lost, or why the failure cannot be recorded.
    """
    connection, tier, state = context.connection, context.request.tier, context.state(timeframe)
    if connection.closed:
        raise error
    connection.rollback()
    series, now = Series(context.request.symbol, timeframe), context.clock()
    outcome = failed_outcome(series, tier, error, state=state, counters=counters)
    write_failure(connection, series, tier, log_row(outcome, state, context.run_id, started_at, now))
    write_failed_days(connection, series, days, now, context.run_id)
    write_coverage(connection, series, coverage, context.run_id)
    connection.commit()
    return outcome


def _commit(context: CommitContext, change: Change) -> SeriesOutcome:
    from market_data_pipeline.domain.features.definitions import FEATURE_VERSION

    connection, series, expected, tally = context.connection, change.series, change.expected, change.tally
    state, basis, now = context.state(series.timeframe), change.basis, context.clock()
    stored = change.stored
    if stored is None:
        with tally.storing():
            stored = stored_bars(connection, series, change.spans, state.last_ts)
    delta = compare(stored, change.bars)
    changes = changes_of(stored, change.bars, delta, state.last_ts)
    with tally.storing():
        replaced = [from_us(us) for us in ts_us(stored)[delta.replaced]]
        supersede_bars(connection, series, replaced, now, context.run_id)
    features = store_records(
        connection,
        series,
        state,
        change.bars,
        basis,
        new=change.bars[delta.inserted | delta.updated],
        changed_from=None if delta.first_us is None else from_us(delta.first_us),
        contiguous=len(change.spans) == 1,
        full=change.full,
        now=now,
        tally=tally,
    )
    doubts = (*basis.doubts, *jump_doubts(series, features.bars, delta.first_us))
    written = Counters(
        rows_fetched=len(change.bars),
        rows_inserted=delta.rows_inserted,
        rows_updated=delta.rows_updated,
        features_written=features.rows,
    )
    held = _with_extent(connection, state, change.bars, delta, series)
    quiet_slots = expected.quiet_slots(features.bars) if len(features.bars) else state.quiet_slots
    lived = expected.life_of(held.last_ts)
    new_state = replace(
        held,
        tier=str(context.request.tier),
        feature_count=held.bar_count,
        feature_version=FEATURE_VERSION,
        splits_digest=basis.splits_digest,
        reverified_splits=basis.splits_digest if change.reverified else state.reverified_splits,
        own_features=features.own_features,
        revision=state.revision + (delta.first_us is not None),
        base_revision=change.base_revision,
        quiet_slots=quiet_slots,
        verified_at=expected.now,
        next_due_at=expected.next_due(held.last_ts, quiet_slots),
        life=lived.life,
        life_since=lived.since,
        features_computed_at=now if features.rows else state.features_computed_at,
        settled_until=expected.settled_until(),
    )
    changed = hull(series, [us for us in (delta.first_us, delta.last_us) if us is not None], features.changed_us)
    outcome = SeriesOutcome(
        series,
        context.request.tier,
        "ok" if changed else "unchanged",
        counters=tally.counters + written,
        rows_filled=changes.rows_filled,
        changes=changes.sample,
        bar_count=new_state.bar_count,
        feature_count=new_state.feature_count,
        first_ts=new_state.first_ts,
        last_ts=new_state.last_ts,
        expected_last_ts=expected.last_due_ts(),
        verified_at=new_state.verified_at,
        next_due_at=new_state.next_due_at,
        warning=" ".join((*change.warnings, *doubts, *basis.own.problems, *features.problems)) or None,
        own_features=basis.own.declarations,
        life=lived.life,
    )
    with tally.storing(), connection.together():
        write_coverage(connection, series, change.coverage, context.run_id)
        write_stray_bars(connection, series, change.outside, now)
        write_state(connection, series, new_state)
        row = log_row(outcome, state, context.run_id, change.started_at, context.clock(), changed)
        append_log(connection, series, row)
        connection.commit()
    context.states[series.timeframe] = new_state
    return replace(outcome, counters=tally.counters + written)


def stored_bars(
    connection: StoreConnection, series: Series, spans: Intervals, last_ts: datetime | None
) -> pd.DataFrame:
    """Return the stored bars within the spans; they are queried only when some can exist there."""
    if not spans or last_ts is None or spans[0].start > last_ts:
        return bar_frames.empty()
    return within(read_bars(connection, series, spans[0].start, spans[-1].end), spans)


def _with_extent(
    connection: StoreConnection, state: SeriesState, bars: pd.DataFrame, delta: Delta, series: Series
) -> SeriesState:
    """Return the state with the extent of the bars after the change."""
    if delta.rows_removed:
        return replace(state, **extent(connection, series))
    if not delta.rows_inserted:
        return state
    added = ts_us(bars)[delta.inserted]
    first, last = from_us(added[0]), from_us(added[-1])
    return replace(
        state,
        first_ts=min(first, state.first_ts or first),
        last_ts=max(last, state.last_ts or last),
        bar_count=state.bar_count + delta.rows_inserted,
    )


def hull(series: Series, *starts_us: Sequence[int]) -> Interval | None:
    """Return the interval from the first of these bars' starts to the end of the last one; None for none."""
    touched = [us for some in starts_us for us in some]
    return Interval(from_us(min(touched)), from_us(max(touched)) + series.timeframe.span) if touched else None


def log_row(
    outcome: SeriesOutcome,
    before: SeriesState,
    run_id: str,
    started_at: datetime,
    finished_at: datetime,
    changed: Interval | None = None,
) -> LogRow:
    """Return the `ingest_log` row for an outcome; `before` is the series' state before the execution."""
    return LogRow(
        run_id=run_id,
        started_at=started_at,
        finished_at=finished_at,
        status=outcome.status,
        counters=outcome.counters,
        error_class=outcome.error_class,
        error=outcome.error,
        warning=outcome.warning,
        due_at=before.next_due_at if before.life.expects_bars else finished_at,  # nothing is due of one that is not
        rpo=TIER_OBJECTIVES[outcome.tier].rpo,
        changed_from=changed.start if changed else None,
        changed_until=changed.end if changed else None,
    )
