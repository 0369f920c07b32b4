"""Whether bars of a symbol are expected: what its days show, and what the vendor says where they do not decide.

The vendor's reference data are requested only for a symbol of which a bar is overdue while others trade (or nobody has
for a day), or that never had one, and at most once a day. When the request fails, what was known stays.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.announcements import DayStatus
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError, PipelineError
from market_data_pipeline.domain.life import ASK_AFTER, ASK_AGAIN_AFTER, Life, Listing, life_of, sentence
from market_data_pipeline.domain.series import Tier, Timeframe, asset_class_of
from market_data_pipeline.ingest.coverage import ExpectedBars, silence_of
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.listings import days_without_trades, others_ended, read_listing, write_listing
from market_data_pipeline.store.securities import ask_again

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.announcements import Announcement
    from market_data_pipeline.ingest.commit import CommitContext
    from market_data_pipeline.ingest.fetch import Answer, FailedFetch
    from market_data_pipeline.ingest.fetch_plan import FetchPlan, Timing
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.series_state import SeriesState

log = logging.getLogger(__name__)


def expected_bars(
    pipeline: Pipeline, context: CommitContext, answer: Answer, announced: Mapping[date, Announcement]
) -> tuple[ExpectedBars, Counters]:
    """Return which bars the fetched series of an answer should hold, and what it cost to ask the vendor about it.

    Args:
        pipeline: vendor, clock and plan.
        context: what the symbol's commits share.
        answer: of the vendor.
        announced: what the vendor says of days of US stocks.
    """
    plan, connection, state = answer.plan, context.connection, context.state(answer.plan.series.timeframe)
    base, timing = plan.series.timeframe, plan.timing
    if plan.has_ended:
        listing, cost = _listing(pipeline, context, plan, ask=True) if answer.is_last else (None, NOTHING)
        silence = silence_of(plan.sessions, answer.known)
        overdue = listing is not None
        return ExpectedBars(base, timing, plan.sessions, answer.known, silence, listing=listing, overdue=overdue), cost
    asset_class = asset_class_of(plan.series.symbol)
    announced = announced if asset_class.market.keeps_exchange_days else {}
    closed = closed_days(announced)
    silence = silence_of(plan.sessions, answer.known, closed)
    overdue = tells = _is_overdue(state, answer)
    if silence.unexplained or overdue:
        due_at = state.next_due_at or timing.now
        # A day bar is due once its day is over.
        due = timing.calendar.session_date(due_at - (base.span if base is Timeframe.D1 else timedelta(0)))
        untraded = closed | days_without_trades(connection, asset_class, base, {*silence.unexplained, due} - {*closed})
        silence = silence_of(plan.sessions, answer.known, untraded)
        # That nobody trades is the market's or the vendor's, until it lasts for a day, or it shows that others ended.
        lasts, since = timing.now >= due_at + ASK_AGAIN_AFTER, timing.now - ASK_AGAIN_AFTER
        tells = overdue and (due not in untraded or lasts or others_ended(connection, asset_class, since))
    expected = ExpectedBars(base, timing, plan.sessions, answer.known, silence, overdue=overdue, announced=announced)
    never_had_any = silence.first_day is None and not len(answer.bars)
    ask = tells or silence.is_unusual or never_had_any
    if not (ask or overdue) or not answer.is_last:
        return expected, NOTHING
    listing, cost = _listing(pipeline, context, plan, ask=ask)
    return replace(expected, listing=listing), cost


def closed_days(announced: Mapping[date, Announcement]) -> dict[date, bool]:
    """Return the days on which the vendor says that nobody trades, as `silence_of` takes them."""
    return {day: True for day, said in announced.items() if said.status is DayStatus.CLOSED}


def answer_without_ticker(
    pipeline: Pipeline, context: CommitContext, failed: FailedFetch
) -> tuple[Answer | None, Counters]:
    """Return an answer in place of a failure that means that the vendor no longer has the ticker, and what it cost.

    A ticker of which it has no bars any more, and that its reference data do not list, would fail for ever.
    """
    if failed.lost is None:
        return None, NOTHING
    listing, cost = _listing(pipeline, context, failed.lost, ask=True, lost=True)
    if listing is None or listing.known is None or listing.active:
        return None, cost
    answer = failed.without_bars(cost)
    is_news = context.state(failed.lost.series.timeframe).life.expects_bars
    return answer if is_news else replace(answer, warnings=()), cost


def _listing(
    pipeline: Pipeline, context: CommitContext, plan: FetchPlan, *, ask: bool, lost: bool = False
) -> tuple[Listing | None, Counters]:
    """Return what the vendor's reference data say of the symbol, asked once a day, and what that cost.

    None when they were not asked within a day and are not to be asked now.
    """
    connection, symbol, now = context.connection, context.request.symbol, plan.timing.now
    known = read_listing(connection, symbol)
    connection.commit()  # no transaction stays open while a request is sent
    if plan.has_ended and plan.identity is not None and plan.identity.ended is not None:  # whoever has the ticker now
        if known is not None and known.delisted_at is not None:
            return known, NOTHING
        last = plan.timing.calendar.midnight(plan.identity.ended)
        return Listing(now, known=True, active=False, delisted_at=last.astimezone(UTC)), NOTHING
    if known is not None and now < known.asked_at + ASK_AGAIN_AFTER:
        return known, NOTHING
    if not ask:
        return None, NOTHING
    ticker = plan.identity.ticker if plan.identity is not None else symbol
    listing, cost = _ask(pipeline, context, ticker, known)
    write_listing(connection, symbol, listing)
    ended = not listing.active and listing.known is not None
    is_news = ended and (known is None or known.active or known.known is None)
    # It may have another ticker: the next refresh knows, before it is said to have ended. An RPO spans two refreshes.
    waits = is_news and ask_again(connection, [symbol], now - ASK_AGAIN_AFTER)
    connection.commit()
    return None if waits and not lost else listing, cost


def _is_overdue(state: SeriesState, answer: Answer) -> bool:
    """Return whether a bar has been due for long, and the answer brings none that is newer than the last one."""
    now, due_at, last_ts = answer.plan.timing.now, state.next_due_at, state.last_ts
    if due_at is None or last_ts is None or now < due_at + ASK_AFTER:
        return False
    ts = ts_us(answer.bars)
    return not len(ts) or int(ts[-1]) <= to_us(last_ts)


def fetched_until(state: SeriesState, listing: Listing | None, timing: Timing) -> date | None:
    """Return the last day to request now of a fetched series of which no bars are expected; None for no limit.

    Once a day it is requested like any other, to see whether it is back. Of an unknown one the vendor has no history
    either.
    """
    if state.life.expects_bars or listing is None or timing.now >= listing.asked_at + ASK_AGAIN_AFTER:
        return None
    if state.last_ts is None or state.life is Life.UNKNOWN:
        return date.min
    return timing.calendar.session_date(state.last_ts)


def _ask(pipeline: Pipeline, context: CommitContext, ticker: str, known: Listing | None) -> tuple[Listing, Counters]:
    symbol, now = context.request.symbol, pipeline.clock()
    try:
        return pipeline.client.listing(ticker, priority=PRIORITIES[context.request.tier])
    except DatabaseUnavailableError:
        raise
    except PipelineError as error:
        # Bars do not wait for reference data.
        log.warning("The vendor could not be asked whether it knows %s, and is asked again in a day: %s", symbol, error)
        listing = Listing(now, known=None) if known is None else replace(known, asked_at=now)
        return listing, getattr(error, "usage", NOTHING)


# On the slowest plan, five calls a minute, and two calls at most for each: a command must not take minutes. A refresh
# asks about the others, and alerts those that are unknown.
MOST_ASKED: Final = 10


class Inquiry(NamedTuple):
    """What the vendor says of tickers: those that it does not know, those that ended, and why it could not be asked."""

    unknown: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()  # a sentence each
    failure: str | None = None


def inquire(settings: Settings, symbols: Sequence[str]) -> Inquiry:
    """Ask the vendor about at most `MOST_ASKED` tickers; one that cannot be asked, or is not set up, is no obstacle."""
    from market_data_pipeline.ingest.pipeline import build_client
    from market_data_pipeline.ingest.source import named_vendor

    found: dict[str, Listing] = {}
    client, failure = None, None
    try:
        client = build_client(settings, named_vendor(settings), retries=False)
        for symbol in symbols[:MOST_ASKED]:
            found[symbol], _ = client.listing(symbol, priority=PRIORITIES[Tier.CRITICAL])
    except ConfigurationError:
        return Inquiry()  # no vendor is named: the sandbox, which only runs with `up`
    except PipelineError as error:
        failure = str(error)
    finally:
        if client is not None:
            client.close()
    ended = [
        f"{symbol} {sentence(*life_of(None, listing, overdue=True, silent=True))}"
        for symbol, listing in found.items()
        if listing.known and not listing.active
    ]
    return Inquiry(tuple(symbol for symbol, listing in found.items() if listing.known is False), tuple(ended), failure)
