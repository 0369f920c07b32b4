"""Decode what the vendor says about trading days: its list of coming holidays, and the market's status now.

The list is a bare array, unlike every other answer; it has a row for each exchange. What is said of an exchange other
than NYSE and NASDAQ does not count, and a day on which the two differ is no closing.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from market_data_pipeline.domain.announcements import Announcement, DayStatus
from market_data_pipeline.domain.errors import DataError, PipelineError, UnreadableAnswerError
from market_data_pipeline.polygon.rows import in_words

if TYPE_CHECKING:
    from typing import Any

_EXCHANGES: Final = frozenset({"NYSE", "NASDAQ"})
_STATUSES: Final = {"closed": DayStatus.CLOSED, "early-close": DayStatus.EARLY_CLOSE}


class _Day(msgspec.Struct):
    date: date
    status: str
    exchange: str = ""
    name: str | None = None
    close: datetime | None = None


class _Status(msgspec.Struct):
    market: str
    exchanges: dict[str, str] = msgspec.field(default_factory=dict)


_DAYS: Final = msgspec.json.Decoder(list[_Day])
_STATUS: Final = msgspec.json.Decoder(_Status)


def read_upcoming(body: bytes) -> tuple[Announcement, ...]:
    """Return the coming closings and early closes of US stocks, by date.

    Raises:
        UnreadableAnswerError: the body is not JSON.
        DataError: a row is malformed.
    """
    by_date: dict[date, list[_Day]] = defaultdict(list)
    for row in _decoded(_DAYS, body, "coming holidays"):
        if row.exchange.upper() in _EXCHANGES:
            by_date[row.date].append(row)
    found = []
    for day, rows in sorted(by_date.items()):
        said = {_STATUSES.get(row.status) for row in rows}
        if len(said) == 1 and (status := said.pop()) is not None:
            closes = max((row.close.astimezone(UTC) for row in rows if row.close and row.close.tzinfo), default=None)
            found.append(Announcement(day, status, rows[0].name, None if status is DayStatus.CLOSED else closes))
    return tuple(found)


def read_is_closed(body: bytes) -> bool:
    """Return whether US stocks trade at no hour of the day now: neither regularly nor before or after.

    Raises:
        UnreadableAnswerError: the body is not JSON.
        DataError: it is malformed.
    """
    now = _decoded(_STATUS, body, "market status")
    ours = {status for name, status in now.exchanges.items() if name.upper() in _EXCHANGES}
    return now.market == "closed" and ours <= {"closed"}


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes, what: str) -> Any:
    failure: PipelineError
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        failure = DataError(f"{what}{in_words(str(error), 'row')}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        failure = UnreadableAnswerError(f"{what}: the answer of {len(body)} bytes is not readable JSON.")
    raise failure
