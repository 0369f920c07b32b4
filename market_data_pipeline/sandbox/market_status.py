"""The vendor's word on trading days: the coming holidays and early closes, and whether the market is open now."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.calendar import END_DATE, calendar_for, exchange_instant
from market_data_pipeline.domain.series import AssetClass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from market_data_pipeline.sandbox.view import View

_DAY: Final = dt.timedelta(days=1)
_AHEAD: Final = dt.timedelta(days=365)
_FRIDAY: Final = 4
_EXCHANGES: Final = ("NASDAQ", "NYSE")
_OPENS, _CLOSES, _CLOSES_EARLY = dt.time(9, 30), dt.time(16), dt.time(13)


def upcoming(view: View, query: Mapping[str, str], root: str) -> bytes:
    """Answer with a bare array, as the vendor does: a row for each exchange and day."""
    del query, root
    return _text([{"exchange": exchange, **day} for day in _days(view) for exchange in _EXCHANGES])


def _days(view: View) -> Iterator[dict[str, Any]]:
    calendar = calendar_for(AssetClass.US_EQUITY)
    day = calendar.session_date(view.now)
    end, announced = min(day + _AHEAD, END_DATE), set(view.source.closings())
    while day < end:
        session = calendar.session_on(day)
        if day in announced or (session is None and day.weekday() <= _FRIDAY):
            yield {"date": day.isoformat(), "name": "Closing" if day in announced else "Holiday", "status": "closed"}
        elif session is not None and session.early_close:
            hours = {
                name: f"{exchange_instant(day, at):%Y-%m-%dT%H:%M:%S.000Z}"
                for name, at in (("open", _OPENS), ("close", _CLOSES_EARLY))
            }
            yield {"date": day.isoformat(), "name": "Early close", "status": "early-close", **hours}
        day += _DAY


def now(view: View, query: Mapping[str, str], root: str) -> bytes:
    """Answer with the status of the markets."""
    del query, root
    calendar = calendar_for(AssetClass.US_EQUITY)
    today = calendar.session_date(view.now)
    session = calendar.session_on(today)
    status = "closed"
    if session is not None and today not in view.source.closings() and session.start <= view.now < session.end:
        closes = exchange_instant(today, _CLOSES_EARLY if session.early_close else _CLOSES)
        status = "open" if exchange_instant(today, _OPENS) <= view.now < closes else "extended-hours"
    exchanges = {name.lower(): status for name in (*_EXCHANGES, "OTC")}
    server_time = view.now.astimezone(calendar.tz).isoformat(timespec="seconds")
    forex = calendar_for(AssetClass.FOREX)
    week = forex.session_on(forex.session_date(view.now))
    is_on = week is not None and week.start <= view.now < week.end
    return _text(
        {
            "currencies": {"crypto": "open", "fx": "open" if is_on else "closed"},
            "exchanges": exchanges,
            "market": status,
            "serverTime": server_time,
        }
    )


def _text(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
