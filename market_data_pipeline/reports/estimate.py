"""What the vendor would be asked for now, told by the functions that a refresh asks.

Which days are worth a request (ingest.demand), which windows cover them (ingest.harvest), and which days one request
tells for all symbols (ingest.market_days). Keep out: what the answers cost (answer_sizes).

What a backfill would ask the vendor for, and what that costs at the plan's limit; nothing is sent.

It asks the same functions as a refresh does for what is lacking (operations.lacking). What is estimated besides is how
full the answers are (operations.answer_sizes). Where that cannot be known, the plan has bounds that hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.fetch import served_windows
from market_data_pipeline.ingest.fetch_plan import Timing, reach, wanted, with_witnesses
from market_data_pipeline.ingest.market_days import plan_market_days
from market_data_pipeline.polygon.plans import available_at
from market_data_pipeline.reports.answer_sizes import Ask
from market_data_pipeline.store.coverage import read_coverage

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.request_windows import Estimate
    from market_data_pipeline.reports.answer_sizes import Cost
    from market_data_pipeline.reports.sandbox_market import SandboxMarket
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection


class Lacking(NamedTuple):
    """A fetched series that lacks session days, and the requests that bring them."""

    series: Series
    sessions: int
    asked: Ask


class Vendor:
    """What the vendor would be asked for now.

    Args:
        connection: a connection.
        plan: the vendor's subscription.
        history_days: calendar days of history that a series should hold.
        now: aware UTC.
    """

    def __init__(self, connection: StoreConnection, plan: Plan, history_days: int, now: datetime) -> None:
        self.connection = connection
        self.plan = plan
        self.history_days = history_days
        self.now = now
        self.timing = {asset_class: self._timing(asset_class) for asset_class in AssetClass}

    def market_days(self, symbols: Collection[str]) -> tuple[tuple[date, ...], frozenset[str]]:
        """Return the days to ask for the whole market, and the symbols that need no request for day bars then."""
        timing = self.timing[AssetClass.US_EQUITY]
        made = plan_market_days(self.connection, symbols, timing, self.history_days, self.plan)
        return tuple(session.date for session in made.asked), made.served

    def lacking(self, asked: Collection[Series], *, full: bool) -> list[Lacking]:
        """Return what each of the fetched series lacks, those that lack nothing left out."""
        found = []
        for series in asked:
            timing, held = self.timing[asset_class_of(series.symbol)], read_coverage(self.connection, series)
            sessions = reach(timing, self.history_days, self.plan.history).sessions
            missing = wanted(sessions, held, series.timeframe, timing, full=full)
            if missing:
                days = with_witnesses(missing, sessions, held, series.timeframe, timing)
                requests = served_windows(days, series.timeframe, timing)
                found.append(Lacking(series, len(missing), Ask(series.symbol, requests, held)))
        return found

    def _timing(self, asset_class: AssetClass) -> Timing:
        calendar = calendar_for(asset_class)
        return Timing(calendar, lambda end: available_at(self.plan, calendar, end), self.now)


_CLOSE: Final = 0.05  # of what then happens: what a plan may be off by without a word

_NAMED: Final = 3  # symbols in a sentence


class SeriesPlan(NamedTuple):
    """What one fetched series lacks: session days, and what the requests of its own cost that bring them."""

    series: Series
    sessions: int
    cost: Cost

    @property
    def estimate(self) -> Estimate:
        """What they are expected to cost."""
        return self.cost.likely


class BackfillPlan(NamedTuple):
    """What a backfill would ask for.

    Attributes:
        plan: the vendor's subscription, with the limit in force.
        history_days: calendar days that the series should hold.
        series: one for each fetched series that needs requests of its own.
        market_days: sessions whose day bars one request each tells for all symbols that lack them.
        served: symbols that lack day bars and need no request of their own for them.
        reads_splits: the market's splits are still to be read today; at least one request, counted in `cost`.
        cost: of all of it.
        unknown: symbols of which nothing tells how often they trade; they are taken for ones like those that are held,
            and before anything is held for ones that somebody trades every minute.
        market_unknown: nothing tells how long the answers for the whole market are that it asks for.
        unweighed: no compressed answer as long as some that it asks for has been weighed.
        unlisted: symbols of `served` of which nothing tells whether the answers for the whole market list them; one
            that they do not takes a request of its own.
    """

    plan: Plan
    history_days: int
    series: tuple[SeriesPlan, ...]
    market_days: tuple[date, ...]
    served: frozenset[str]
    reads_splits: bool
    cost: Cost
    unknown: frozenset[str]
    market_unknown: bool
    unweighed: bool
    unlisted: frozenset[str]

    @property
    def total(self) -> Estimate:
        """What all of it is expected to cost."""
        return self.cost.likely

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask for, and nothing to take from answers that are at hand."""
        return not self.total.calls and not self.served

    @property
    def seconds(self) -> float:
        """How long the plan's limit makes the calls take."""
        return self.total.seconds(self.plan)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the plan is no closer than its bounds, in words; none where it is."""
        doubts = []
        if self.unknown:
            doubts.append(f"nothing tells yet how often {_some(self.unknown)} trade, thin ones take less")
        if self.unlisted:
            doubts.append(f"nothing tells yet whether the answer for the whole market lists {_some(self.unlisted)}")
        if self.market_unknown:
            doubts.append("nothing tells yet how long the answers for the whole market are")
        if not doubts and self.cost.most.bytes - self.cost.likely.bytes > _CLOSE * self.cost.likely.bytes:
            doubts.append(
                "no compressed answer as short as some of these has been weighed yet"
                if self.unweighed
                else "how often thin names trade within hours is chance"
            )
        return tuple(doubts)

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "plan": self.plan.name,
            "calls_per_minute": self.plan.calls_per_minute,
            "history_days": self.history_days,
            "calls": self.total.calls,
            "pages": self.total.pages,
            "bytes": self.total.bytes,
            "seconds": self.seconds,
            "at_least": self._bound(self.cost.least),
            "at_most": self._bound(self.cost.most),
            "doubts": list(self.doubts),
            "unknown_symbols": sorted(self.unknown),
            "perhaps_unlisted_symbols": sorted(self.unlisted),
            "reads_splits": self.reads_splits,
            "market_days": [day.isoformat() for day in self.market_days],
            "series": [
                {
                    "symbol": one.series.symbol,
                    "timeframe": one.series.timeframe,
                    "sessions": one.sessions,
                    "calls": one.estimate.calls,
                    "bytes": one.estimate.bytes,
                }
                for one in self.series
            ],
        }

    def _bound(self, cost: Estimate) -> dict[str, float]:
        return {"calls": cost.calls, "pages": cost.pages, "bytes": cost.bytes, "seconds": cost.seconds(self.plan)}


def _some(symbols: Collection[str]) -> str:
    shown = ", ".join(sorted(symbols)[:_NAMED])
    return shown if len(symbols) <= _NAMED else f"{shown} and {len(symbols) - _NAMED} others"


def plan_backfill(
    settings: Settings,
    symbols: Collection[str] = (),
    timeframes: Collection[Timeframe] = (),
    days: int | None = None,
    *,
    full: bool = False,
) -> BackfillPlan:
    """Return what a backfill of the same arguments would ask for now.

    Args:
        settings: plan, limit, database and clock.
        symbols: followed ones; all when empty.
        timeframes: all when empty; resampled ones need their base, `5m`.
        days: calendar days of history; the settings' when None.
        full: ask for what is held as well.

    Raises:
        UsageError: a symbol is not followed.
    """
    from market_data_pipeline.ingest.reference import splits_due
    from market_data_pipeline.polygon.plans import plan_named
    from market_data_pipeline.reports.answer_sizes import AnswerSizes, Cost, total
    from market_data_pipeline.reports.estimate import Vendor
    from market_data_pipeline.runtime.database import check_followed, followed
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.reference import last_check, unreadable_splits

    check_followed(settings, symbols)
    names = tuple(symbols) or tuple(each.symbol for each in followed(settings))
    bases = tuple(dict.fromkeys(timeframe.base for timeframe in (timeframes or Timeframe)))
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    with StoreConnection(settings.database_url, settings.as_of, Role.READER) as connection:
        vendor = Vendor(connection, plan, days or settings.history_days, settings.clock())
        unreadable = unreadable_splits(connection)
        since = splits_due(last_check(connection), vendor.history_days, vendor.now, unreadable=unreadable)
        if since is None:  # they fail without a request
            names = tuple(name for name in names if name not in unreadable)
        market_days, served = vendor.market_days(names if Timeframe.D1 in bases and not full else ())
        lacking = vendor.lacking([Series(name, base) for name in names for base in bases], full=full)
        sizes = AnswerSizes(
            connection,
            [one.asked for one in lacking],
            vendor.timing,
            near=_is_near(settings),
            market=_sandbox(settings) if lacking or market_days else None,
            strangers=not settings.uses_sandbox,
        )
        listed = sizes.listed(connection, served)
    found = []
    maybe = Cost()
    for one in lacking:
        cost = sizes.of(one.asked)
        symbol = one.series.symbol
        if one.series.timeframe is not Timeframe.D1 or symbol not in served or listed[symbol] is False:
            found.append(SeriesPlan(one.series, one.sessions, cost))
        elif listed[symbol] is None:
            maybe = total((maybe, Cost(most=cost.most)))
    shared = [sizes.market_days(market_days)]
    if since is not None:
        shared.append(sizes.splits(since))
    return BackfillPlan(
        plan,
        vendor.history_days,
        tuple(found),
        market_days,
        served,
        since is not None,
        total((*(one.cost for one in found), *shared, maybe)),
        sizes.unknown,
        any(cost.least != cost.most for cost in shared),
        sizes.unweighed,
        frozenset(symbol for symbol, known in listed.items() if known is None),
    )


def _is_near(settings: Settings) -> bool:
    """Return whether the vendor is a server on this machine: the sandbox, or one that somebody started."""
    from urllib.parse import urlsplit

    from market_data_pipeline.polygon.transport import is_loopback

    return settings.uses_sandbox or is_loopback(urlsplit(settings.base_url or "").hostname or "")


def _sandbox(settings: Settings) -> SandboxMarket | None:
    """Return the market that the sandbox serves; None where another vendor is asked.

    A server on this machine that takes no key of its own is a sandbox that somebody started (ingest.pipeline).
    """
    if not settings.uses_sandbox and (settings.api_key is not None or not _is_near(settings)):
        return None
    from market_data_pipeline.reports.sandbox_market import SandboxMarket

    return SandboxMarket(settings.sandbox_replay if settings.uses_sandbox else None)
