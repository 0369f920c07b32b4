"""Which security each followed stock is: when the vendor is asked, and what its answers mean.

A first load asks for a symbol's changes of ticker, and where they do not reach back to the start of the history, for
the security that had the ticker on that day: one request for most symbols, three at most. Afterwards a page of the
list of active stocks is read every day, in turn; a symbol that is missing there, or is another security, and one that
ceased to trade, are asked about again. Bars never wait for it: what cannot be had is asked for again a day later.

Add here: when the vendor is asked. Keep out: what a series consists of (domain.identity, own_days).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import exchange_date
from market_data_pipeline.domain.errors import (
    DatabaseBusyError,
    PipelineError,
    RateLimitedError,
    TransactionConflictError,
    TransientError,
    VendorRequestError,
    VendorUnreachableError,
)
from market_data_pipeline.domain.identity import Described, Identity, Tenure, differences, security_id
from market_data_pipeline.domain.life import ASK_AGAIN_AFTER
from market_data_pipeline.domain.series import AssetClass, Tier, asset_class_of
from market_data_pipeline.ingest.learned import Learned, learn, learn_delisted
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.polygon.securities import ListedPage
from market_data_pipeline.store.listings import forget_listing
from market_data_pipeline.store.reference import (
    Check,
    Failing,
    failing,
    last_check,
    write_answered,
    write_check,
    write_failing,
)
from market_data_pipeline.store.securities import (
    ask_again,
    known_and_listed,
    longest_unlisted,
    note_changes,
    note_listings,
    note_once,
    other_ticker,
    read_checks,
    read_described,
    read_identities,
    same_securities,
    write_described,
    write_identity,
    write_identity_check,
    write_looked_for,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date, datetime

    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.securities import IdentityCheck

log = logging.getLogger(__name__)

LISTED: Final = "listed tickers"  # as `reference_checks` names it
EVENTS: Final = "ticker events"  # as `reference_failures` names it
_DAILY: Final = timedelta(hours=12)

# One symbol of which the vendor's answer fails is no reason not to ask about others; several in a row are.
_GIVE_UP_AFTER: Final = 2
_OF_ALL: Final = (RateLimitedError, VendorUnreachableError, DatabaseBusyError, TransactionConflictError)

# A new stock may have no entry yet; several without one mean that the vendor's endpoint has none of any.
_FEWEST: Final = 3

# A ticker that has bars and is no security is an exception: it may become one, and costs two requests to look.
_UNKNOWN: Final = "The vendor knows no security of this ticker."
_UNKNOWN_AGAIN_AFTER: Final = timedelta(days=28)


class Identities(NamedTuple):
    """The securities of a run's stocks, those of which what they consist of changed, and what users should know."""

    by_symbol: Mapping[str, Identity] = MappingProxyType({})
    changed: frozenset[str] = frozenset()
    warning: str | None = None


def ensure_identities(
    pipeline: Pipeline, connection: StoreConnection, requests: Collection[SymbolRequest]
) -> Identities:
    """Return the securities of the run's stocks, asking the vendor where it is due.

    Args:
        pipeline: vendor, clock and plan.
        connection: one without an open transaction.
        requests: the run's symbols.

    Raises:
        PipelineError: one that every symbol would fail with: the key is refused, or the database is lost.
    """
    ours = [each for each in requests if asset_class_of(each.symbol) is AssetClass.US_EQUITY]
    if not ours:
        return Identities()
    now, symbols = pipeline.clock(), [each.symbol for each in ours]
    unread = _look_through_list(pipeline, connection, now) if any(each.reverify for each in ours) else None
    since = exchange_date(now) - timedelta(days=pipeline.history_days)
    note_listings(connection, symbols, now)
    checks, known = read_checks(connection, symbols), read_identities(connection, symbols)
    due = [each for each in ours if _is_due(pipeline, each, checks, known, since, now)]
    connection.commit()  # no transaction stays open while a request is sent
    if not due:
        return Identities(known, warning=unread)
    changed, doubts, unanswered = frozenset[str](), [unread] if unread else [], 0
    with connection.symbol_lock("*securities"):  # of several runs that start at once, one asks
        checks, known = read_checks(connection, symbols), read_identities(connection, symbols)
        known_before = failing(connection, EVENTS) is not None
        connection.commit()
        for request in due:
            if not _is_due(pipeline, request, checks, known, since, now):
                continue
            try:
                news = _learned(pipeline, connection, request, known.get(request.symbol), checks[request.symbol], since)
            except PipelineError as error:
                of_plan = getattr(error, "of_plan", False)  # bars may be in the plan
                if error.stops_run and not of_plan:
                    raise
                refused = isinstance(error, VendorRequestError)
                alone = refused or (isinstance(error, TransientError) and not isinstance(error, _OF_ALL))
                of_all = of_plan or (refused and unanswered + 1 == _GIVE_UP_AFTER)
                failed = due if of_all else [request] if alone else []
                for each in failed:  # nobody is asked about them for a day, so that the others have their turn
                    write_identity_check(connection, each.symbol, since, now, str(error))
                connection.commit()
                log.warning("Which security %s is could not be asked: %s", request.symbol, error)
                if of_all:
                    write_failing(connection, EVENTS, Failing(now, str(error)))
                    connection.commit()
                    doubts = [each for each in doubts if not each.startswith("Which security ")]  # one word for all
                is_news = not failed or any(checks[each.symbol].error is None for each in failed)
                if is_news and not (known_before and (refused or of_plan)):
                    whose = "stocks are" if of_all else f"{request.symbol} is"
                    doubts.append(f"Which security {whose} could not be read: {error}")
                unanswered += 1
                if not alone or unanswered == _GIVE_UP_AFTER:
                    break
                continue
            unanswered = 0
            changed |= news.changed
            doubts += [news.warning] if news.warning else []
        doubts += _news_of_all(connection, now)
    found = read_identities(connection, symbols)
    connection.commit()
    return Identities(found, changed, " ".join(doubts) or None)


def _news_of_all(connection: StoreConnection, now: datetime) -> list[str]:
    """Note symbols that have become one security; return what users should know of the vendor's changes of ticker."""
    for symbol, other, security in same_securities(connection):
        note_once(
            connection,
            symbol,
            f"is the same security as {other} ({security}), which is followed as well: it counts twice until one of "
            "the two is removed",
            now,
        )
    (known, listed), before = known_and_listed(connection), failing(connection, EVENTS)
    said = []
    if known >= _FEWEST and not listed:
        error = (
            f"The vendor has no changes of ticker of any of {known} stocks: what a stock was called before is not "
            "part of its series; corporate_actions.yaml can name it."
        )
        if before is None:
            said.append(error)
            log.warning("%s", error)
        write_failing(connection, EVENTS, Failing(now, error))
    elif listed:
        write_answered(connection, EVENTS)
    connection.commit()
    return said


def _is_due(
    pipeline: Pipeline,
    request: SymbolRequest,
    checks: Mapping[str, IdentityCheck],
    known: Mapping[str, Identity],
    since: date,
    now: datetime,
) -> bool:
    """Return whether to ask the vendor about a symbol, or to store what a file says of it."""
    check, held = checks[request.symbol], known.get(request.symbol)
    if (said := pipeline.overrides.get(request.symbol)) is not None:
        return _overruled(request.symbol, said, held) != held
    if check.pinned is not None:  # what it is was settled when it was followed
        return held is not None and held.source == "override"
    first_look = request.reverify or not check.has_bars
    if check.asked_at is None or check.since is None:
        return True
    if check.error == _UNKNOWN and check.first_ts is not None and check.first_ts > check.asked_at:
        return True  # it has begun to trade since
    if check.error == _UNKNOWN and not check.again:
        return request.reverify and check.has_bars and now >= check.asked_at + _UNKNOWN_AGAIN_AFTER
    if check.error is not None:
        return now >= check.asked_at + ASK_AGAIN_AFTER
    if held is not None and held.source == "override":  # the file no longer says so
        return True
    return check.again or (since < check.since and first_look)


def _overruled(symbol: str, said: Identity, held: Identity | None) -> Identity:
    """Return what a file says, about the security that is known where the file names none."""
    if said.security:
        return said
    return replace(said, security=held.security if held else security_id(Described(symbol), said.tenures[0].start))


def _learned(
    pipeline: Pipeline,
    connection: StoreConnection,
    request: SymbolRequest,
    held: Identity | None,
    check: IdentityCheck,
    since: date,
) -> Identities:
    """Store what a file or the vendor says of a symbol, and return what is news.

    Raises:
        PipelineError: the vendor did not answer, or every other symbol would fail as well.
    """
    symbol, now = request.symbol, pipeline.clock()
    if (said := pipeline.overrides.get(symbol)) is not None:
        return _stored(connection, symbol, _overruled(symbol, said, held), held, check, since, now)
    try:
        learned = _asked(pipeline, request, held, check, since, now)
    except PipelineError as error:
        if isinstance(error, TransientError | VendorRequestError) or error.stops_run:
            raise
        write_identity_check(connection, symbol, since, now, str(error))
        connection.commit()
        return Identities(warning=None if check.error else f"Which security {symbol} is could not be read: {error}")
    if learned is None:
        write_identity_check(connection, symbol, since, now, _UNKNOWN)
        connection.commit()
        return Identities()
    if (other := other_ticker(connection, learned.identity, symbol)) is not None:
        own = learned.identity.tenures[-1].start or learned.described.list_date
        figi, security = learned.identity.security, f"{symbol}@{own}" if own else f"{symbol}@"
        change = f"has the FIGI of {other}, too, according to the vendor ({figi}): the two are kept apart"
        note_once(connection, symbol, change, now)
        described = replace(learned.described, composite_figi=None)
        learned = learned._replace(identity=replace(learned.identity, security=security), described=described)
    write_learned(connection, learned, now)
    news = _stored(connection, symbol, learned.identity, held, check, since, now)
    return news._replace(warning=learned.doubt)


def _asked(
    pipeline: Pipeline,
    request: SymbolRequest,
    held: Identity | None,
    check: IdentityCheck,
    since: date,
    now: datetime,
) -> Learned | None:
    client, symbol, priority = pipeline.client, request.symbol, PRIORITIES[request.tier]
    if check.pinned is None:
        return learn(client, symbol, held, since, exchange_date(now), priority)
    history = timedelta(days=pipeline.history_days)
    for each in client.delisted(symbol, priority=priority):
        learned = learn_delisted(client, each, history, now, priority)
        if learned.identity.security == check.pinned:
            return learned
    return None


def write_learned(connection: StoreConnection, learned: Learned, now: datetime) -> None:
    """Store the securities that the vendor described, but not which tickers the asked one had; the caller commits."""
    first = learned.identity.tenures[0]
    if learned.before is not None and first.start is not None:
        other = security_id(learned.before, None)
        write_described(connection, other, learned.before, now)
        if other not in {each.security for each in read_identities(connection, [first.ticker]).values()}:
            write_identity(connection, Identity(other, (Tenure(first.ticker, None, first.start),), "reference"), now)
    write_described(connection, learned.identity.security, learned.described, now)


def _stored(
    connection: StoreConnection,
    symbol: str,
    identity: Identity,
    held: Identity | None,
    check: IdentityCheck,
    since: date,
    now: datetime,
) -> Identities:
    """Store what a symbol is, and, of a series that has bars, what changed, to be alerted."""
    if held != identity:
        write_identity(connection, identity, now)
        began = None if check.first_ts is None else exchange_date(check.first_ts)
        is_new = held is None and began is not None and began == identity.tenures[0].start  # `note_listings` tells it
        if check.has_bars and not is_new:
            note_changes(connection, symbol, differences(symbol, held, identity), now)
        if identity.ticker != symbol:
            forget_listing(connection, symbol)  # it was of a ticker that nobody has
    write_identity_check(connection, symbol, since, now)
    connection.commit()
    changes = held != identity and not all(_is_whole(symbol, each, since) for each in (held, identity))
    return Identities(changed=frozenset({symbol} if changes else ()))


def _is_whole(symbol: str, identity: Identity | None, since: date) -> bool:
    """Return whether the symbol is the ticker's whole history since a day."""
    if identity is None:
        return True
    first = identity.tenures[0]
    return len(identity.tenures) == 1 and first.ticker == symbol and (first.start is None or first.start <= since)


def _look_through_list(pipeline: Pipeline, connection: StoreConnection, now: datetime) -> str | None:
    """Read a page of the list of active stocks, once a day, from the ticker on that was looked for longest ago.

    Returns:
        What users should know when it could not be read; None when all is well.
    """
    known = last_check(connection, LISTED)
    looked_for = longest_unlisted(connection) if known is None or now >= known.verified_at + _DAILY else []
    described = read_described(connection, {each.security for each in looked_for})
    connection.commit()  # no transaction stays open while a request is sent
    if not looked_for:
        return None
    unread = None
    try:
        page = pipeline.client.tickers_from(looked_for[0].ticker, priority=PRIORITIES[Tier.LOW_PRIORITY])
    except PipelineError as error:
        if error.stops_run and not getattr(error, "of_plan", False):
            raise
        unread = f"New renames and reused tickers are not noticed, because a list could not be read: {error}"
        log.warning("%s", unread)
        page = ListedPage((), is_last=False)
    listed = {each.ticker: each for each in page.listed}
    if listed:  # the list is never empty: one that is says nothing
        last = max(listed)
        seen = [
            each for each in looked_for if looked_for[0].ticker <= each.ticker and (page.is_last or each.ticker <= last)
        ]
        gone = []
        for each in seen:
            row, mine = listed.get(each.ticker), described.get(each.security)
            if row is None or (mine is not None and row.is_other_than(mine)):
                gone.append(each.symbol)
            else:
                write_described(connection, each.security, row, now)
        ask_again(connection, gone, now)
        write_looked_for(connection, [each.symbol for each in seen], now)
    write_check(connection, LISTED, Check(exchange_date(now), now))
    connection.commit()
    return unread
