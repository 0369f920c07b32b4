"""When to ask the vendor which trading days are none, and what it said.

The list of coming holidays is read once a day, with the days that are reverified. During a session of which a bar has
been due for long and no followed symbol has any, the list and the market's status are read, at most once an hour. Bars
do not wait for it: when the vendor cannot be asked, what it said last stays.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.announcements import Announcement, DayStatus
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.freshness import due_at
from market_data_pipeline.domain.life import ASK_AFTER
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe, asset_class_of
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.announcements import read_announcements, was_silent, write_announcements
from market_data_pipeline.store.reference import Check, last_check, write_check

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection

log = logging.getLogger(__name__)

ANNOUNCEMENTS: Final = "announcements"  # as `reference_checks` names them
_DAY: Final = timedelta(days=1)
_DAILY: Final = timedelta(hours=12)
_ON_THE_DAY: Final = timedelta(hours=1)


class Announced(NamedTuple):
    """What the vendor announces about days of US stocks, by session date, and what users should know about it."""

    days: Mapping[date, Announcement] = MappingProxyType({})
    warning: str | None = None


def ensure_announcements(
    pipeline: Pipeline, connection: StoreConnection, requests: Collection[SymbolRequest]
) -> Announced:
    """Return what the vendor announces about days within the history and later, asking where it is due.

    Args:
        pipeline: vendor, clock and plan.
        connection: one without an open transaction.
        requests: the run's symbols.

    Raises:
        PipelineError: one that every symbol would fail with.
    """
    timing = pipeline.timing(AssetClass.US_EQUITY)
    resting = [each for each in requests if asset_class_of(each.symbol).market.keeps_exchange_days]
    if not resting:
        return Announced()
    today = timing.calendar.session_date(timing.now)
    silent = _silent_session(connection, timing, today)
    after = _ON_THE_DAY if silent else _DAILY if any(each.reverify for each in resting) else None
    since = today - timedelta(days=pipeline.history_days)
    before = found = read_announcements(connection, AssetClass.US_EQUITY, since, timing.now)
    if after is not None and _is_due(connection, timing, after):
        with connection.symbol_lock("*announcements"):  # of several runs that start at once, one asks
            if _is_due(connection, timing, after):
                _ask(pipeline, connection, timing, silent)
        found = read_announcements(connection, AssetClass.US_EQUITY, since, timing.now)
    connection.commit()
    return Announced(found, _news(before, found, timing))


def _news(before: Mapping[date, Announcement], now: Mapping[date, Announcement], timing: Timing) -> str | None:
    """Return a sentence about the first new closing that the calendar does not know; None when there is none."""
    closed = [
        f"{day} ({said.name or 'without a name'})"
        for day, said in sorted(now.items())
        if day not in before and said.status is DayStatus.CLOSED and timing.calendar.session_on(day) is not None
    ]
    if not closed:
        return None
    return f"The vendor announced that US stocks do not trade on {', '.join(closed)}, where the calendar has a session."


def _silent_session(connection: StoreConnection, timing: Timing, today: date) -> Session | None:
    """Return today's session if it is on, a bar has been due for long, and no symbol that was asked for has any."""
    session = timing.calendar.session_on(today)
    if session is None or timing.now >= session.end:
        return None
    due = due_at(session, Timeframe.M5, session.start, timing.available_at)
    if timing.now < due + ASK_AFTER or not was_silent(connection, AssetClass.US_EQUITY, today, due):
        return None
    return session


def _is_due(connection: StoreConnection, timing: Timing, after: timedelta) -> bool:
    known = last_check(connection, ANNOUNCEMENTS)
    connection.commit()  # no transaction stays open while a request is sent
    return known is None or not known.verified_at <= timing.now < known.verified_at + after


def _ask(pipeline: Pipeline, connection: StoreConnection, timing: Timing, silent: Session | None) -> None:
    today, us_equity = timing.calendar.session_date(timing.now), AssetClass.US_EQUITY
    priority = PRIORITIES[Tier.CRITICAL]
    try:
        upcoming = pipeline.client.upcoming_closings(priority=priority)
        is_closed = silent is not None and pipeline.client.market_is_closed(priority=priority)
    except PipelineError as error:
        if error.stops_run and not getattr(error, "of_plan", False):
            raise
        log.warning("The vendor's announcements about trading days could not be read: %s", error)
    else:
        if upcoming:  # the list is never empty: one that is says nothing
            # The day that has begun may leave the list of coming ones.
            write_announcements(connection, us_equity, "upcoming", upcoming, today + _DAY, timing.now)
        if silent is not None:
            said = f"the vendor's market status was closed at {timing.now:%H:%MZ}"
            closed = [Announcement(today, DayStatus.CLOSED, said)] if is_closed else []
            write_announcements(connection, us_equity, "now", closed, today, timing.now)
    write_check(connection, ANNOUNCEMENTS, Check(today, timing.now, 1 + (silent is not None)))
    connection.commit()
