"""What each of the vendor's plans allows: calls a minute, how late data arrives, how far back it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from market_data_pipeline.domain.calendar import SessionCalendar

_DELAYED: Final = timedelta(minutes=15)
_YEAR: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Plan:
    """One subscription.

    Attributes:
        name: as `POLYGON_PLAN` spells it.
        calls_per_minute: None when unlimited; the vendor then asks to stay under 100 a second.
        delay: from a bar's end to its publication.
        end_of_day: bars of a day are published only after the day is over.
        history: how far back from now the vendor answers, None for all it has.
    """

    name: str
    calls_per_minute: int | None
    delay: timedelta
    end_of_day: bool
    history: timedelta | None

    def limited_to(self, calls_per_minute: int | None) -> Plan:
        """Return this plan with the limit of `POLYGON_CALLS_PER_MINUTE`: 0 lifts it, None keeps the plan's."""
        return self if calls_per_minute is None else replace(self, calls_per_minute=calls_per_minute or None)


# The vendor's price page, 2026-10.
PLANS: Final[Mapping[str, Plan]] = MappingProxyType(
    {
        plan.name: plan
        for plan in (
            Plan("basic", 5, timedelta(0), end_of_day=True, history=2 * _YEAR),
            Plan("starter", None, _DELAYED, end_of_day=False, history=5 * _YEAR),
            Plan("developer", None, _DELAYED, end_of_day=False, history=10 * _YEAR),
            Plan("advanced", None, timedelta(0), end_of_day=False, history=None),
        )
    }
)


def plan_named(name: str) -> Plan:
    """Return the plan called `name`.

    Raises:
        ConfigurationError: there is none; the message lists the known ones.
    """
    if name not in PLANS:
        raise ConfigurationError(f"POLYGON_PLAN is {name!r}, which is not a plan; known plans are {', '.join(PLANS)}.")
    return PLANS[name]


def available_at(plan: Plan, calendar: SessionCalendar, bar_end: datetime) -> datetime:
    """Return the instant from which the vendor serves the bar that ends at `bar_end`, both aware UTC.

    That is the bar's end plus the plan's delay; on an end-of-day plan, not before the local midnight that follows the
    bar (a day bar ends at that midnight). It never decreases from one bar to the next.
    """
    published = bar_end + plan.delay
    if not plan.end_of_day:
        return published
    day = calendar.session_date(bar_end - timedelta(microseconds=1))
    return max(published, calendar.midnight(day + timedelta(days=1)))
