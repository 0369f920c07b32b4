"""What a backfill would ask the vendor for, and what that costs at the plan's limit; nothing is sent.

It asks the same functions as a refresh does: which days are worth a request (ingest.demand), which windows cover them
(ingest.harvest), which days one request tells for all symbols (ingest.market_days). What is estimated besides is how
full the answers are (operations.answer_sizes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Series, Timeframe, asset_class_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import date, datetime

    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.operations.answer_sizes import Traded
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.windows import Estimate, Window
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.bulk import Bulk


class SeriesPlan(NamedTuple):
    """What one fetched series lacks: session days, and the requests of its own that bring them.

    `least` is what they cost if nobody trades a symbol of which nothing is known yet; else the same as `estimate`.
    """

    series: Series
    sessions: int
    estimate: Estimate
    least: Estimate


class BackfillPlan(NamedTuple):
    """What a backfill would ask for.

    Attributes:
        plan: the vendor's subscription, with the limit in force.
        history_days: calendar days that the series should hold.
        series: one for each fetched series that needs requests of its own.
        market_days: sessions whose day bars one request each tells for all symbols that lack them.
        served: symbols that lack day bars and need no request of their own for them.
        reads_splits: the market's splits are still to be read today; at least one request, counted in `total`.
        total: the cost of all of it.
        least: what it costs if the symbols of `unknown` hardly trade; else the same as `total`.
        unknown: symbols of which nothing tells how often they trade; they are taken for ones like those that are held,
            and before anything is held for ones that somebody trades every minute.
    """

    plan: Plan
    history_days: int
    series: tuple[SeriesPlan, ...]
    market_days: tuple[date, ...]
    served: frozenset[str]
    reads_splits: bool
    total: Estimate
    least: Estimate
    unknown: frozenset[str]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask for, and nothing to take from answers that are at hand."""
        return not self.total.calls and not self.served

    @property
    def seconds(self) -> float:
        """How long the plan's limit makes the calls take."""
        return self.total.seconds(self.plan)

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
            "at_least": {"calls": self.least.calls, "pages": self.least.pages, "bytes": self.least.bytes},
            "unknown_symbols": sorted(self.unknown),
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
    from market_data_pipeline.operations.answer_sizes import AnswerSizes
    from market_data_pipeline.operations.universe import check_followed, followed
    from market_data_pipeline.polygon.plans import plan_named
    from market_data_pipeline.polygon.windows import Estimate
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.reference_checks import last_check
    from market_data_pipeline.store.roles import Role
    from market_data_pipeline.store.splits import unreadable_splits

    check_followed(settings, symbols)
    names = tuple(symbols) or tuple(each.symbol for each in followed(settings))
    bases = tuple(dict.fromkeys(timeframe.base for timeframe in (timeframes or Timeframe)))
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    with Bulk(settings.database_url, settings.as_of, Role.READER) as bulk:
        vendor = _Vendor(bulk, plan, days or settings.history_days, settings.clock())
        unreadable = unreadable_splits(bulk)
        known = last_check(bulk)
        reads_splits = splits_due(known, vendor.history_days, vendor.now, unreadable=bool(unreadable)) is not None
        if not reads_splits:  # they fail without a request
            names = tuple(name for name in names if name not in unreadable)
        market_days, served = vendor.market_days(names if Timeframe.D1 in bases and not full else ())
        asked = [
            Series(name, base) for name in names for base in bases if base is not Timeframe.D1 or name not in served
        ]
        lacking = vendor.lacking(asked, full=full)
        sizes = AnswerSizes(
            bulk,
            {one.series.symbol for one in lacking if one.series.timeframe is Timeframe.M5},
            vendor.now,
            near=_is_near(settings),
            listed=_listed(settings),
        )
    found = [
        SeriesPlan(one.series, one.sessions, sizes.of(symbol, one.requests), sizes.least(symbol, one.requests))
        for one in lacking
        for symbol in [one.series.symbol]
    ]
    shared = sum((sizes.market_day() for _ in market_days), sizes.splits() if reads_splits else Estimate())
    return BackfillPlan(
        plan,
        vendor.history_days,
        tuple(found),
        market_days,
        served,
        reads_splits,
        sum((one.estimate for one in found), shared),
        sum((one.least for one in found), shared),
        sizes.unknown,
    )


def _is_near(settings: Settings) -> bool:
    """Return whether the vendor is a server on this machine: the sandbox, or one that somebody started."""
    from urllib.parse import urlsplit

    from market_data_pipeline.polygon.transport import is_loopback

    return settings.uses_sandbox or is_loopback(urlsplit(settings.base_url or "").hostname or "")


def _listed(settings: Settings) -> Callable[[str], Traded | None]:
    """Return what the sandbox's catalogue says of a symbol; nothing where another vendor is asked, or a recording.

    A server on this machine that takes no key of its own is a sandbox that somebody started (ingest.pipeline).
    """
    if settings.sandbox_replay is not None or settings.api_key is not None or not _is_near(settings):
        return lambda symbol: None

    from market_data_pipeline.operations.answer_sizes import Traded
    from market_data_pipeline.sandbox.catalogue import instrument
    from market_data_pipeline.sandbox.synthetic import traded_parts

    def listed(symbol: str) -> Traded | None:
        item = instrument(symbol)
        return Traded(*traded_parts(item)) if item is not None else None

    return listed


class _Lacking(NamedTuple):
    """A fetched series that lacks session days, and the requests that bring them."""

    series: Series
    sessions: int
    requests: tuple[Window, ...]


class _Vendor:
    """What the vendor would be asked for now."""

    def __init__(self, bulk: Bulk, plan: Plan, history_days: int, now: datetime) -> None:
        self.bulk = bulk
        self.plan = plan
        self.history_days = history_days
        self.now = now

    def market_days(self, symbols: Collection[str]) -> tuple[tuple[date, ...], frozenset[str]]:
        """Return the days to ask for the whole market, and the symbols that need no request for day bars then."""
        from market_data_pipeline.ingest.market_days import plan_market_days

        timing = self._timing(AssetClass.US_EQUITY)
        made = plan_market_days(self.bulk, symbols, timing, self.history_days, self.plan)
        return tuple(session.date for session in made.asked), made.served

    def lacking(self, asked: Collection[Series], *, full: bool) -> list[_Lacking]:
        """Return what each of the fetched series lacks, those that lack nothing left out."""
        from market_data_pipeline.ingest.demand import reach, wanted
        from market_data_pipeline.ingest.harvest import served_windows
        from market_data_pipeline.store.ledger import read_coverage

        found = []
        for series in asked:
            timing = self._timing(asset_class_of(series.symbol))
            sessions = reach(timing, self.history_days, self.plan.history).sessions
            missing = wanted(sessions, read_coverage(self.bulk, series), series.timeframe, timing, full=full)
            if missing:
                found.append(_Lacking(series, len(missing), served_windows(missing, series.timeframe, timing)))
        return found

    def _timing(self, asset_class: AssetClass) -> Timing:
        from market_data_pipeline.domain.sessions import calendar_for
        from market_data_pipeline.ingest.demand import Timing
        from market_data_pipeline.polygon.plans import available_at

        calendar = calendar_for(asset_class)
        return Timing(calendar, lambda end: available_at(self.plan, calendar, end), self.now)
