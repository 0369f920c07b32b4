"""The audit row of an execution: what `ingest_log` keeps of its outcome.

Keep out: writing it, which belongs to the transaction of the data it speaks of (commit).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.store.ledger import LogRow

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.ingest.outcome import SeriesOutcome
    from market_data_pipeline.ingest.stopwatch import Stopwatch


def log_row(
    outcome: SeriesOutcome,
    watch: Stopwatch,
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
        requests=outcome.requests,
        rate_limited=outcome.rate_limited,
        bytes=outcome.bytes,
        pages=outcome.pages,
        rows_fetched=outcome.rows_fetched,
        rows_inserted=outcome.rows_inserted,
        rows_updated=outcome.rows_updated,
        features_written=outcome.features_written,
        fetch_seconds=watch.fetch_seconds,
        store_seconds=watch.store_seconds,
        compute_seconds=watch.compute_seconds,
        error_class=outcome.error_class,
        error=outcome.error,
        warning=outcome.warning,
        due_at=due_at,
        rpo=TIER_OBJECTIVES[outcome.tier].rpo,
    )


def timed(outcome: SeriesOutcome, watch: Stopwatch) -> SeriesOutcome:
    """Return the outcome with the seconds it took."""
    return replace(
        outcome,
        fetch_seconds=watch.fetch_seconds,
        store_seconds=watch.store_seconds,
        compute_seconds=watch.compute_seconds,
    )
