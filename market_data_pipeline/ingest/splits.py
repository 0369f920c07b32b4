"""The market's splits: when the vendor's list is read, and which of its rows count.

One request lists the splits of every ticker, so the symbols of a run share it. Bars never wait for it: they are stored
as traded, and adjusted by what is known. What is doubtful about that is reported with the run's results.

Add here: what makes a list due, or a row doubtful. Keep out: what the rows do to prices (domain.adjustments) and which
of several rows about one event count (domain.contested).
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.adjustments import NO_TICKER, Split
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import calendar_for, exchange_date
from market_data_pipeline.domain.contested import NEIGHBOURS, contested, decide
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.identity import of_securities, tickers_of
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.jumps import resembling
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import AssetClass, Series, Tier, Timeframe, asset_class_of
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.bars import read_bars
from market_data_pipeline.store.reference import (
    SPLITS,
    Awaited,
    Check,
    Counting,
    Failing,
    followed_symbols,
    last_check,
    listed_around,
    listed_splits,
    moves_since,
    unreadable_splits,
    write_check,
    write_counting,
    write_failing,
    write_splits,
)
from market_data_pipeline.store.securities import read_identities

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.contested import Closes
    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection

# Prices of a symbol are in doubt while its splits cannot be read; the vendor corrects a row within hours or never.
UNREADABLE_AGAIN_AFTER: Final = timedelta(hours=1)

# A run starts somewhat earlier than a cadence after the last one: a list of this share of the cadence is old enough.
_EARLY: Final = 0.8

# Of the logarithm of the price within a day, less than 3 for 2: smaller splits are rare, and prices make such moves.
_LEAST_MOVE: Final = 0.336

# The last close before a split and the first one after it, across holidays and for names that rarely trade.
_AROUND: Final = timedelta(days=14)


class Expected(NamedTuple):
    """Whether the list may change today.

    Attributes:
        again_after: how long after a reading it is read again on the same day; None when once a day is enough.
        moves: symbols of which the price moved since the last session as if by a split that the list does not explain.
    """

    again_after: timedelta | None
    moves: tuple[Awaited, ...] = ()


def expected(connection: StoreConnection, symbols: Collection[str], now: datetime) -> Expected:
    """Return whether the list may change today for a run of these symbols.

    On a session's day it is read again within the cadence of each symbol's tier: where it names a split from the
    session before to the next one, because a split is corrected and cancelled on the last day, and where the price
    moved by a usual ratio, because a split is listed late. Within an hour it is read again while a row of it cannot be
    read.
    """
    calendar, today = calendar_for(AssetClass.US_EQUITY), exchange_date(now)
    session = calendar.session_on(today)
    ours = [symbol for symbol in symbols if asset_class_of(symbol) is AssetClass.US_EQUITY]
    awaited: list[Awaited] = []
    if session is not None and ours:
        first, last = calendar.previous_session(today).date, calendar.next_session(today).date
        awaited = listed_around(connection, ours, first, last)
        awaited += [each for each in moves_since(connection, ours, today, session.start) if _looks_split(each.move)]
    unreadable = [symbol for symbol in unreadable_splits(connection) if symbol != NO_TICKER]
    after = [TIER_OBJECTIVES[each.tier].cadence for each in awaited] + [UNREADABLE_AGAIN_AFTER] * bool(unreadable)
    return Expected(min(after, default=None), tuple(each for each in awaited if each.move is not None))


def _looks_split(move: float | None) -> bool:
    return move is not None and abs(math.log(move)) >= _LEAST_MOVE and resembling(move) is not None


def splits_due(
    known: Check | None, history_days: int, now: datetime, *, again_after: timedelta | None = None
) -> date | None:
    """Return the date from which the market's splits must be read now; None when they were read recently enough.

    Args:
        known: the last reading, None before the first.
        history_days: calendar days of history that must be adjusted.
        now: aware UTC.
        again_after: see `Expected`; None for once a day.
    """
    today = exchange_date(now)
    since = today - timedelta(days=history_days)
    if known is None:
        return since
    is_recent = exchange_date(known.verified_at) >= today
    if again_after is not None and now - known.verified_at >= again_after * _EARLY:
        is_recent = False
    return None if is_recent and known.since <= since else min(since, known.since)


def ensure_splits(
    pipeline: Pipeline, connection: StoreConnection, symbols: Collection[str], *, again: bool = False
) -> str | None:
    """Read the market's splits where they are due; return what users should know, None when all is well.

    When several runs start at once, one requests them; the others wait and find them stored. A list that cannot be had
    stops nothing: the one known stays, and the first failure since then is recorded. A row of a followed ticker that
    cannot be read is stored with the reason, and leaves that ticker's prices in doubt (`symbol_splits`). A row without
    a ticker may be anyone's, and each run warns about it, as it does of a price that moves as if by a split that is not
    listed.

    Args:
        pipeline: vendor, clock and plan.
        connection: one without an open transaction.
        symbols: those of the run.
        again: read the list in any case, because a symbol has become another security.

    Raises:
        PipelineError: one that every symbol would fail with: the key is refused, or the database is lost.
    """
    now = pipeline.clock()
    with connection.symbol_lock("*splits"):
        awaited = expected(connection, symbols, now)
        known = last_check(connection)
        since = splits_due(known, pipeline.history_days, now, again_after=awaited.again_after)
        if again and since is None and known is not None:
            since = known.since
        connection.rollback()
        late = None if since is None else _read(pipeline, connection, since, now)
        if since is not None and awaited.moves:
            awaited = expected(connection, symbols, now)
        anonymous = unreadable_splits(connection).get(NO_TICKER)
        connection.rollback()
    warnings = [late] if late else []
    if anonymous:
        warnings.append(
            f"The vendor lists a split without a readable ticker ({anonymous.rstrip('.')}). "
            "It is left out: the symbol that it belongs to is missing a split until the list is corrected."
        )
    warnings += [
        f"{each.symbol} trades at {each.move:.4g} times its close of the last session, which resembles a "
        f"{resembling(each.move)} split, and the vendor's list does not explain it."
        for each in awaited.moves
        if each.move is not None
    ]
    return " ".join(warnings) or None


def ensure_past_splits(
    pipeline: Pipeline, connection: StoreConnection, identities: Mapping[str, Identity]
) -> str | None:
    """Read, once, the splits of the time in which delisted securities traded; return what users should know.

    The list that is read every day reaches back as far as the history of the others, which may begin after their end.

    Raises:
        PipelineError: one that every symbol would fail with.
    """
    history = timedelta(days=pipeline.history_days)
    starts = {symbol: each.ended - history for symbol, each in identities.items() if each.ended is not None}
    if not starts:
        return None
    with connection.symbol_lock("*splits"):
        known = last_check(connection)
        due = {
            symbol: start
            for symbol, start in starts.items()
            if (known is None or start < known.since)
            and ((read := last_check(connection, f"{SPLITS} of {symbol}")) is None or start < read.since)
        }
        connection.rollback()
        if not due:
            return None
        since, now = min(due.values()), pipeline.clock()
        late = _read(pipeline, connection, since, now, only_past=True)
        if late is None:
            for symbol in due:
                write_check(connection, f"{SPLITS} of {symbol}", Check(since, now))
            connection.commit()
    return late


def _read(
    pipeline: Pipeline, connection: StoreConnection, since: date, now: datetime, *, only_past: bool = False
) -> str | None:
    """Read the list and store it; return a warning when it cannot be had.

    With `only_past`, the next list need not reach back as far as this one.
    """
    known, followed = last_check(connection), followed_symbols(connection)
    identities = read_identities(connection, followed)
    tickers = followed | tickers_of(identities)
    connection.rollback()
    unreadable: dict[str, str] = {}
    before = pipeline.client.usage  # no other thread of the run sends requests yet
    try:
        splits = pipeline.client.splits(
            since, followed=tickers, priority=PRIORITIES[Tier.CRITICAL], unreadable=unreadable
        )
    except PipelineError as error:
        # Once a list was read, only bars can show that the key is refused for them as well.
        if error.stops_run and known is None:
            raise
        write_failing(connection, SPLITS, Failing(now, str(error)))
        connection.commit()
        by = f"the list of {exchange_date(known.verified_at)}" if known else "none, since no list was ever read"
        return f"The market's splits could not be read, so prices are adjusted by {by}: {error}"
    spent = pipeline.client.usage - before
    write_splits(
        connection,
        of_securities(splits, identities, lambda row: row.execution_date),
        since=since,
        now=now,
        unreadable=unreadable,
    )
    if not only_past:
        write_check(connection, SPLITS, Check(since, now, spent.requests - spent.rate_limited, spent.bytes))
    connection.commit()
    return None


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
