"""What really happens to one symbol, drawn at random, and the truth about it that a person would state.

The calendar does not know of it: unscheduled closings, the symbol's first and last day, halts, and how often it trades.
Nothing here uses the code under test, except for the calendar's sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from market_data_pipeline_tests.domain.strategies import EQUITIES

if TYPE_CHECKING:
    from market_data_pipeline.domain.calendar import Session

FIVE_MINUTES = timedelta(minutes=5)


class Day(StrEnum):
    """What a session of the calendar was for the symbol."""

    TRADED = "traded"
    QUIET = "quiet"  # open, and nobody traded
    CLOSED = "closed"  # nobody could trade anything
    HALTED = "halted"  # nobody could trade this symbol all day
    UNLISTED = "unlisted"
    DELISTED = "delisted"


@dataclass(frozen=True)
class Life:
    """One symbol's life within some sessions.

    Attributes:
        sessions: as the calendar has them, ascending.
        closed: dates on which the whole market was closed.
        first: the first day of the symbol.
        end: the first day on which it is no longer listed; None while it is.
        halts: intervals [start, end) without a trade.
        habit: the part of a day's 5-minute slots in which it trades.
        seed: decides in which.
    """

    sessions: tuple[Session, ...]
    closed: frozenset[date]
    first: date
    end: date | None
    halts: tuple[tuple[datetime, datetime], ...]
    habit: float
    seed: int

    def bars_on(self, session: Session) -> list[datetime]:
        """Return the starts of the day's 5-minute bars."""
        day = session.date
        if day in self.closed or day < self.first or (self.end is not None and day >= self.end):
            return []
        slots = [session.start + at * FIVE_MINUTES for at in range((session.end - session.start) // FIVE_MINUTES)]
        dice = np.random.default_rng([self.seed, day.toordinal()])
        trades = dice.random(len(slots)) < self.habit
        return [
            slot
            for slot, traded in zip(slots, trades, strict=True)
            if traded and not any(start <= slot < end for start, end in self.halts)
        ]

    def bars(self, until: datetime | None = None) -> list[datetime]:
        """Return the starts of all 5-minute bars that are over at `until`, ascending."""
        starts = [start for session in self.sessions for start in self.bars_on(session)]
        return [start for start in starts if until is None or start + FIVE_MINUTES <= until]

    def day(self, session: Session) -> Day:
        """Return what a session was for the symbol."""
        if session.date < self.first:
            return Day.UNLISTED
        if self.end is not None and session.date >= self.end:
            return Day.DELISTED
        if session.date in self.closed:
            return Day.CLOSED
        if self.bars_on(session):
            return Day.TRADED
        whole = any(start <= session.start and session.end <= end for start, end in self.halts)
        return Day.HALTED if whole else Day.QUIET


@st.composite
def closings(draw: st.DrawFn, sessions: tuple[Session, ...], most: int = 2) -> frozenset[date]:
    """At most so many unscheduled closings among the sessions; often none."""
    return frozenset(draw(st.sets(st.sampled_from([session.date for session in sessions]), max_size=most)))


@st.composite
def lives(
    draw: st.DrawFn,
    *,
    sessions: tuple[Session, ...] | None = None,
    closed: frozenset[date] | None = None,
    habits: tuple[float, ...] = (1.0, 0.5, 0.03),
) -> Life:
    """A symbol's life within some weeks.

    Args:
        draw: Hypothesis' own.
        sessions: as the calendar has them; by default those of 5 to 25 days in a random year.
        closed: unscheduled closings, where several symbols share them; drawn by default.
        habits: how often it may trade.
    """
    if sessions is None:
        start = draw(st.dates(date(2023, 2, 1), date(2026, 11, 1)))
        sessions = EQUITIES.sessions(start, start + timedelta(days=draw(st.integers(7, 35))))
    if closed is None:
        closed = draw(closings(sessions))
    at = st.integers(0, len(sessions) - 1)
    first = sessions[draw(at)].date if draw(st.booleans()) else sessions[0].date
    last = sessions[draw(at)].date if draw(st.integers(0, 3)) == 0 else None
    end = last if last is not None and last > first else None
    halts = []
    for _ in range(draw(st.integers(0, 2))):
        session = sessions[draw(at)]
        if draw(st.booleans()):
            halts.append((session.day_start, session.day_end))
        else:
            began = session.start + draw(st.integers(0, 180)) * FIVE_MINUTES
            halts.append((began, began + draw(st.integers(1, 72)) * FIVE_MINUTES))
    return Life(
        sessions, closed, first, end, tuple(halts), draw(st.sampled_from(habits)), draw(st.integers(0, 2**32 - 1))
    )
