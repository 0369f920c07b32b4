"""Market-wide reference data: the splits of every ticker, read once a day.

Add here: what is asked for the whole market at once. Keep out: adjusting bars (domain.splits).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.failures import PipelineError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.domain.sessions import NEW_YORK
from market_data_pipeline.polygon.limiter import PRIORITIES
from market_data_pipeline.store.splits import followed_symbols, last_check, write_splits

if TYPE_CHECKING:
    from datetime import date, datetime

    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.bulk import Bulk

# Splits are announced days ahead, so a list of yesterday is right today in all but a recorded handful of cases; after a
# week without an answer nothing that is adjusted with it can be trusted.
SPLITS_KEEP: Final = timedelta(days=7)


def splits_due(known: tuple[date, datetime] | None, history_days: int, now: datetime) -> date | None:
    """Return since when the market's splits are to be read now; None when that was done today.

    Args:
        known: the first date and the instant of the last reading, None before the first.
        history_days: calendar days of history that has to be adjusted.
        now: aware UTC.
    """
    today = now.astimezone(NEW_YORK).date()
    since = today - timedelta(days=history_days)
    if known is None:
        return since
    read_today = known[1].astimezone(NEW_YORK).date() >= today
    return None if read_today and known[0] <= since else min(since, known[0])


def ensure_splits(pipeline: Pipeline, bulk: Bulk) -> PipelineError | None:
    """Read the market's splits unless that was done today.

    Several runs at once ask once: the others wait and find it done. A failure is returned, not raised, while the list
    of an earlier day still serves.

    Raises:
        PipelineError: there is no list that serves.
    """
    now = pipeline.clock()
    with bulk.symbol_lock("*splits"):
        known = last_check(bulk)
        followed = followed_symbols(bulk)
        bulk.rollback()
        since = splits_due(known, pipeline.history_days, now)
        if since is None:
            return None
        try:
            splits = pipeline.client.splits(since, followed=followed, priority=PRIORITIES[Tier.CRITICAL])
        except PipelineError as error:
            if error.stops_run or known is None or known[0] != since or now - known[1] > SPLITS_KEEP:
                raise
            return error
        write_splits(bulk, splits, since=since, now=now)
        bulk.commit()
        return None
