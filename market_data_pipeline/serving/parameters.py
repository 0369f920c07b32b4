"""The query parameters of a series: their bounds, their error messages, and the instants they mean."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Timeframe, asset_class_of, parse_timeframe
from market_data_pipeline.reports.series_records import Range
from market_data_pipeline.serving.problems import Problem

MAX_RECORDS: Final = 10_000
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}.*")
# In a URL an unescaped + is a space: 2026-01-05T00:00:00+00:00 arrives like this.
_LOST_PLUS: Final = re.compile(r" (?=\d{2}:?\d{2}$)")


def _parse_timeframe(value: Any) -> Timeframe:
    try:
        return parse_timeframe(str(value))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _parse_instant(value: Any) -> date | datetime | None:
    """Return a date or an aware UTC datetime; a ValueError's message continues after the parameter's name."""
    if value is None:
        return None
    text = str(value)
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
        parsed = datetime.fromisoformat(_LOST_PLUS.sub("+", text)) if _INSTANT.fullmatch(text) else None
    except ValueError:
        parsed = None
    if parsed is None:
        raise ValueError(f"{shown} is not an ISO 8601 date or instant such as 2026-01-05 or 2026-01-05T14:30:00Z.")
    if parsed.tzinfo is None:
        raise ValueError(f"{shown} does not say which zone it means; append Z for UTC or an offset such as -05:00.")
    try:
        return parsed.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{shown} is outside the years 1 to 9999.") from None


def _parse_known_at(value: Any) -> datetime | None:
    parsed = _parse_instant(value)
    if parsed is None or isinstance(parsed, datetime):
        return parsed
    raise ValueError(f"'{parsed}' is a date; name the instant, for example {parsed}T20:00:00Z.")


_WHEN: Final = {
    "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}],
    "type": "string",
}
When = Annotated[date | datetime | None, BeforeValidator(_parse_instant), WithJsonSchema(_WHEN)]
KnownAt = Annotated[
    datetime | None, BeforeValidator(_parse_known_at), WithJsonSchema({"type": "string", "format": "date-time"})
]
KnownTimeframe = Annotated[Timeframe, BeforeValidator(_parse_timeframe)]

_DAY: Final = "A date means midnight where the symbol trades (New York; UTC for crypto)."


class SeriesQuery(BaseModel):
    """Parameters of both endpoints of a series."""

    model_config = ConfigDict(extra="forbid")

    timeframe: KnownTimeframe = Field(Timeframe.D1, description="Length of the bars.", examples=["5m"])
    start: When = Field(
        None, description=f"First bar start to include: an ISO 8601 date or instant. {_DAY}", examples=["2026-01-05"]
    )
    end: When = Field(
        None,
        description=f"Bars that start at or after this are left out: an ISO 8601 date or instant. {_DAY}",
        examples=["2026-02-01T00:00:00Z"],
    )
    limit: int = Field(
        500, ge=1, le=MAX_RECORDS, description="At most this many records, the newest of the range.", examples=[100]
    )

    def range_for(self, symbol: str) -> Range:
        """Return the range that start, end and limit mean for `symbol`.

        Raises:
            Problem: 422, when start is not before end.
        """
        start, end = _instant(self.start, symbol), _instant(self.end, symbol)
        if start is not None and end is not None and start >= end:
            raise _wrong("start", f"must be before end: {self.start} is not before {self.end}.")
        return Range(start, end, self.limit)


class BarsQuery(SeriesQuery):
    """Parameters of the bars endpoint."""

    adjusted: bool = Field(True, description="Whether prices and volume are adjusted for splits, or as traded.")
    as_of: KnownAt = Field(
        None,
        description="Answer with the values, and the splits, that were known at this instant.",
        examples=["2026-01-31T21:00:00Z"],
    )

    def known_at(self, now: datetime) -> datetime | None:
        """Return `as_of`.

        Raises:
            Problem: 422, when it is after `now`.
        """
        if self.as_of is not None and self.as_of > now:
            raise _wrong("as_of", "is in the future; only what is known by now can be served.")
        return self.as_of


def _wrong(parameter: str, detail: str) -> Problem:
    errors = [{"parameter": parameter, "detail": detail}]
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{parameter}: {detail}", errors=errors)


def _instant(value: date | datetime | None, symbol: str) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    local = datetime.combine(value, time(), calendar_for(asset_class_of(symbol)).tz)
    try:
        return local.astimezone(UTC)
    except OverflowError:  # the very first or last day of the calendar
        return local.replace(tzinfo=UTC)
