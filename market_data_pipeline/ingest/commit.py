"""The audit row of an execution: what `ingest_log` keeps of its outcome.

Keep out: writing it, which belongs to the transaction of the data it speaks of (commit).

Store one series: bars, features, coverage, state and audit row, in one transaction.

Add here: what belongs to that one transaction. Keep out: asking the vendor (harvest) and walking over a symbol's
series (refresh).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.counters import Counters, Tally
from market_data_pipeline.domain.errors import TransactionConflictError
from market_data_pipeline.domain.features.own import NO_OWN_FEATURES, OwnFeatures
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import AssetClass, Series, Tier
from market_data_pipeline.ingest.compare import Delta, changes_of, compare
from market_data_pipeline.ingest.coverage import Due
from market_data_pipeline.ingest.features import (
    BEGINNING,
    Recomputed,
    bars_to_compute,
    instant,
    is_outdated,
    own_features_after,
    recompute_features,
)
from market_data_pipeline.ingest.outcome import SeriesOutcome
from market_data_pipeline.store.audit_log import LogRow, append_log
from market_data_pipeline.store.bars import append_bars, extent, read_bars, supersede_bars
from market_data_pipeline.store.coverage import write_coverage
from market_data_pipeline.store.series_state import SeriesState, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import numpy as np
    import pandas as pd

    from market_data_pipeline.domain.adjustments import Split
    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage


def log_row(
    outcome: SeriesOutcome,
    run_id: str,
    started_at: datetime,
    finished_at: datetime,
    *,
    due_at: datetime | None,
) -> LogRow:
    """Return the audit row of an outcome; `due_at` is when the series' next bar fell, or falls, due before it."""
    return LogRow(
        run_id=run_id,
        started_at=started_at,
        finished_at=finished_at,
        status=outcome.status,
        counters=outcome.counters,
        error_class=outcome.error_class,
        error=outcome.error,
        warning=outcome.warning,
        due_at=due_at,
        rpo=TIER_OBJECTIVES[outcome.tier].rpo,
    )


_ATTEMPTS: Final = 3  # at one transaction; a conflict with another of our own is over in milliseconds


@dataclass(frozen=True, slots=True)
class Change:
    """Everything that one execution of a series brings to its commit.

    Attributes:
        series: what is stored.
        tier: its tier.
        asset_class: its calendar and its bars per year.
        state: what was held before.
        answer: the bars that the stored ones have to equal within `spans`.
        spans: disjoint, ascending stretches of whole bars; none when nothing was asked.
        coverage: day rows to write with the bars (fetched series only).
        splits: the symbol's known splits.
        splits_digest: which of them are in force.
        due: tells when the next bar falls due.
        usage: what the answer cost.
        notice: warnings of the whole run and of the answer, told with this series.
        full: compute and compare everything again.
        own: the project's own features.
    """

    series: Series
    tier: Tier
    asset_class: AssetClass
    state: SeriesState
    answer: pd.DataFrame
    spans: tuple[Interval, ...]
    coverage: tuple[Coverage, ...]
    splits: tuple[Split, ...]
    splits_digest: str
    due: Due
    notice: str | None = None
    base_revision: int = 0
    full: bool = False
    own: OwnFeatures = NO_OWN_FEATURES
    tally: Tally = field(default_factory=Tally)


def commit(
    connection: StoreConnection, change: Change, *, run_id: str, started_at: datetime, clock: Callable[[], datetime]
) -> tuple[SeriesOutcome, SeriesState]:
    """Store a change and return its outcome and the new state; on an error nothing of it is stored.

    A transaction that PostgreSQL rolls back for another one's sake is done again, up to twice: the bars are at hand.

    Raises:
        PipelineError: the database refused or was lost, or a formula broke. The transaction is rolled back.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _commit(connection, change, run_id, started_at, clock)
        except TransactionConflictError:
            connection.rollback()
            if attempt == _ATTEMPTS:
                raise
        except BaseException:
            connection.rollback()
            raise
    raise AssertionError("the last attempt returns or raises")  # pragma: no cover


def _commit(
    connection: StoreConnection, change: Change, run_id: str, started_at: datetime, clock: Callable[[], datetime]
) -> tuple[SeriesOutcome, SeriesState]:
    from market_data_pipeline.domain.features.definitions import FEATURE_VERSION

    series, state, tally, now = change.series, change.state, change.tally, clock()
    with tally.storing():
        stored = _stored(connection, change)
    delta = compare(stored, change.answer)
    changed = changes_of(stored, change.answer, delta, state.last_ts)
    with tally.storing():
        supersede_bars(connection, series, [instant(us) for us in ts_us(stored)[delta.replaced]], now, run_id)
        append_bars(connection, series, change.answer[delta.inserted | delta.updated], now)
    done, recent = _features(connection, change, delta, now)
    written = Counters(
        rows_fetched=len(change.answer),
        rows_inserted=delta.rows_inserted,
        rows_updated=delta.rows_updated,
        features_written=done.rows if done else 0,
    )
    held = _held(connection, state, change.answer, delta, series)
    quiet_slots = change.due.quiet_slots(recent) if len(recent) else state.quiet_slots
    new_state = replace(
        held,
        tier=str(change.tier),
        feature_count=held.bar_count,
        feature_version=FEATURE_VERSION,
        splits_digest=change.splits_digest,
        own_features=own_features_after(state, change.own, done) if done else state.own_features,
        revision=state.revision + (delta.first_us is not None),
        base_revision=change.base_revision,
        quiet_slots=quiet_slots,
        verified_at=change.due.now,
        next_due_at=change.due.next_due(held.last_ts, quiet_slots),
        features_computed_at=now if written.features_written else state.features_computed_at,
        settled_until=change.due.settled_until(),
    )
    outcome = SeriesOutcome(
        series,
        change.tier,
        "ok" if delta.first_us is not None or written.features_written else "unchanged",
        counters=tally.counters + written,
        rows_filled=changed.rows_filled,
        changes=changed.sample,
        bar_count=new_state.bar_count,
        feature_count=new_state.feature_count,
        first_ts=new_state.first_ts,
        last_ts=new_state.last_ts,
        expected_last_ts=change.due.expected_last_ts(),
        verified_at=new_state.verified_at,
        next_due_at=new_state.next_due_at,
        warning=" ".join(filter(None, (change.notice, *change.own.problems, *(done.problems if done else ())))) or None,
        own_features=change.own.declarations,
    )
    logged = log_row(outcome, run_id, started_at, clock(), due_at=state.next_due_at)
    with tally.storing(), connection.together():
        write_coverage(connection, series, change.coverage, run_id)
        write_state(connection, series, new_state)
        append_log(connection, series, logged)
        connection.commit()
    return replace(outcome, counters=tally.counters + written), new_state


def _stored(connection: StoreConnection, change: Change) -> pd.DataFrame:
    """Return the stored bars within the spans, as far as any can be there."""
    from market_data_pipeline.domain import bars as bar_frames

    last_ts = change.state.last_ts
    if not change.spans or last_ts is None or change.spans[0].start > last_ts:
        return bar_frames.empty()
    stored = read_bars(connection, change.series, change.spans[0].start, change.spans[-1].end)
    return stored[_within(stored, change.spans)].reset_index(drop=True) if len(change.spans) > 1 else stored


def _within(bars: pd.DataFrame, spans: Sequence[Interval]) -> np.ndarray:
    import numpy as np

    ts = bars["ts"]
    inside = np.zeros(len(bars), dtype=bool)
    for span in spans:
        inside |= ((ts >= span.start) & (ts < span.end)).to_numpy()
    return inside


def _features(
    connection: StoreConnection, change: Change, delta: Delta, now: datetime
) -> tuple[Recomputed | None, pd.DataFrame]:
    """Recompute what the change reaches; return what that wrote (None: nothing to do) and the bars it had at hand."""
    from market_data_pipeline.domain import bars as bar_frames
    from market_data_pipeline.domain.adjustments import adjust
    from market_data_pipeline.domain.calendar import exchange_date

    state = change.state
    outdated = is_outdated(state, change.splits_digest, change.own, bars_change=delta.first_us is not None)
    if delta.first_us is None and not outdated and not (change.full and state.bar_count):
        return None, bar_frames.empty()
    first = None if outdated or change.full or delta.first_us is None else instant(delta.first_us)
    today = exchange_date(now)
    with change.tally.storing():
        bars, start = bars_to_compute(
            connection,
            change.series,
            change.answer,
            first=first,
            held_until=state.last_ts,
            joined=len(change.spans) == 1,
            adjusted=lambda raw: adjust(raw, change.splits, today),
            warm_up=change.own.warm_up,
        )
    begin = first or BEGINNING
    done = recompute_features(
        connection,
        change.series,
        bars,
        start,
        asset_class=change.asset_class,
        now=now,
        compare_from=begin if state.last_ts is not None and begin <= state.last_ts else None,
        tally=change.tally,
        own=change.own,
    )
    return done, bars


def _held(
    connection: StoreConnection, state: SeriesState, answer: pd.DataFrame, delta: Delta, series: Series
) -> SeriesState:
    """Return the state with the extent of the bars as it is now."""
    if delta.rows_removed:
        return replace(state, **extent(connection, series))
    if not delta.rows_inserted:
        return state
    added = ts_us(answer)[delta.inserted]
    first, last = instant(added[0]), instant(added[-1])
    return replace(
        state,
        first_ts=min(first, state.first_ts or first),
        last_ts=max(last, state.last_ts or last),
        bar_count=state.bar_count + delta.rows_inserted,
    )
