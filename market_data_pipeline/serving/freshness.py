"""How fresh a series is at an instant, as the `freshness` member of an answer about it.

What the database knows of a series changes with commits only, while its freshness changes with time. So the watermarks
are read once and kept with the answer's bytes, and `freshness_at` is evaluated for every request.
"""

from __future__ import annotations

from datetime import datetime  # pydantic reads it
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import orjson
from pydantic import BaseModel, Field

from market_data_pipeline.domain.freshness import freshness, staleness_seconds
from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.objectives import CACHE_LIFESPAN, FRESHNESS, Freshness
from market_data_pipeline.reports.objectives import span as exact_span
from market_data_pipeline.serving.formats import JSON_OPTIONS

if TYPE_CHECKING:
    from market_data_pipeline.reports.series_records import Watermarks


Status = Literal["FRESH", "AGING", "STALE"]
_CONDITIONS: Final = "; ".join(f"{name}: {FRESHNESS[Freshness[name]].condition}" for name in get_args(Status))


class AnswerFreshness(BaseModel):
    """How fresh the series is."""

    status: Status = Field(description=f"{_CONDITIONS}.")
    staleness_seconds: float = Field(description="How long the first missing bar has been due; 0 when none is.")
    age_seconds: float = Field(description="Seconds since `updated_at`.")
    verified_at: datetime | None = Field(description="When everything due was last fetched from the vendor and stored.")
    next_due_at: datetime | None = Field(description="When the first missing bar falls, or fell, due.")
    updated_at: datetime = Field(description="When the features were last computed; for bars, when last verified.")
    settled_until: datetime | None = Field(
        description="Bars that start before it have settled; later ones may still change."
    )
    life: Literal["trading", "silent", "halted", "delisted", "unknown"] = Field(
        description="Whether bars are to be expected. None are expected of a halted, delisted or unknown series."
    )
    life_since: datetime | None = Field(None, description="Since when, unless it is trading.")
    warning: str | None = Field(None, description="Absent while FRESH.")
    cache_lifespan: str | None = Field(
        None, description="Only when STALE: how much longer a stale answer may be used, in words."
    )
    cache_lifespan_seconds: float | None = Field(None, description="The same in seconds; 0 when it has passed.")

    def to_json(self) -> bytes:
        """Return the member as JSON, without the fields that do not apply."""
        # `model_dump_json(exclude_unset=True)` takes three times as long, and this runs for every request.
        applying = {name: value for name, value in self.__dict__.items() if name in self.model_fields_set}
        return orjson.dumps(applying, option=JSON_OPTIONS)


def freshness_at(watermarks: Watermarks, now: datetime) -> AnswerFreshness:
    """Return the freshness of an answer given at `now`, aware UTC."""
    # A computed series whose next bar is not known cannot be shown to be fresh: it ages from its computation on.
    staleness = round(staleness_seconds(now, watermarks.next_due_at or watermarks.updated_at), 3)
    status = freshness(staleness)
    found = AnswerFreshness(
        status=cast("Status", status.name),
        staleness_seconds=staleness,
        age_seconds=round(max((now - watermarks.updated_at).total_seconds(), 0.0), 3),
        verified_at=watermarks.verified_at,
        next_due_at=watermarks.next_due_at,
        updated_at=watermarks.updated_at,
        settled_until=watermarks.settled_until,
        life=cast("Any", watermarks.life.value),
    )
    if watermarks.life is not Life.TRADING:
        found.life_since = watermarks.life_since
    if not watermarks.life.expects_bars:
        found.warning = f"The symbol {sentence(watermarks.life, watermarks.life_since)}. No bars are missing."
        return found
    if status is not Freshness.FRESH:
        found.warning = f"{status.capitalize()}: a bar that is due has been missing for {span(staleness)}."
    if status is Freshness.STALE:
        whole = CACHE_LIFESPAN.total_seconds()
        left = max(whole - staleness, 0.0)
        found.cache_lifespan = (
            f"{span(left)} left of {span(whole)}" if left else f"the lifespan of {span(whole)} has passed"
        )
        found.cache_lifespan_seconds = left
    return found


def span(seconds: float) -> str:
    """Return a duration in words, in whole minutes from one minute on: `45 s`, `2 h 5 min`."""
    return exact_span(seconds if seconds < 60 else seconds // 60 * 60)
