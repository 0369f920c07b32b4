"""How fresh a series is at an instant, and the words for it that go into an answer.

What the database knows of a series does not change between its commits, while its freshness does with the time alone;
so `Standing` is read once and kept with the answer's bytes, and `freshness_at` is asked anew for every request.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict  # pydantic reads it below Python 3.12, typing's own it refuses

from market_data_pipeline.domain.freshness import freshness, staleness_seconds
from market_data_pipeline.domain.objectives import CACHE_LIFESPAN, Freshness
from market_data_pipeline.serving.formats import instant


class Standing(NamedTuple):
    """What `series_state` says of a series; instants are aware UTC, None where there is none yet.

    `updated_at` is when the features were last computed; in an answer of bars, when these were last verified.
    """

    verified_at: datetime | None
    next_due_at: datetime | None
    updated_at: datetime | None
    settled_until: datetime | None = None


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


def status_at(standing: Standing, now: datetime) -> Freshness:
    """Return the freshness of a series at `now`, aware UTC; MISSING when it was never computed."""
    if standing.updated_at is None:
        return Freshness.MISSING
    return freshness(_staleness(standing, now))


def freshness_at(standing: Standing, now: datetime) -> FreshnessBlock:
    """Return the freshness block of an answer given at `now`, aware UTC."""
    status = status_at(standing, now)
    staleness = _staleness(standing, now)
    block: FreshnessBlock = {
        "status": status.name,
        "staleness_seconds": staleness,
        "age_seconds": None if standing.updated_at is None else _seconds(now - standing.updated_at),
        "verified_at": _instant(standing.verified_at),
        "next_due_at": _instant(standing.next_due_at),
        "updated_at": _instant(standing.updated_at),
        "settled_until": _instant(standing.settled_until),
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


def _staleness(standing: Standing, now: datetime) -> float:
    # A series that was computed but whose next bar nobody noted cannot be shown to be fresh: it ages from then on.
    due = standing.next_due_at or standing.updated_at
    return 0.0 if due is None else round(staleness_seconds(now, due), 3)


def _seconds(length: timedelta) -> float:
    return round(max(length.total_seconds(), 0.0), 3)


def _instant(value: datetime | None) -> str | None:
    return None if value is None else instant(value)
