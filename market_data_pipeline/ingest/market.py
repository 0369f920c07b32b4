"""What a run reads once for all its symbols: splits, dividends, announced closings, and the whole market's day bars.

Right after a day is over, every US equity is missing the same day bar, and one grouped-daily answer has them all. The
rows of the followed symbols are stored (store.market_days), so that the next tier finds them and sends nothing. A
series that takes its bar from there ends up exactly as if requested on its own at that instant: provisional before the
day settled, complete after. A symbol that the answer does not name is requested on its own: absence proves nothing.

Add here: another answer that all symbols of a run share. Keep out: what is requested for one symbol (fetch_plan).
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.ingest.announcements import ensure_announcements
from market_data_pipeline.ingest.coverage import status_after
from market_data_pipeline.ingest.dividends import ensure_dividends
from market_data_pipeline.ingest.fetch_plan import days_to_fetch, reach
from market_data_pipeline.ingest.identity import ensure_identities
from market_data_pipeline.ingest.splits import ensure_past_splits, ensure_splits
from market_data_pipeline.polygon.rate_limit import PRIORITIES
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline.store.market_days import listed_symbols, read_market_days, unsettled_days, write_market_day
from market_data_pipeline.store.reference import MARKET_DAY, Check, unreadable_splits, write_check

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.domain.announcements import Announcement
    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.ingest.fetch_plan import FetchPlan, Timing
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.market_days import Unsettled, Values

log = logging.getLogger(__name__)

# A grouped answer costs one request, as a symbol's whole history does, but holds 12,000 bars: after an absence of more
# than a week, the symbols are requested one by one.
MOST_DAYS: Final = 5

# Symbols with more unsettled days than this are left out; more than `MOST_DAYS`, because some need no request now.
_LOOKED_AT: Final = 2 * MOST_DAYS


@dataclass(frozen=True, slots=True)
class Market:
    """What the symbols of a run share.

    Attributes:
        days: whole-market day bars, by session date.
        unreadable_splits: by symbol, what is wrong with a row of the vendor's list of splits.
        announced: what the vendor says of days of US stocks, by session date.
        identities: by symbol, which security it is, where that is known.
        warning: what users should know about the answers; None when nothing is wrong.
    """

    days: Mapping[date, MarketDay] = field(default_factory=dict)
    unreadable_splits: Mapping[str, str] = field(default_factory=dict)
    announced: Mapping[date, Announcement] = field(default_factory=dict)
    identities: Mapping[str, Identity] = field(default_factory=dict)
    warning: str | None = None


def read_market(
    pipeline: Pipeline, connection: StoreConnection, requests: Collection[SymbolRequest], *, full: bool, by_day: bool
) -> Market:
    """Return what the run's symbols share, requesting what is not stored yet.

    Args:
        pipeline: vendor, clock and plan.
        connection: one without an open transaction.
        requests: the run's symbols.
        full: everything is requested again.
        by_day: day bars that all symbols are missing may come from answers for the whole market.

    Raises:
        PipelineError: one that every symbol would fail with.
    """
    identified = ensure_identities(pipeline, connection, requests)
    symbols = [request.symbol for request in requests]
    warning = ensure_splits(pipeline, connection, symbols, again=bool(identified.changed))
    past = ensure_past_splits(pipeline, connection, identified.by_symbol)
    without_dividends = ensure_dividends(pipeline, connection, symbols, full=full, again=identified.changed)
    announced = ensure_announcements(pipeline, connection, requests)
    unreadable = unreadable_splits(connection)
    daily = [request for request in requests if Timeframe.D1 in request.timeframes]
    days: Mapping[date, MarketDay] = {}
    if daily and by_day:
        priority = min(PRIORITIES[request.tier] for request in daily)
        try:
            days = fetch_market_days(pipeline, connection, [request.symbol for request in daily], priority)
        except PipelineError as error:
            if error.stops_run:
                raise
            log.warning("Day bars are requested symbol by symbol, because the market's cannot be read: %s", error)
    connection.commit()
    warnings = " ".join(filter(None, (identified.warning, warning, past, without_dividends, announced.warning)))
    return Market(days, unreadable, announced.days, identified.by_symbol, warnings or None)


@dataclass(frozen=True, slots=True)
class MarketDay:
    """What the vendor said about one session's day bars.

    Attributes:
        session: the day.
        fetched_at: when it was requested, aware UTC.
        values: of each followed US equity; None for one that the answer does not name.
        fresh: this run requested it.
    """

    session: Session
    fetched_at: datetime
    values: Mapping[str, Values | None]
    fresh: bool = False

    def serves(self, known: Coverage | None, timing: Timing) -> bool:
        """Return whether a series with coverage `known` can take the day from here instead of fetching it.

        What this run requested itself is as good as another request. An older answer serves when a series that had
        fetched then would not fetch again now; it does not serve a settled day that is being reverified, because it
        is older than the reason to do so.
        """
        if self.fetched_at > timing.now:  # a replay of an earlier instant
            return False
        if self.fresh:
            return known is None or self.fetched_at >= known.fetched_at
        if known is not None and known.fetched_at >= min(self.fetched_at, settled_at(self.session)):
            return False
        return not days_to_fetch([self.session], {self.session.date: self.held(known, timing)}, Timeframe.D1, timing)

    def held(self, known: Coverage | None, timing: Timing) -> Coverage:
        """Return the day's coverage in a series that takes its bar from here."""
        status = status_after(self.session, 1, known, replace(timing, now=self.fetched_at))
        return Coverage(self.session.date, status, 1, self.fetched_at)


class Served(NamedTuple):
    """The bars of a 1d series that were taken from market days, and the coverage of those days."""

    bars: pd.DataFrame
    coverage: tuple[Coverage, ...]


def served_days(plan: FetchPlan, market_days: Mapping[date, MarketDay]) -> Served | None:
    """Return the bars of all days of a 1d series' plan; None when market days do not serve every one of them.

    In that case a request is needed, and it brings all of them.
    """
    import numpy as np

    series = plan.series
    us_equity = asset_class_of(series.symbol) is AssetClass.US_EQUITY
    if not plan.days or not us_equity or series.timeframe is not Timeframe.D1:
        return None
    if plan.replaced or any(plan.asked_as(session) for session in plan.days):
        return None  # the market's rows are by ticker
    rows, coverage = [], []
    for session in plan.days:
        day, known = market_days.get(session.date), plan.coverage.get(session.date)
        values = day.values.get(series.symbol) if day is not None and day.serves(known, plan.timing) else None
        if day is None or values is None:
            return None
        rows.append(values)
        coverage.append(day.held(known, plan.timing))
    columns = np.ascontiguousarray(np.array(rows, dtype="float64").T)
    starts = np.array([to_us(session.day_start) for session in plan.days], dtype="int64")
    frame = bar_frames.bar_frame(starts, dict(zip(bar_frames.VALUES, columns, strict=True)))
    return Served(frame, tuple(coverage))


@dataclass(frozen=True, slots=True)
class MarketPlan:
    """Which market days are stored and which are worth a request.

    Attributes:
        days: those stored.
        requested: sessions to request, ascending.
        served: symbols whose missing day bars all come from these days, without a request of their own.
    """

    days: Mapping[date, MarketDay] = field(default_factory=dict)
    requested: tuple[Session, ...] = ()
    served: frozenset[str] = frozenset()


def plan_market_days(
    connection: StoreConnection, symbols: Collection[str], timing: Timing, history_days: int, plan: Plan
) -> MarketPlan:
    """Return which market days serve the 1d series of `symbols` with the fewest requests for all followed symbols.

    Args:
        connection: a connection.
        symbols: whose day bars are to be fetched now; those of other markets are skipped.
        timing: of US equities.
        history_days: calendar days of history that a series should hold.
        plan: the vendor's subscription, which limits how far back it answers.
    """
    ours = {symbol for symbol in symbols if asset_class_of(symbol) is AssetClass.US_EQUITY}
    sessions = {session.date: session for session in reach(timing, history_days, plan.history).sessions}
    unsettled = unsettled_days(connection, list(sessions), ours, most=_LOOKED_AT) if ours else {}
    ours = {symbol for symbol in ours if _due(unsettled.get(symbol, ()), sessions, timing)}
    if not ours:
        return MarketPlan()
    dates = {day.session_date for days in unsettled.values() for day in days}
    days = {
        date: MarketDay(sessions[date], stored.fetched_at, stored.values)
        for date, stored in read_market_days(connection, dates).items()
    }
    listed = listed_symbols(connection)
    missing = {
        symbol: _missing(symbol, known, sessions, days, timing, listed=listed.get(symbol) is not False)
        for symbol, known in unsettled.items()
    }
    requested = cheapest_days([each for each in missing.values() if each])
    served = {symbol for symbol in ours if (missing_days := missing[symbol]) is not None and missing_days <= requested}
    needed = {date for symbol in served for date in missing[symbol] or ()}
    return MarketPlan(days, tuple(sessions[date] for date in sorted(needed)), frozenset(served))


def cheapest_days(missing: Collection[Collection[date]]) -> frozenset[date]:
    """Return the days to request for the whole market so that they plus one request per symbol left are fewest.

    A tie goes to requests for single symbols, whose answers are smaller, so a day must be missing for at least two.

    Args:
        missing: the missing days of each symbol that has any.
    """
    symbols = Counter(day for days in missing for day in days)
    order = sorted(symbols, key=lambda day: (symbols[day], day), reverse=True)[:MOST_DAYS]
    options = [frozenset(order[:count]) for count in range(len(order) + 1)]
    return min(options, key=lambda days: len(days) + sum(not days.issuperset(each) for each in missing))


def fetch_market_days(
    pipeline: Pipeline, connection: StoreConnection, symbols: Collection[str], priority: int
) -> Mapping[date, MarketDay]:
    """Return the market days that serve the 1d series of `symbols`, requesting those that are worth it.

    When several runs start at once, one requests them; the others wait and find the answers stored. When a day cannot
    be fetched, its symbols are requested one by one.

    Args:
        pipeline: vendor, clock and plan.
        connection: a connection without an open transaction.
        symbols: whose day bars are to be fetched.
        priority: the place of the requests in the rate limit queue; the lowest goes first.

    Raises:
        PipelineError: one that every symbol would fail with, or the database refused.
    """

    def planned() -> MarketPlan:
        timing = pipeline.timing(AssetClass.US_EQUITY)
        found = plan_market_days(connection, symbols, timing, pipeline.history_days, pipeline.plan)
        connection.commit()  # no transaction stays open while a request is sent
        return found

    if not (plan := planned()).requested:
        return plan.days
    with connection.symbol_lock("*market days"):
        plan = planned()
        days = dict(plan.days)
        for session in plan.requested:
            now = pipeline.clock()
            try:
                answer = pipeline.client.grouped_daily(session.date, priority=priority)
            except PipelineError as error:
                if error.stops_run:
                    raise
                log.warning("%s The day bars are requested symbol by symbol.", error)
                break
            stored = write_market_day(connection, session.date, answer.bars, now)
            write_check(connection, MARKET_DAY, Check(session.date, now, 1, answer.usage.bytes))
            connection.commit()
            days[session.date] = MarketDay(session, now, stored.values, fresh=True)
    return days


def _missing(
    symbol: str,
    unsettled: Sequence[Unsettled],
    sessions: Mapping[date, Session],
    days: Mapping[date, MarketDay],
    timing: Timing,
    *,
    listed: bool,
) -> frozenset[date] | None:
    """Return the days that no stored market day serves; None when none will, so that the symbol must be requested.

    A market day still to be requested will not serve a symbol that the earlier ones did not list.
    """
    known = _coverage(unsettled)
    missing = set()
    for session in _due(unsettled, sessions, timing):
        held, day = known.get(session.date), days.get(session.date)
        if day is not None and day.serves(held, timing):
            if day.values.get(symbol) is None:
                return None
        elif not listed or (held is not None and _looks_empty(held, session)):
            return None
        else:
            missing.add(session.date)
    return frozenset(missing)


def _looks_empty(held: Coverage, session: Session) -> bool:
    """Return whether only an empty answer to a request for the symbol itself can confirm the day."""
    return held.status is CoverageStatus.PROVISIONAL and not held.rows and held.fetched_at >= settled_at(session)


def _due(unsettled: Sequence[Unsettled], sessions: Mapping[date, Session], timing: Timing) -> tuple[Session, ...]:
    return days_to_fetch([sessions[day.session_date] for day in unsettled], _coverage(unsettled), Timeframe.D1, timing)


def _coverage(unsettled: Sequence[Unsettled]) -> dict[date, Coverage]:
    return {
        day.session_date: Coverage(
            day.session_date,
            CoverageStatus(day.status),
            day.rows or 0,
            day.fetched_at,
            doubted_at=day.doubted_at,
            reason=day.reason,
        )
        for day in unsettled
        if day.status is not None and day.fetched_at is not None
    }
