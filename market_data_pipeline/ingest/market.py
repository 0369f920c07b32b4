"""What a run reads once for all its symbols: the splits of every ticker, and the market's newest day bars.

Add here: another answer that all symbols of a run share. Keep out: what is requested for one symbol (fetch_plan).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.ingest.market_days import fetch_market_days
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
    from collections.abc import Collection, Mapping
    from datetime import date, datetime

    from market_data_pipeline.ingest.market_days import MarketDay
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection

log = logging.getLogger(__name__)

# Splits are announced days ahead, so a list of yesterday is right today in all but a recorded handful of cases; after a
# week without an answer nothing that is adjusted with it can be trusted.
SPLITS_KEEP: Final = timedelta(days=7)

# A symbol fails while its splits cannot be read; the vendor corrects a row within hours or never.
UNREADABLE_AGAIN_AFTER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Market:
    """What the symbols of a run share.

    Attributes:
        days: whole-market day bars, by session date.
        unreadable: what is wrong with the vendor's splits of a symbol, which fails with that.
        warning: what users should know of the answers; None when nothing is wrong.
    """

    days: Mapping[date, MarketDay] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    warning: str | None = None


def read_market(
    pipeline: Pipeline, connection: StoreConnection, requests: Collection[SymbolRequest], *, full: bool
) -> Market:
    """Return what the run's symbols share, requesting what is not stored yet.

    Args:
        pipeline: vendor, clock and plan.
        connection: one without an open transaction.
        requests: the run's symbols.
        full: everything is requested again, symbol by symbol: no market days.

    Raises:
        PipelineError: one that every symbol would fail with, as without any list of splits.
    """
    late = ensure_splits(pipeline, connection)
    if late is not None:
        log.warning("The market's splits could not be read today, the last list is used: %s", late)
    unreadable = unreadable_splits(connection)
    warning = None
    if anonymous := unreadable.get(NO_TICKER):
        warning = (
            f"The vendor lists a split without a readable ticker ({anonymous.rstrip('.')}). "
            "It is left out: the symbol that it belongs to lacks a split until the list is corrected."
        )
    daily = [request for request in requests if Timeframe.D1 in request.timeframes]
    days: Mapping[date, MarketDay] = {}
    if daily and not full:
        priority = min(PRIORITIES[request.tier] for request in daily)
        try:
            days = fetch_market_days(pipeline, connection, [request.symbol for request in daily], priority)
        except PipelineError as error:
            if error.stops_run:
                raise
            log.warning("Day bars are requested symbol by symbol, because the market's cannot be read: %s", error)
    connection.commit()
    return Market(days, unreadable, warning)


def splits_due(
    known: Check | None, history_days: int, now: datetime, *, unreadable: Collection[str] = ()
) -> date | None:
    """Return since when the market's splits are to be read now; None when that was done today.

    Args:
        known: the last reading, None before the first.
        history_days: calendar days of history that has to be adjusted.
        now: aware UTC.
        unreadable: the symbols for which the last list could not be read (`store.reference.unreadable_splits`).
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

    Of several runs at once one requests them; the others wait and find them stored. A failure is returned, not raised,
    while the list of an earlier day still serves. A followed ticker whose row cannot be read is stored with the reason
    and is the only one that fails (`refresh`). A row without a ticker fails no symbol, and each run warns of it: it
    says no more than a list without it would, and the other symbols need their splits.

    Raises:
        PipelineError: no stored list serves.
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
        before = pipeline.client.usage  # no other thread of the run sends requests yet
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
