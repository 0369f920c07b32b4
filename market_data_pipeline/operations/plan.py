"""What a backfill would ask the vendor for, and what that costs at the plan's limit; nothing is sent.

Keep out: which days are worth a request (ingest.demand) and how requests are counted (polygon.windows).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.sessions import Session
    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.windows import Estimate
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.bulk import Bulk


class SeriesPlan(NamedTuple):
    """What one fetched series lacks: session days, and the requests that cover them."""

    series: Series
    sessions: int
    estimate: Estimate


class BackfillPlan(NamedTuple):
    """What a backfill would ask for.

    Attributes:
        plan: the vendor's subscription, with the limit in force.
        history_days: calendar days that the series should hold.
        series: one for each fetched series that lacks something.
        reads_splits: the market's splits are still to be read today; at least one request, counted in `total`.
        total: the cost of all of it; an upper bound.
    """

    plan: Plan
    history_days: int
    series: tuple[SeriesPlan, ...]
    reads_splits: bool
    total: Estimate

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "plan": self.plan.name,
            "calls_per_minute": self.plan.calls_per_minute,
            "history_days": self.history_days,
            "calls": self.total.calls,
            "pages": self.total.pages,
            "bytes": self.total.bytes,
            "seconds": self.total.seconds,
            "reads_splits": self.reads_splits,
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
    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.domain.sessions import NEW_YORK
    from market_data_pipeline.operations.universe import check_followed, followed
    from market_data_pipeline.polygon.plans import plan_named
    from market_data_pipeline.polygon.windows import Window, estimate, windows
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.splits import last_check

    check_followed(settings, symbols)
    names = tuple(symbols) or tuple(each.symbol for each in followed(settings))
    bases = tuple(dict.fromkeys(timeframe.base for timeframe in (timeframes or Timeframe)))
    plan = plan_named(settings.plan).limited_to(settings.calls_per_minute)
    history_days = days or settings.history_days
    now = settings.clock()
    found: list[SeriesPlan] = []
    asked: list[Window] = []
    with Bulk(settings.database_url, settings.as_of) as bulk:
        for series in (Series(name, base) for name in names for base in bases):
            missing = _missing(bulk, series, plan, history_days, now, full=full)
            if missing:
                requests = windows(missing, series.timeframe)
                asked += requests
                found.append(SeriesPlan(series, len(missing), estimate(requests, plan)))
        known = last_check(bulk)
    today = now.astimezone(NEW_YORK).date()
    reads_splits = known is None or known[1].astimezone(NEW_YORK).date() < today
    if reads_splits:
        asked.append(Window(Interval(now, now), Timeframe.D1, expected_calls=1, base_bars=0))
    return BackfillPlan(plan, history_days, tuple(found), reads_splits, estimate(asked, plan))


def _missing(
    bulk: Bulk, series: Series, plan: Plan, history_days: int, now: datetime, *, full: bool
) -> tuple[Session, ...]:
    from market_data_pipeline.domain.sessions import calendar_for
    from market_data_pipeline.ingest.demand import Timing, wanted
    from market_data_pipeline.polygon.plans import available_at
    from market_data_pipeline.store.ledger import read_coverage

    calendar = calendar_for(asset_class_of(series.symbol))
    timing: Timing = Timing(calendar, lambda end: available_at(plan, calendar, end), now)
    today = calendar.session_date(now)
    first = today - timedelta(days=history_days)
    if plan.history is not None:
        first = max(first, today - plan.history)
    sessions: Sequence[Session] = calendar.sessions(first, today + timedelta(days=1))
    return wanted(sessions, read_coverage(bulk, series), series.timeframe, timing, full=full)
