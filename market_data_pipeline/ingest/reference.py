"""Market-wide reference data: the splits of every ticker, read once a day.

Add here: what is asked for the whole market at once. Keep out: adjusting bars (domain.splits).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.reference import (
    SPLITS,
    Check,
    followed_symbols,
    last_check,
    unreadable_splits,
    write_check,
    write_splits,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection

# Splits are announced days ahead, so a list of yesterday is right today in all but a recorded handful of cases; after a
# week without an answer nothing that is adjusted with it can be trusted.
SPLITS_KEEP: Final = timedelta(days=7)

# A symbol fails while its splits cannot be read; the vendor mends a row within hours or never.
UNREADABLE_AGAIN_AFTER: Final = timedelta(hours=1)


def splits_due(
    known: Check | None, history_days: int, now: datetime, *, unreadable: Collection[str] = ()
) -> date | None:
    """Return since when the market's splits are to be read now; None when that was done today.

    Args:
        known: the last reading, None before the first.
        history_days: calendar days of history that has to be adjusted.
        now: aware UTC.
        unreadable: the symbols for which the last list could not be read (`store.splits.unreadable_splits`).
    """
    today = exchange_date(now)
    since = today - timedelta(days=history_days)
    if known is None:
        return since
    read_today = exchange_date(known.verified_at) >= today
    if any(symbol != NO_TICKER for symbol in unreadable) and now - known.verified_at >= UNREADABLE_AGAIN_AFTER:
        read_today = False
    return None if read_today and known.since <= since else min(since, known.since)


def ensure_splits(pipeline: Pipeline, connection: StoreConnection) -> PipelineError | None:
    """Read the market's splits unless that was done today.

    Several runs at once ask once: the others wait and find it done. A failure is returned, not raised, while the list
    of an earlier day still serves. A followed ticker whose row cannot be read is remembered with the reason: it is the
    only one that fails (`refresh`). A row that tells no ticker fails nobody and is told by each run: it says no more
    than a list without it would, and for its sake nobody is to do without the others' splits.

    Raises:
        PipelineError: there is no list that serves.
    """
    now = pipeline.clock()
    with connection.symbol_lock("*splits"):
        known = last_check(connection)
        doubtful = unreadable_splits(connection)
        followed = followed_symbols(connection)
        connection.rollback()
        since = splits_due(known, pipeline.history_days, now, unreadable=doubtful)
        if since is None:
            return None
        unreadable: dict[str, str] = {}
        before = pipeline.client.usage  # no other thread of the run asks yet
        try:
            splits = pipeline.client.splits(
                since, followed=followed, priority=PRIORITIES[Tier.CRITICAL], unreadable=unreadable
            )
        except PipelineError as error:
            if error.stops_run or known is None or known.since != since or now - known.verified_at > SPLITS_KEEP:
                raise
            return error
        spent = pipeline.client.usage - before
        write_splits(connection, splits, since=since, now=now, unreadable=unreadable)
        write_check(connection, SPLITS, Check(since, now, spent.requests - spent.rate_limited, spent.bytes))
        connection.commit()
        return None
