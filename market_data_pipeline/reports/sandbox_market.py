"""What the sandbox will answer, told by the market that it serves: invented or recorded, it is at hand.

A short window is looked up whole; of a long one of the invented market three months stand for the rest. Keep out: what
other vendors' answers are like (trading_habits, answer_weights).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for, slot_count
from market_data_pipeline.domain.series import Timeframe, asset_class_of
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.polygon.request_windows import ANSWER_BYTES, SPLITS_PAGE
from market_data_pipeline.reports.trading_habits import Rows
from market_data_pipeline.sandbox.bars import join
from market_data_pipeline.sandbox.encode import encode_bars
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.sandbox.view import View, to_ms
from market_data_pipeline.sandbox.wire import answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime
    from pathlib import Path

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.polygon.request_windows import Window
    from market_data_pipeline.sandbox.bars import Bars

_WHOLE: Final = timedelta(days=40)  # at most; the market invents a month in about 10 ms
_SAMPLE: Final = timedelta(days=31)
_FIVE_MINUTES_MS: Final = Timeframe.M5.minutes * 60_000


class Told(NamedTuple):
    """An answer: what it holds, and the bytes of its rows."""

    rows: Rows
    bytes: float


class SandboxMarket:
    """The sandbox's market, opened a second time."""

    def __init__(self, replay: Path | None) -> None:
        """Open the recorded bars in `replay`, or the invented market."""
        self._source = open_source(replay)
        self._recorded = replay is not None
        self._listed = frozenset(self._source.tickers())

    def lists(self, symbol: str) -> bool:
        """Return whether answers for the whole market name it on a day that it trades."""
        return symbol in self._listed

    def told(self, symbol: str, window: Window) -> Told:
        """Return what the answer to a request holds."""
        calendar = calendar_for(asset_class_of(symbol))
        first = calendar.session_date(window.interval.start)
        last = calendar.session_date(window.interval.end - timedelta(microseconds=1))
        sessions = calendar.sessions(first, last + timedelta(days=1))
        parts = [sessions] if self._recorded else _sampled(sessions)
        found = [self._bars(symbol, window, part) for part in parts]
        looked_at = sum(_weight(window.timeframe, session) for part in parts for session in part)
        scale = sum(_weight(window.timeframe, session) for session in sessions) / looked_at if looked_at else 0.0
        rows, base = (sum(len(bars) for bars in found), sum(int(bars.base.sum()) for bars in found))
        size = sum(len(encode_bars(bars)) for bars in found)
        return Told(Rows(rows * scale, base * scale), size * scale)

    def market_day(self, day: date) -> int:
        """Return the bytes of the answer for the whole market's day bars."""
        session = calendar_for(asset_class_of("")).session_on(day)
        if session is None:
            return ANSWER_BYTES
        start, end = to_ms(session.day_start), to_ms(session.day_end)
        rows = [
            len(ticker) + len('"T":"",,') + len(encode_bars(bars))
            for ticker in self._source.tickers()
            if not ticker.startswith("X:") and len(bars := self._source.days(ticker, start, end))
        ]
        return ANSWER_BYTES + sum(rows)

    def splits(self, since: date, now: datetime) -> int:
        """Return the bytes of the answer with the market's splits from `since` on."""
        view = View(self._source, plan_named("advanced"), now)
        query = {"execution_date.gte": since.isoformat(), "limit": str(SPLITS_PAGE), "order": "asc"}
        return len(answer(view, "/v3/reference/splits", query, "").body)

    def _bars(self, symbol: str, window: Window, sessions: Sequence[Session]) -> Bars:
        start, end = (max(window.interval.start, sessions[0].day_start), min(window.interval.end, sessions[-1].day_end))
        if window.timeframe is Timeframe.D1:
            return self._source.days(symbol, to_ms(start), to_ms(end))
        return join(list(self._source.intraday(symbol, _FIVE_MINUTES_MS, to_ms(start), to_ms(end))))


def _sampled(sessions: Sequence[Session]) -> list[Sequence[Session]]:
    """Return all sessions if they are few, else a month at the beginning, in the middle and at the end."""
    first, last = sessions[0].date, sessions[-1].date
    if last - first <= _WHOLE:
        return [sessions]
    begins = (first, first + (last - first - _SAMPLE) / 2, last - _SAMPLE)
    return [[each for each in sessions if begin <= each.date < begin + _SAMPLE] for begin in begins]


def _weight(timeframe: Timeframe, session: Session) -> int:
    return 1 if timeframe is Timeframe.D1 else slot_count(timeframe, session)
