"""The query parameters of series: their bounds, their error messages, and what they mean."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of, canonical_symbol, parse_timeframe
from market_data_pipeline.reports.series_records import Range, has_other_hours
from market_data_pipeline.serving.cursors import decode_cursor, wrong_cursor
from market_data_pipeline.serving.formats import ACCEPTED, FORMATS, Media, media_for
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.serving.series_problems import may_exist, unknown_symbol

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RECORDS: Final = 10_000
MAX_SYMBOLS: Final = 1_000  # their names and a cursor of them fit into an address
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

_DAY: Final = "A date means midnight where the symbol trades (New York; UTC for crypto and forex)."


Format = Literal["json", "columns", "csv", "arrow", "parquet"]
Cursor = Annotated[str | None, Field(max_length=6_000)]


class SeriesQuery(BaseModel):
    """Parameters of every endpoint of series."""

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
        500,
        ge=1,
        le=MAX_RECORDS,
        description="At most this many records of a series, the newest of the range; `next` leads to older ones.",
        examples=[100],
    )
    session: Literal["extended", "regular"] = Field(
        "extended",
        description="All hours, or the regular ones: of US stocks and indices bars of 09:30 to 16:00 New York, to "
        "13:00 on early closes. 1h and 4h bars are then made of 5m bars and start at 09:30; there are no features of "
        "these. Day bars are the same.",
    )
    cursor: Cursor = Field(None, description="The `cursor` of an answer: continues with the older records.")
    format: Format | None = Field(
        None, description="The representation, for clients that cannot set `Accept`; it takes precedence."
    )
    timestamps: Literal["iso", "ms"] = Field(
        "iso",
        description="`ts` as ISO 8601 or as milliseconds since 1970, in JSON and CSV; Arrow and Parquet have a type.",
    )

    def series_of(self, symbol: str) -> Series:
        """Return the series of `symbol` that is requested.

        Raises:
            Problem: 404, when there can be no such symbol.
        """
        name = canonical_symbol(symbol)
        if not may_exist(name):
            raise unknown_symbol(symbol, None)
        return Series(name, self.timeframe)

    def range_for(self, series: Series) -> Range:
        """Return the range that start, end, cursor and limit mean for `series`; it may be empty.

        Raises:
            Problem: 422, when start is after end or the cursor is another request's.
        """
        [found] = self.ranges_for([series])
        if found is None:
            raise wrong_cursor()
        return found

    def ranges_for(self, several: Sequence[Series]) -> list[Range | None]:
        """Return the range of each series, as `range_for`; None for one of which all pages were sent."""
        limit = max(min(self.limit, MAX_RECORDS // len(several)), 1)
        bounds = [self._bounds(series) for series in several]
        if self.cursor is None:
            return [Range(start, end, limit) for start, end in bounds]
        ends = decode_cursor(self.cursor, several)
        return [
            None if before is None else Range(start, before if end is None else min(before, end), limit)
            for (start, end), before in zip(bounds, ends, strict=True)
        ]

    def _bounds(self, series: Series) -> tuple[datetime | None, datetime | None]:
        start, end = _instant(self.start, series.symbol), _instant(self.end, series.symbol)
        if start is not None and end is not None and start > end:
            raise _wrong("start", f"must not be after end: {self.start} is after {self.end}.")
        return start, end

    def media(self, accept: str) -> Media:
        """Return the representation that `format`, or else an Accept header, requests.

        Raises:
            Problem: 406, when no representation is acceptable.
        """
        found = FORMATS[self.format] if self.format else media_for(accept)
        if found is None:
            raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"This endpoint offers {ACCEPTED}.")
        return found

    def check_features(self, several: Sequence[Series]) -> None:
        """Refuse features of bars that are made when they are read.

        Raises:
            Problem: 422.
        """
        made = self.timeframe in (Timeframe.H1, Timeframe.H4) and any(map(has_other_hours, several))
        if self.session == "regular" and made:
            raise _wrong(
                "session",
                f"there are no features of {self.timeframe} bars of regular hours; those of 5m, 15m and 1d there are.",
            )


class BarsQuery(SeriesQuery):
    """Parameters of the endpoints of bars."""

    adjustment: Adjustment | None = Field(
        None,
        description="`raw`: as traded. `splits`, the default: prices and volume adjusted for splits. `all`: prices "
        "adjusted for dividends too, so that returns of closes are total returns.",
        examples=["all"],
    )
    adjusted: bool | None = Field(
        None, description="`true` for `adjustment=splits`, `false` for `adjustment=raw`; `adjustment` takes precedence."
    )
    as_of: KnownAt = Field(
        None,
        description="Answer with the values, the splits and the dividends that were known at this instant.",
        examples=["2026-01-31T21:00:00Z"],
    )

    def adjusts_for(self) -> Adjustment:
        """Return what bars are adjusted for."""
        return self.adjustment or Adjustment.of(self.adjusted is not False)

    def known_at(self, now: datetime) -> datetime | None:
        """Return `as_of`.

        Raises:
            Problem: 422, when it is after `now`.
        """
        if self.as_of is not None and self.as_of > now:
            raise _wrong("as_of", "is in the future; only what is known by now can be served.")
        return self.as_of


def _parse_symbols(value: Any) -> str:
    names = [canonical_symbol(one) for one in str(value).split(",")]
    if not all(names):
        raise ValueError("must name symbols separated by commas, for example AAPL,MSFT.")
    if len(names) > MAX_SYMBOLS:
        raise ValueError(f"must be at most {MAX_SYMBOLS} symbols; there are {len(names)}.")
    return ",".join(dict.fromkeys(names))


class _Symbols(BaseModel):
    symbols: Annotated[str, BeforeValidator(_parse_symbols)] = Field(
        description=f"Tickers separated by commas, at most {MAX_SYMBOLS}; the answer has them in this order.",
        examples=["AAPL,MSFT"],
    )


class SeveralQuery(SeriesQuery, _Symbols):
    """Parameters of the features of several symbols."""


class SeveralBarsQuery(BarsQuery, _Symbols):
    """Parameters of the bars of several symbols."""


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
