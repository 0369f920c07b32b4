"""The parameters of a request, parsed as the vendor parses them, and the refusals."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode

from market_data_pipeline.domain.calendar import END_DATE, FIRST_DATE, SessionCalendar, calendar_for
from market_data_pipeline.domain.series import asset_class_of
from market_data_pipeline.sandbox.bars import MINUTE_MS
from market_data_pipeline.sandbox.view import from_ms, to_ms

DEFAULT_LIMIT: Final = 5_000
MAX_LIMIT: Final = 50_000  # a larger limit counts as this one

_STEPS_MS: Final = {"minute": MINUTE_MS, "hour": 60 * MINUTE_MS}
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_EPOCH_DAY: Final = dt.date(1970, 1, 1).toordinal()

Query = Mapping[str, str]


class Refusal(Exception):
    """A request that is answered with an error status and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


_NAMES: Final = {403: ("NOT_AUTHORIZED", "message"), 404: ("NOT_FOUND", "message")}


def request_id() -> str:
    """Return a new request id in the vendor's form: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def refused(status: int, text: str) -> bytes:
    """Return the body of a refusal; 403 and 404 carry their text in `message`, the others in `error`."""
    name, key = _NAMES.get(status, ("ERROR", "error"))
    return json.dumps({"status": name, "request_id": request_id(), key: text}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Range:
    """A range of bars, its bounds snapped outward to whole bars.

    `start_ms`, `end_ms`: bars that start in [start_ms, end_ms) are requested. `multiplier`: of `timespan`. `step_ms`:
    length of a minute or hour bar, 0 for day bars. `limit`: base bars.
    """

    ticker: str
    multiplier: int
    timespan: str
    step_ms: int
    start_ms: int
    end_ms: int
    limit: int
    descending: bool

    @property
    def calendar(self) -> SessionCalendar:
        """The ticker's trading calendar."""
        return calendar_for(asset_class_of(self.ticker))


def parse_range(ticker: str, multiplier: str, timespan: str, start: str, end: str, query: Query) -> Range:
    """Return the range that a request names.

    Raises:
        Refusal: 400, a parameter cannot be parsed; the text names it.
    """
    times = whole(multiplier, "multiplier", 1, 1_000_000)
    if timespan != "day" and timespan not in _STEPS_MS:
        raise Refusal(
            400, f"Could not parse the parameter 'timespan': {timespan!r}. The sandbox has minute, hour and day."
        )
    calendar = calendar_for(asset_class_of(ticker))
    # The vendor's days of an index begin after the local ones: an instant before is one of the day before.
    offset = calendar.vendor_day_offset() // dt.timedelta(milliseconds=1) if timespan == "day" else 0
    first, last = (
        _instant(text, name, calendar, offset, end=name == "to") for text, name in ((start, "from"), (end, "to"))
    )
    if last < first:
        raise Refusal(400, "The parameter 'to' cannot be a time that occurs before 'from'")
    step = _STEPS_MS.get(timespan, 0) * times
    if step:
        low, high = first // step * step, last // step * step + step
    else:
        low = to_ms(calendar.midnight(bucket_day(calendar.session_date(from_ms(first)), times)))
        bucket = bucket_day(calendar.session_date(from_ms(last)), times)
        high = to_ms(calendar.midnight(min(bucket + dt.timedelta(days=times), END_DATE)))
    limit = min(whole(query.get("limit", str(DEFAULT_LIMIT)), "limit", 1, 10**9), MAX_LIMIT)
    sort = query.get("sort", "asc")
    if sort not in {"asc", "desc"}:
        raise Refusal(400, f"Could not parse the parameter 'sort': {sort!r}. Use asc or desc.")
    return Range(ticker, times, timespan, step, low, high, limit, sort == "desc")


def bucket_day(day: dt.date, days: int) -> dt.date:
    """Return the first day of the `days`-day bar that contains `day`; such bars are counted from 1970."""
    ordinal = day.toordinal() - _EPOCH_DAY
    return dt.date.fromordinal(max(ordinal // days * days + _EPOCH_DAY, FIRST_DATE.toordinal() + 1))


def parse_day(text: str, name: str) -> dt.date:
    """Return a `YYYY-MM-DD` date within the calendars' range."""
    try:
        day = dt.date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise Refusal(400, f"Could not parse the time parameter: '{name}'. Use YYYY-MM-DD.")
    return min(max(day, FIRST_DATE + dt.timedelta(days=1)), END_DATE - dt.timedelta(days=2))


def whole(text: str, name: str, least: int, most: int) -> int:
    """Return a whole number within [least, most]."""
    if not re.fullmatch(r"\d{1,12}", text) or not least <= int(text) <= most:
        raise Refusal(400, f"Could not parse the parameter '{name}': {text!r}. Use a whole number from {least} up.")
    return int(text)


def adjusted(query: Query) -> bool:
    """Return whether split-adjusted bars are requested, which is the default."""
    text = query.get("adjusted", "true").lower()
    if text not in {"true", "false"}:
        raise Refusal(400, f"Could not parse the parameter 'adjusted': {text!r}. Use true or false.")
    return text == "true"


def cursor(**carried: object) -> str:
    """Return the text of a `cursor` parameter."""
    return base64.urlsafe_b64encode(urlencode(carried).encode()).rstrip(b"=").decode()


def with_cursor(query: Query) -> Query:
    """Return the parameters with those in the request's cursor; the request's own take precedence."""
    if (text := query.get("cursor")) is None:
        return query
    try:
        if not re.fullmatch(r"[\w-]+", text):
            raise ValueError(text)
        carried = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        return {**dict(parse_qsl(carried, strict_parsing=True)), **query}
    except (ValueError, binascii.Error):
        raise Refusal(400, "Could not parse the parameter 'cursor'.") from None


def _instant(text: str, name: str, calendar: SessionCalendar, offset_ms: int, *, end: bool) -> int:
    """Return a bound in ms: a date means its local midnight, or as the upper bound the last ms of its day."""
    if re.fullmatch(r"-?\d{1,15}", text):
        return to_ms(from_ms(int(text) - offset_ms))
    try:
        day = parse_day(text, name)
    except Refusal:
        raise Refusal(
            400, f"Could not parse the time parameter: '{name}'. Use YYYY-MM-DD or Unix Msec Timestamps"
        ) from None
    return to_ms(calendar.midnight(day + dt.timedelta(days=1))) - 1 if end else to_ms(calendar.midnight(day))
