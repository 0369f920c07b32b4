"""What a person who knows the truth would say of each series at any instant of the nine nights.

The truth comes from the scenario and the calendar's sessions alone. A bar is MISSING at an instant when it is due, is
not held, and either exists, or no later bar of its symbol is held, so that nobody can know yet that it does not exist.
A series has been behind since its first missing bar was due. Where even an attentive person could not decide yet, for
example whether a silent day was a closing, several answers are right.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

from market_data_pipeline_tests.domain.strategies import EQUITIES, new_york

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.sandbox.scenario import Scenario, Withheld

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
GRACE: Final = 2 * MINUTE  # a bar is due two minutes after its end
FRESH, AGING, STALE = "FRESH", "AGING", "STALE"
STATES: Final = (FRESH, AGING, STALE)  # from best to worst
ANY: Final = frozenset(STATES)
SPANS: Final = {"5m": 5 * MINUTE, "15m": 15 * MINUTE, "1h": HOUR, "4h": 4 * HOUR}

# A closed day is a closed day once it has settled, at 11:00 of the next, and a second look a quarter of an hour later
# found nothing either; the refresh after that says so.
SURE_AFTER: Final = timedelta(hours=35, minutes=30)  # after the midnight that begins the day


@dataclass(frozen=True)
class Slot:
    """A bar that the calendar expects, and what became of it."""

    start: datetime
    end: datetime
    exists: bool
    last_trade: datetime | None  # start of its last 5-minute bar
    day: date
    shown_from: datetime  # from when the vendor serves it, if it exists


@dataclass
class Truth:
    """The truth about one symbol, asked at instants that only move forward.

    Attributes:
        symbol: which.
        scenario: what happens.
        sessions: the calendar's, ascending, from a few days before the nights on.
        thin: it often goes an hour or a morning without a trade, so silence says nothing before the session ends.
        looks: the instants at which it was refreshed, ascending; the replay adds them.
    """

    symbol: str
    scenario: Scenario
    sessions: Sequence[Session]
    thin: bool = False
    looks: list[datetime] = field(default_factory=list)
    _first_open: dict[str, int] = field(default_factory=dict)
    _held: tuple[int, datetime | None] = (0, None)  # after how many looks, and `_last_held` then

    def allowed(self, timeframe: str, now: datetime) -> frozenset[str]:
        """Return the states that are right for a series at `now`."""
        if self.is_delisted(now):
            return ANY  # no longer judged by its freshness
        if self.thin and self.someone_is_silent(now):
            return ANY - ({FRESH} if self.lost_for_long(now) else set())
        surely, perhaps = self._behind_since(timeframe, now)
        if self.thin:
            return frozenset({FRESH})
        best = STATES.index(state(now - surely) if surely is not None else FRESH)
        worst = STATES.index(state(now - perhaps) if perhaps is not None else FRESH)
        return frozenset(STATES[best : worst + 1])

    def is_delisted(self, now: datetime) -> bool:
        """Return whether the symbol's last day is over."""
        return any(
            event.ticker == self.symbol and now >= EQUITIES.midnight(event.last + timedelta(days=1))
            for event in self.scenario.delistings
        )

    def someone_is_silent(self, now: datetime) -> bool:
        """Return whether the whole market is silent, or was so until lately."""
        closed = [EQUITIES.midnight(day) for day in self._closed_days]
        return any(start <= now < start + SURE_AFTER for start in closed) or any(
            event.start <= now < self.recovered(event.until) for event in self._lost
        )

    def lost_for_long(self, now: datetime) -> bool:
        """Return whether the vendor has lost a whole day of everything, and has not got it back yet."""
        return any(
            event.until is not None and event.start + timedelta(hours=27) <= now < event.until for event in self._lost
        )

    @staticmethod
    def recovered(until: datetime | None) -> datetime:
        """Return by when lost days that the vendor has again at `until` must be held: when the last one settles."""
        assert until is not None
        noon = EQUITIES.midnight(EQUITIES.session_date(until)) + timedelta(hours=11, minutes=45)
        return max(until, noon)

    @cached_property
    def _closed_days(self) -> frozenset[date]:
        return self.scenario.closed_days

    @cached_property
    def _lost(self) -> list[Withheld]:
        return [event for event in self.scenario.withheld if not event.tickers and event.every == 1]

    def _behind_since(self, timeframe: str, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return since when the series is behind: as far as is certain, and at the earliest that may be said."""
        last_held = self._last_held()
        slots, first = self._slots(timeframe), self._first_open.get(timeframe, 0)
        perhaps = None
        for at in range(first, len(slots)):
            due = slots[at].end + GRACE
            if due > now:
                break
            verdict = self._missing(slots[at], timeframe, now, last_held)
            if not verdict and at == first:
                self._first_open[timeframe] = first = at + 1  # time only moves forward: what is held stays so
            if verdict and perhaps is None:
                perhaps = due
            if verdict == "surely":
                return due, perhaps
        return None, perhaps

    def _missing(self, slot: Slot, timeframe: str, now: datetime, last_held: datetime | None) -> str:
        """Return "surely", "perhaps", or nothing for a bar that is held or explained."""
        if slot.day in self._closed_days:
            midnight = EQUITIES.midnight(slot.day)
            if now >= midnight + SURE_AFTER:
                return ""
            # When trading goes on after it, a person begins to believe in a closing.
            return "perhaps" if now >= midnight + timedelta(hours=24) else "surely"
        if not slot.exists:
            return "" if last_held is not None and last_held >= slot.start else "surely"
        shown_from = slot.shown_from
        if self.looks and self.looks[-1] >= max(slot.end, shown_from):
            if timeframe in SPANS and not self._is_whole(slot, timeframe, last_held):
                return "surely"
            return "perhaps" if shown_from > slot.end and now < self.recovered(shown_from) else ""
        # Once it has settled and trading goes on after it, even a person cannot tell a lost day from a closing.
        believed = EQUITIES.midnight(slot.day) + SURE_AFTER
        return "perhaps" if now >= believed and last_held is not None and last_held >= slot.end else "surely"

    def _is_whole(self, slot: Slot, timeframe: str, last_held: datetime | None) -> bool:
        """Return whether nothing more can come for a coarse bar: its last 5 minutes, or later ones, had a trade."""
        assert slot.last_trade is not None
        return timeframe == "5m" or slot.last_trade + 5 * MINUTE >= slot.end or (last_held or slot.start) >= slot.end

    def _slot(self, day: date, start: datetime, end: datetime, last_trade: datetime | None, *, exists: bool) -> Slot:
        shown_from = end
        for event in self._lost:
            if event.start <= start < event.end and event.until is not None:
                shown_from = event.until
                break
        return Slot(start, end, exists, last_trade, day, shown_from)

    def _last_held(self) -> datetime | None:
        """Return the start of the newest 5-minute bar that was served at a look."""
        if self._held[0] != len(self.looks):
            self._held = len(self.looks), self._newest_held()
        return self._held[1]

    def _newest_held(self) -> datetime | None:
        slots, last_look = self._slots("5m"), self.looks[-1]
        for at in range(bisect_right(slots, last_look, key=lambda slot: slot.end) - 1, -1, -1):
            if slots[at].exists and slots[at].shown_from <= last_look:
                return slots[at].start
        return None

    def _slots(self, timeframe: str) -> list[Slot]:
        return self._by_timeframe[timeframe]

    @cached_property
    def _by_timeframe(self) -> dict[str, list[Slot]]:
        found: dict[str, list[Slot]] = {name: [] for name in (*SPANS, "1d")}
        for session in self.sessions:
            if not self._is_listed(session.date):
                continue
            five = [start for start in _steps(session, SPANS["5m"]) if self._trades_at(session, start)]
            for name, span in SPANS.items():
                for start in _steps(session, span):
                    inside = [trade for trade in five if start <= trade < start + span]
                    last = inside[-1] if inside else None
                    found[name].append(self._slot(session.date, start, start + span, last, exists=bool(inside)))
            traded = session.date not in self._closed_days
            found["1d"].append(self._slot(session.date, session.day_start, session.day_end, None, exists=traded))
        return found

    def _is_listed(self, day: date) -> bool:
        return all(day >= event.first for event in self.scenario.listings if event.ticker == self.symbol) and all(
            day <= event.last for event in self.scenario.delistings if event.ticker == self.symbol
        )

    def _trades_at(self, session: Session, start: datetime) -> bool:
        if session.date in self._closed_days:
            return False
        return not any(event.start <= start < event.end for event in self.scenario.halts if event.ticker == self.symbol)


def state(staleness: timedelta) -> str:
    """Return the state of the contract: fresh up to 1 hour, aging up to 6, stale beyond."""
    return FRESH if staleness <= HOUR else AGING if staleness <= 6 * HOUR else STALE


def _steps(session: Session, span: timedelta) -> list[datetime]:
    """Return the starts of a session's bars: a 4-hour bar may end after an early close."""
    starts, at = [], session.start
    while at < session.end:
        starts.append(at)
        at += span
    return starts


def at(text: str) -> datetime:
    """Return a New York wall-clock time of the nights, such as `10 12:15`, in UTC."""
    day, clock = text.split()
    return new_york(f"2026-11-{int(day):02d} {clock}").astimezone(UTC)
