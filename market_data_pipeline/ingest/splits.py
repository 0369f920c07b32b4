"""The market's splits: when the vendor's list is read, and which of its rows count.

One request lists the splits of every ticker, so the symbols of a run share it. Bars never wait for it: they are stored
as traded, and adjusted by what is known. What is doubtful about that is reported with the run's results.

Add here: what makes a list due, or a row doubtful. Keep out: what the rows do to prices (domain.adjustments) and how
several rows about one event are told apart (domain.contested).
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.adjustments import NO_TICKER, Split
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import calendar_for, exchange_date
from market_data_pipeline.domain.contested import NEIGHBOURS, contested, decide
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.bars import read_bars
from market_data_pipeline.store.reference import (
    SPLITS,
    Check,
    Counting,
    Failing,
    followed_symbols,
    last_check,
    listed_splits,
    unreadable_splits,
    write_check,
    write_counting,
    write_failing,
    write_splits,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.contested import Closes
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection

log = logging.getLogger(__name__)

# Prices of a symbol are in doubt while its splits cannot be read; the vendor corrects a row within hours or never.
UNREADABLE_AGAIN_AFTER: Final = timedelta(hours=1)

# The last close before a split and the first one after it, across holidays and for names that rarely trade.
_AROUND: Final = timedelta(days=14)


def splits_due(
    known: Check | None, history_days: int, now: datetime, *, unreadable: Collection[str] = ()
) -> date | None:
    """Return the date from which the market's splits must be read now; None when they were read today.

    Args:
        known: the last reading, None before the first.
        history_days: calendar days of history that must be adjusted.
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


def ensure_splits(pipeline: Pipeline, connection: StoreConnection) -> str | None:
    """Read the market's splits unless they were read today; return what users should know, None when all is well.

    When several runs start at once, one requests them; the others wait and find them stored. A list that cannot be had
    stops nothing: the one known stays, and the first failure since then is recorded. A row of a followed ticker that
    cannot be read is stored with the reason, and leaves that ticker's prices in doubt (`settle`). A row without a
    ticker may be anyone's, and each run warns about it.

    Raises:
        PipelineError: one that every symbol would fail with: the key is refused, or the database is lost.
    """
    now = pipeline.clock()
    with connection.symbol_lock("*splits"):
        known = last_check(connection)
        doubtful = unreadable_splits(connection)
        followed = followed_symbols(connection)
        connection.rollback()
        since = splits_due(known, pipeline.history_days, now, unreadable=doubtful)
        if since is not None:
            unreadable: dict[str, str] = {}
            before = pipeline.client.usage  # no other thread of the run sends requests yet
            try:
                splits = pipeline.client.splits(
                    since, followed=followed, priority=PRIORITIES[Tier.CRITICAL], unreadable=unreadable
                )
            except PipelineError as error:
                # Once a list was read, only bars can show that the key is refused for them as well.
                if error.stops_run and known is None:
                    raise
                write_failing(connection, SPLITS, Failing(now, str(error)))
                connection.commit()
                return _late(known, error)
            spent = pipeline.client.usage - before
            write_splits(connection, splits, since=since, now=now, unreadable=unreadable)
            write_check(connection, SPLITS, Check(since, now, spent.requests - spent.rate_limited, spent.bytes))
            connection.commit()
            doubtful = unreadable
    if anonymous := doubtful.get(NO_TICKER):
        return (
            f"The vendor lists a split without a readable ticker ({anonymous.rstrip('.')}). "
            "It is left out: the symbol that it belongs to is missing a split until the list is corrected."
        )
    return None


def _late(known: Check | None, error: PipelineError) -> str:
    by = f"the list of {exchange_date(known.verified_at)}" if known else "none, since no list was ever read"
    warning = f"The market's splits could not be read, so prices are adjusted by {by}: {error}"
    log.warning(warning)
    return warning


class SymbolSplits(NamedTuple):
    """The splits that a symbol's prices are adjusted by, and a sentence for each doubt about them."""

    splits: tuple[Split, ...]
    doubts: tuple[str, ...]


def symbol_splits(
    connection: StoreConnection,
    symbol: str,
    unreadable: Mapping[str, str],
    fetched: Mapping[Timeframe, pd.DataFrame],
    now: datetime,
) -> SymbolSplits:
    """Return a symbol's splits, having decided by its prices which rows of the list count where several may be one.

    What was decided is committed; readers see it with the series' next commit at the latest.

    Args:
        connection: one without an open transaction.
        symbol: whose splits.
        unreadable: by symbol, what is wrong with a row of the last list.
        fetched: by fetched timeframe, raw bars that are about to be stored.
        now: aware UTC.
    """
    rows = listed_splits(connection, symbol)
    doubts = [f"A split of {symbol} cannot be read: {unreadable[symbol]}"] if symbol in unreadable else []
    today = exchange_date(now)
    groups = contested(row.split for row in rows if row.split.execution_date <= today)
    if not groups:
        return SymbolSplits(tuple(row.split for row in rows if row.counts), tuple(doubts))
    counting = {row.split for row in rows if row.counts}
    verdicts = []
    for group in groups:
        counted, doubt = decide(group, _closes(connection, symbol, group, fetched))
        counting = (counting - set(group)) | counted
        verdicts += [Counting(symbol, split, split in counted, doubt) for split in group]
        doubts += [f"{symbol}: {doubt}"] if doubt else []
    write_counting(connection, verdicts, now)
    connection.commit()
    return SymbolSplits(tuple(row.split for row in rows if row.split in counting), tuple(doubts))


def _closes(
    connection: StoreConnection, symbol: str, group: Sequence[Split], fetched: Mapping[Timeframe, pd.DataFrame]
) -> Closes:
    """Return the raw closes of the sessions around a group of splits, those of day bars where there are any."""
    calendar = calendar_for(AssetClass.US_EQUITY)
    days = [split.execution_date for split in group]
    around = Interval(calendar.midnight(min(days) - _AROUND), calendar.midnight(max(days) + NEIGHBOURS + _AROUND))
    found: dict[date, float] = {}
    for timeframe in (Timeframe.M5, Timeframe.D1):  # the later ones take precedence
        stored = read_bars(connection, Series(symbol, timeframe), *around)
        for bars in (stored, *([fetched[timeframe]] if timeframe in fetched else [])):
            near = bars[(bars["ts"] >= around.start) & (bars["ts"] < around.end)]
            found |= zip(calendar.session_days(ts_us(near)).tolist(), near["close"].tolist(), strict=True)
    return sorted(found.items())
