"""What a backfill would ask the vendor for, and what that costs at the plan's limit; nothing is sent.

It asks the same functions as a refresh does: which days are worth a request (ingest.demand), which windows cover them
(ingest.harvest), which days one request tells for all symbols (ingest.market_days). What is estimated besides is how
full the answers are, from what the symbols hold and from what the last large answers weighed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Series, Timeframe, asset_class_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.windows import Estimate
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.bulk import Bulk

# How many stocks an answer for the whole market lists: of the vendor's, 12,000 trade on a day.
_MARKET_ROWS: Final = 12_000

# Before any answer has been weighed. The sandbox does not compress (sandbox.server), nor has any other server on this
# machine a reason to; measured over a year of the packaged universe: 101.4 bytes a bar, and 53 stocks in an answer for
# the market.
_SANDBOX_BYTES_PER_BAR: Final = 101
_SANDBOX_MARKET_ROWS: Final = 53


class SeriesPlan(NamedTuple):
    """What one fetched series lacks: session days, and the requests of its own that bring them."""

    series: Series
    sessions: int
    estimate: Estimate


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
    """

    plan: Plan
    history_days: int
    series: tuple[SeriesPlan, ...]
    market_days: tuple[date, ...]
    served: frozenset[str]
    reads_splits: bool
    total: Estimate

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
    from market_data_pipeline.operations.universe import check_followed, followed
    from market_data_pipeline.polygon.plans import plan_named
    from market_data_pipeline.polygon.windows import ANSWER_BYTES, Estimate
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.roles import Role
    from market_data_pipeline.store.splits import last_check

    check_followed(settings, symbols)
    names = tuple(symbols) or tuple(each.symbol for each in followed(settings))
    bases = tuple(dict.fromkeys(timeframe.base for timeframe in (timeframes or Timeframe)))
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    with Bulk(settings.database_url, settings.as_of, Role.READER) as bulk:
        vendor = _Vendor(bulk, plan, days or settings.history_days, settings.clock(), _is_near(settings))
        market_days, served = vendor.market_days(names if Timeframe.D1 in bases and not full else ())
        asked = [
            Series(name, base) for name in names for base in bases if base is not Timeframe.D1 or name not in served
        ]
        found = vendor.series_plans(asked, full=full)
        reads_splits = splits_due(last_check(bulk), vendor.history_days, vendor.now) is not None
    total = sum((one.estimate for one in found), Estimate())
    for _ in market_days:
        total += Estimate(1, 1, ANSWER_BYTES + round(vendor.market_rows * vendor.bytes_per_bar))
    if reads_splits:
        total += Estimate(1, 1, ANSWER_BYTES)
    return BackfillPlan(plan, vendor.history_days, tuple(found), market_days, served, reads_splits, total)


def _is_near(settings: Settings) -> bool:
    """Return whether the vendor is a server on this machine: the sandbox, or one that somebody started."""
    from urllib.parse import urlsplit

    from market_data_pipeline.polygon.transport import is_loopback

    return settings.uses_sandbox or is_loopback(urlsplit(settings.base_url or "").hostname or "")


class _Vendor:
    """What the vendor would be asked for now, and how large its answers are."""

    def __init__(self, bulk: Bulk, plan: Plan, history_days: int, now: datetime, near: bool) -> None:
        from market_data_pipeline.operations.answer_sizes import bytes_per_bar
        from market_data_pipeline.polygon.windows import BYTES_PER_BAR

        self.bulk = bulk
        self.plan = plan
        self.history_days = history_days
        self.now = now
        self.market_rows = _SANDBOX_MARKET_ROWS if near else _MARKET_ROWS
        self.weighed = bytes_per_bar(bulk)
        self.bytes_per_bar = self.weighed.get("") or (_SANDBOX_BYTES_PER_BAR if near else BYTES_PER_BAR)

    def market_days(self, symbols: Collection[str]) -> tuple[tuple[date, ...], frozenset[str]]:
        """Return the days to ask for the whole market, and the symbols that need no request for day bars then."""
        from market_data_pipeline.ingest.market_days import plan_market_days

        timing = self._timing(AssetClass.US_EQUITY)
        made = plan_market_days(self.bulk, symbols, timing, self.history_days, self.plan)
        return tuple(session.date for session in made.asked), made.served

    def series_plans(self, asked: Collection[Series], *, full: bool) -> list[SeriesPlan]:
        """Return what each of the fetched series lacks, those that lack nothing left out."""
        from market_data_pipeline.ingest.demand import reach, wanted
        from market_data_pipeline.ingest.harvest import served_windows
        from market_data_pipeline.operations.answer_sizes import traded_parts
        from market_data_pipeline.polygon.windows import Habit, estimate
        from market_data_pipeline.store.ledger import read_coverage

        found = []
        for series in asked:
            timing = self._timing(asset_class_of(series.symbol))
            sessions = reach(timing, self.history_days, self.plan.history).sessions
            missing = wanted(sessions, read_coverage(self.bulk, series), series.timeframe, timing, full=full)
            if missing:
                found.append((series, len(missing), served_windows(missing, series.timeframe, timing)))
        traded = traded_parts(self.bulk, {series.symbol for series, *_ in found}, self.now)

        def habit(symbol: str) -> Habit:
            minutes, bars = traded.get(symbol, (1.0, 1.0))
            return Habit(minutes, bars, self.weighed.get(symbol, self.bytes_per_bar))

        return [
            SeriesPlan(series, sessions, estimate(requests, habit(series.symbol)))
            for series, sessions, requests in found
        ]

    def _timing(self, asset_class: AssetClass) -> Timing:
        from market_data_pipeline.domain.sessions import calendar_for
        from market_data_pipeline.ingest.demand import Timing
        from market_data_pipeline.polygon.plans import available_at

        calendar = calendar_for(asset_class)
        return Timing(calendar, lambda end: available_at(self.plan, calendar, end), self.now)
