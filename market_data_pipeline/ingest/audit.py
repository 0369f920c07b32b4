"""An audit of one fetched series: the settled days that it asks for again, on top of what a refresh asks for anyway.

From there on it IS a refresh: same requests, same validation, same commit, so that corrections and filled holes are
taken in with the old values kept and the features made anew. Add here: what an audit does with the ledger. Keep out:
the choice of days (recheck) and what is compared for the whole market at once (orchestration.reconcile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.ingest.demand import reach
from market_data_pipeline.ingest.recheck import days_to_recheck, reopened
from market_data_pipeline.store.ledger import write_rechecked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.ledger import Coverage, SeriesState


def opened_for_audit(
    bulk: Bulk,
    series: Series,
    held: Mapping[date, Coverage],
    state: SeriesState,
    splits_digest: str,
    timing: Timing,
    pipeline: Pipeline,
) -> dict[date, Coverage]:
    """Return `held` with the days to audit opened again; that they are asked for is noted before they are.

    The ledger keeps its statuses: when the vendor fails, the days are as settled as they were.

    Args:
        bulk: the transaction, which the caller commits.
        series: a fetched one.
        held: what is known of its days.
        state: of the series.
        splits_digest: the symbol's splits in force now.
        timing: calendar, plan and the instant it is now.
        pipeline: tells how much history is held, and is to be had.
    """
    sessions = reach(timing, pipeline.history_days, pipeline.plan.history).sessions
    days = days_to_recheck(
        sessions,
        held,
        series.timeframe,
        timing.now,
        splits_changed=state.audited_splits not in (None, splits_digest),
    )
    write_rechecked(bulk, series, days, timing.now)
    return reopened(held, days, sessions)
