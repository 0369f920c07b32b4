"""What a backfill would request from the vendor now, and how long that takes at the plan's limit; nothing is sent.

The refresh's own functions decide which days are requested, in which request windows. How many minutes a symbol trades
in is not known before the vendor answers, so pages of 5m bars are counted as if every minute had a trade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.series import BASE_TIMEFRAMES, AssetClass, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.dividends import equities, list_due, unread
from market_data_pipeline.ingest.fetch_plan import Timing, plan_fetch, reach
from market_data_pipeline.ingest.life import fetched_until
from market_data_pipeline.ingest.market import plan_market_days
from market_data_pipeline.ingest.splits import expected, splits_due
from market_data_pipeline.polygon.dividends import TICKERS_AT_ONCE
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.polygon.rate_limit import UNLIMITED_CALLS_PER_SECOND, spacing_seconds
from market_data_pipeline.polygon.request_windows import pages_of
from market_data_pipeline.reports.models import BackfillEstimate, SeriesEstimate
from market_data_pipeline.reports.ways_in import Missing, ways_in
from market_data_pipeline.store.connection import Role
from market_data_pipeline.store.copy import StoreConnection
from market_data_pipeline.store.coverage import read_coverage
from market_data_pipeline.store.dividends import DIVIDENDS, read_known
from market_data_pipeline.store.flat_files import mean_bytes
from market_data_pipeline.store.listings import read_listing
from market_data_pipeline.store.reference import last_check
from market_data_pipeline.store.securities import read_checks, read_identities
from market_data_pipeline.store.series_state import read_states
from market_data_pipeline.store.universe import select_followed

if TYPE_CHECKING:
    from collections.abc import Collection

    import sqlalchemy as sa

    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.reports.models import WaysIn
    from market_data_pipeline.settings import Settings


def estimate_backfill(
    engine: sa.Engine,
    settings: Settings,
    symbols: Collection[str] = (),
    timeframes: Collection[Timeframe] = (),
    days: int | None = None,
    *,
    full: bool = False,
) -> BackfillEstimate:
    """Return what a backfill with the same arguments would request now.

    Args:
        engine: of a database with a universe.
        settings: plan, limit, database and clock.
        symbols: followed ones; all when empty.
        timeframes: all when empty; resampled ones need their base, `5m`.
        days: calendar days of history; the settings' when None.
        full: as if nothing were held.

    Raises:
        UsageError: a symbol is not followed.
        DatabaseUnavailableError: the database cannot be reached.
    """
    names = select_followed(engine, symbols)
    bases = tuple(dict.fromkeys(timeframe.base for timeframe in (timeframes or Timeframe)))
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    history_days, now = days or settings.history_days, settings.clock()
    timing = {asset_class: Timing.on(plan, asset_class, now) for asset_class in AssetClass}
    with StoreConnection(settings.database_url, settings.as_of, Role.READER) as connection:
        splits_read, again_after = last_check(connection), expected(connection, names, now).again_after
        reads_splits = splits_due(splits_read, history_days, now, again_after=again_after) is not None
        dividends_read, known = last_check(connection, DIVIDENDS), read_known(connection, equities(names))
        checks = read_checks(connection, equities(names)).values()
        by_day = names if Timeframe.D1 in bases and not full else ()
        missing: list[Missing] = []
        market = plan_market_days(connection, by_day, timing[AssetClass.US_EQUITY], history_days, plan)
        identities = read_identities(connection, equities(names))
        series = [
            estimate
            for name in names
            for base in bases
            if base is not Timeframe.D1 or name not in market.served
            if (estimate := _of_series(
                connection, Series(name, base), timing[asset_class_of(name)], plan, history_days,
                identities.get(name), missing, full=full,
            ))
        ]  # fmt: skip
        sizes = mean_bytes(connection)
    # A list counts as many calls as its last reading took pages; a first reading, of a page or a few, counts one.
    shared = len(market.requested) + ((splits_read.requests if splits_read else 1) if reads_splits else 0)
    # Which security a stock is takes one call before its first bars; for a few that changed their ticker, up to three.
    shared += sum(check.asked_at is None and check.pinned is None for check in checks)
    whole = list(known) if full else unread(known)
    if reads_dividends := bool(whole) or list_due(known, now):
        shared += -(-len(whole) // TICKERS_AT_ONCE)
        shared += (dividends_read.requests if dividends_read else 1) if list_due(known, now) else 0
    calls = shared + sum(each.calls for each in series)
    return BackfillEstimate(
        plan=plan.name,
        calls_per_minute=plan.calls_per_minute,
        history_days=history_days,
        calls=calls,
        calls_at_least=shared + sum(each.calls_at_least for each in series),
        pages=calls,
        seconds=_seconds(calls, plan),
        reads_splits=reads_splits,
        reads_dividends=reads_dividends,
        market_days=[session.date for session in market.requested],
        from_market_days=sorted(market.served),
        series=series,
        ways_in=ways_in(settings, sizes, missing, calls=calls, shared=shared, seconds=_seconds(calls, plan), now=now),
    )


def estimate_new(settings: Settings, market: AssetClass, count: int, days: int | None = None) -> WaysIn:
    """Return what the history of `count` symbols that are not followed yet would cost, and which way in costs less.

    Args:
        settings: plan, limit, database and clock.
        market: of the symbols.
        count: how many.
        days: calendar days of history; the settings' when None.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
    """
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    now = settings.clock()
    timing = Timing.on(plan, market, now)
    within = reach(timing, days or settings.history_days, plan.history)
    is_equity = market is AssetClass.US_EQUITY
    missing = []
    for base in BASE_TIMEFRAMES:
        made = plan_fetch(Series(market.market.example, base), within, {}, timing, last_ts=None)
        calls = sum(pages_of(window.base_bars) for window in made.windows)
        missing += [Missing(base, made.days, calls, is_equity)] * count
    # Splits and dividends are lists for many; which security it is takes a request for each stock.
    shared = count + 1 + -(-count // TICKERS_AT_ONCE) if is_equity else 0
    calls = shared + sum(each.calls for each in missing)
    with StoreConnection(settings.database_url, settings.as_of, Role.READER) as connection:
        sizes = mean_bytes(connection)
    return ways_in(settings, sizes, missing, calls=calls, shared=shared, seconds=_seconds(calls, plan), now=now)


def _of_series(
    connection: StoreConnection,
    series: Series,
    timing: Timing,
    plan: Plan,
    history_days: int,
    identity: Identity | None,
    missing: list[Missing],
    *,
    full: bool,
) -> SeriesEstimate | None:
    """Return what one fetched series needs, and add it to `missing`; None when it needs nothing."""
    held = read_coverage(connection, series)
    ended = None if identity is None else identity.ended
    within = reach(timing, history_days, plan.history, ended=ended)
    fetch_plan = plan_fetch(series, within, held, timing, last_ts=None, full=full)
    if fetch_plan.days and not full and ended is None:
        state = read_states(connection, series.symbol).get(series.timeframe)
        if state is not None and not state.life.expects_bars:
            until = fetched_until(state, read_listing(connection, series.symbol), timing)
            fetch_plan = plan_fetch(series, within, held, timing, last_ts=None, until=until)
    if not fetch_plan.days:
        return None
    windows = fetch_plan.windows
    pages = sum(pages_of(window.base_bars) for window in windows)
    in_files = asset_class_of(series.symbol) is AssetClass.US_EQUITY
    missing.append(Missing(series.timeframe, fetch_plan.days, pages, in_files))
    return SeriesEstimate(
        symbol=series.symbol,
        timeframe=series.timeframe,
        sessions=len(fetch_plan.days),
        calls=pages,
        calls_at_least=pages if series.timeframe is Timeframe.D1 else len(windows),
    )


def _seconds(calls: int, plan: Plan) -> float:
    """Return over how many seconds the plan's limit spreads the calls, from first to last; transfer not counted."""
    waiting = max(0, calls - 1)
    if plan.calls_per_minute is None:
        return waiting // UNLIMITED_CALLS_PER_SECOND * spacing_seconds(1, 1.0)
    return waiting * spacing_seconds(plan.calls_per_minute)
