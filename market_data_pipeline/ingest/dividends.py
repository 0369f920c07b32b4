"""The dividends of followed stocks: when the vendor's list is read, and what of it.

A symbol's whole history is read once, of forty symbols in one request; from then on, one question a day for the whole
market's recent and coming dividends keeps all of them. Nothing waits for it: bars are stored as traded, and closes are
adjusted for what is known when they are read.

Add here: what makes a list due. Keep out: what a dividend does to prices (domain.adjustments).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.adjustments import NO_TICKER
from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.identity import of_securities, tickers_of
from market_data_pipeline.domain.series import AssetClass, Tier, asset_class_of
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.dividends import DIVIDENDS, all_reads, read_known, write_dividends
from market_data_pipeline.store.reference import Check, Failing, write_check, write_failing
from market_data_pipeline.store.securities import read_identities

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.adjustments import ListedDividend
    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.dividends import Known

# A dividend is corrected for weeks after its ex date. The market's list of these days and the coming ones has about
# 10,000 rows, two or three pages.
RECENT: Final = timedelta(days=45)


def equities(symbols: Iterable[str]) -> list[str]:
    """Return those of the symbols that may pay dividends."""
    return [symbol for symbol in symbols if asset_class_of(symbol) is AssetClass.US_EQUITY]


def unread(known: Mapping[str, Known]) -> list[str]:
    """Return the symbols of which no list was ever read, in order."""
    return sorted(symbol for symbol, each in known.items() if symbol != NO_TICKER and each.verified_at is None)


def list_due(known: Mapping[str, Known], now: datetime) -> bool:
    """Return whether the market's list was not read yet on the New York day of `now`."""
    reads = [each.verified_at for each in known.values() if each.verified_at is not None]
    return any(exchange_date(verified_at) < exchange_date(now) for verified_at in reads)


def ensure_dividends(
    pipeline: Pipeline,
    connection: StoreConnection,
    symbols: Collection[str],
    *,
    full: bool = False,
    again: Collection[str] = (),
) -> str | None:
    """Read dividends where they are due; return what users should know, None when all is well.

    When several runs start at once, one requests them; the others wait and find them stored.

    Args:
        pipeline: vendor and clock.
        connection: one without an open transaction.
        symbols: those of the run.
        full: read the whole history of all of them again.
        again: those of which to do so in any case, because they have become other securities.

    Raises:
        DatabaseUnavailableError: the database is lost.
    """
    now = pipeline.clock()
    ours = equities(symbols)
    if not ours:
        return None
    known = read_known(connection, [*ours, NO_TICKER])
    connection.rollback()
    late = None
    if full or again or unread(known) or list_due(known, now):
        with connection.symbol_lock("*dividends"):
            known = read_known(connection, [*ours, NO_TICKER])
            reads = all_reads(connection) if list_due(known, now) else {}
            connection.rollback()
            whole = sorted(ours) if full else sorted({*unread(known), *again})
            if whole or reads:
                late = _read(pipeline, connection, whole, reads, now)
                known = read_known(connection, [*ours, NO_TICKER])
                connection.rollback()
    warnings = [late] if late else []
    warnings += [
        f"A dividend of {symbol or 'an unnamed ticker'} is left out until it can be read: {each.error}"
        for symbol, each in sorted(known.items())
        if each.error is not None
    ]
    return " ".join(warnings) or None


def _read(
    pipeline: Pipeline,
    connection: StoreConnection,
    whole: Sequence[str],
    reads: Mapping[str, datetime],
    now: datetime,
) -> str | None:
    """Read the histories of `whole`, and the market's list for the symbols of `reads`; return a warning if it fails."""
    client, priority, before = pipeline.client, PRIORITIES[Tier.CRITICAL], pipeline.client.usage
    since: date = exchange_date(min(reads.values(), default=now)) - RECENT
    identities = read_identities(connection, {*reads, *whole})
    of_whole = {symbol: identity for symbol, identity in identities.items() if symbol in set(whole)}
    connection.rollback()
    try:
        if reads:
            unreadable: dict[str, str] = {}
            followed = tickers_of(identities).union(reads)
            listed = client.dividends(followed=followed, unreadable=unreadable, since=since, priority=priority)
            write_dividends(
                connection,
                _of_securities(listed, identities),
                reads.keys(),
                since=since,
                now=now,
                unreadable=with_symbols(unreadable, identities),
            )
            connection.commit()
        if whole:
            unreadable = {}
            tickers = sorted(tickers_of(of_whole).union(whole))
            listed = client.dividends(followed=set(tickers), unreadable=unreadable, tickers=tickers, priority=priority)
            write_dividends(
                connection,
                _of_securities(listed, of_whole),
                whole,
                since=None,
                now=now,
                unreadable=with_symbols(unreadable, of_whole),
            )
            connection.commit()
    except PipelineError as error:
        if connection.closed:
            raise
        connection.rollback()
        write_failing(connection, DIVIDENDS, Failing(now, str(error)))
        connection.commit()
        return f"Dividends could not be read, so total returns are adjusted for those known before: {error}"
    spent = client.usage - before
    write_check(connection, DIVIDENDS, Check(since, now, spent.requests - spent.rate_limited, spent.bytes))
    connection.commit()
    return None


def with_symbols(unreadable: Mapping[str, str], identities: Mapping[str, Identity]) -> dict[str, str]:
    """Return what cannot be read by ticker, and also by each symbol whose security has or had the ticker."""
    of_symbols = {
        symbol: unreadable[tenure.ticker]
        for symbol, identity in identities.items()
        for tenure in identity.tenures
        if tenure.ticker in unreadable
    }
    return {**of_symbols, **unreadable}


def _of_securities(listed: Iterable[ListedDividend], identities: Mapping[str, Identity]) -> list[ListedDividend]:
    return list(of_securities(listed, identities, lambda dividend: dividend.ex_date))
