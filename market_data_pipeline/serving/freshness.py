"""How fresh a series is at an instant, in the words of an answer.

What the database knows of a series changes with commits only, while its freshness changes with time. So the watermarks
are read once and kept with the answer's bytes, and `freshness_at` is evaluated for every request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired

from typing_extensions import TypedDict  # pydantic reads it below Python 3.12, typing's own it refuses

from market_data_pipeline.domain.freshness import freshness, staleness_seconds
from market_data_pipeline.domain.objectives import CACHE_LIFESPAN, Freshness
from market_data_pipeline.serving.formats import instant

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from market_data_pipeline.reports.series_records import Watermarks


class FreshnessBlock(TypedDict):
    """The `freshness` of an answer."""

    status: str
    staleness_seconds: float | None
    age_seconds: float | None
    verified_at: str | None
    next_due_at: str | None
    updated_at: str | None
    settled_until: str | None
    warning: NotRequired[str]
    cache_lifespan: NotRequired[str]
    cache_lifespan_seconds: NotRequired[float]


def status_at(watermarks: Watermarks, now: datetime) -> Freshness:
    """Return the freshness of a series at `now`, aware UTC; MISSING when it was never computed."""
    if watermarks.updated_at is None:
        return Freshness.MISSING
    return freshness(_staleness(watermarks, now))


def freshness_at(watermarks: Watermarks, now: datetime) -> FreshnessBlock:
    """Return the freshness block of an answer given at `now`, aware UTC."""
    status = status_at(watermarks, now)
    staleness = _staleness(watermarks, now)
    block: FreshnessBlock = {
        "status": status.name,
        "staleness_seconds": staleness,
        "age_seconds": None if watermarks.updated_at is None else _seconds(now - watermarks.updated_at),
        "verified_at": _instant(watermarks.verified_at),
        "next_due_at": _instant(watermarks.next_due_at),
        "updated_at": _instant(watermarks.updated_at),
        "settled_until": _instant(watermarks.settled_until),
    }
    if status is Freshness.AGING:
        block["warning"] = f"Aging: the newest bar that is due has been missing for {span(staleness)}."
    elif status is Freshness.STALE:
        left = max(CACHE_LIFESPAN.total_seconds() - staleness, 0.0)
        whole = span(CACHE_LIFESPAN.total_seconds())
        block["warning"] = f"Stale: the newest bar that is due has been missing for {span(staleness)}."
        block["cache_lifespan"] = f"{span(left)} left of {whole}" if left else f"the lifespan of {whole} has passed"
        block["cache_lifespan_seconds"] = left
    return block


def span(seconds: float) -> str:
    """Return a length of time in words, its two largest units: `2 h 5 min`."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)} s"
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    if days > 1:
        return f"{days} d {hours} h" if hours else f"{days} d"
    hours += 24 * days
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _staleness(watermarks: Watermarks, now: datetime) -> float:
    # A series that was computed but whose next bar nobody noted cannot be shown to be fresh: it ages from then on.
    due = watermarks.next_due_at or watermarks.updated_at
    return 0.0 if due is None else round(staleness_seconds(now, due), 3)


def _seconds(length: timedelta) -> float:
    return round(max(length.total_seconds(), 0.0), 3)


def _instant(value: datetime | None) -> str | None:
    return None if value is None else instant(value)
