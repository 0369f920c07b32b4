"""Which session days of a fetched series are to be asked for now.

Pure: coverage and an instant in, days out. Nothing expected, nothing asked: a day that is settled and held is never
asked for again, a provisional one only when the vendor can have something new.

Add here: when a day is worth a request. Keep out: how many requests that takes (polygon.windows).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.plans import available_at
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.calendar import Session, SessionCalendar
    from market_data_pipeline.domain.series import AssetClass
    from market_data_pipeline.polygon.plans import Plan

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# With a day on either side of each they still fit one page of 5-minute bars: 15 sessions of 52 (crypto: of 34).
_WITNESSED: Final = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """When a session's bars can be had: its calendar, the plan's delay, and the instant it is now (aware UTC).

    `available_at` maps a bar's end to the instant from which the vendor serves it; it never decreases.
    """

    calendar: SessionCalendar
    available_at: Callable[[datetime], datetime]
    now: datetime

    @classmethod
    def on(cls, plan: Plan, asset_class: AssetClass, now: datetime) -> Timing:
        """Return when bars of an asset class can be had on a plan of the vendor, at `now`, aware UTC."""
        calendar = calendar_for(asset_class)
        return cls(calendar, lambda end: available_at(plan, calendar, end), now)

    @staticmethod
    def last_end(session: Session, base: Timeframe) -> datetime:
        """Return the end of the session's last bar."""
        return session.day_end if base is Timeframe.D1 else session.end

    def served_until(self, session: Session, base: Timeframe, instant: datetime | None = None) -> datetime | None:
        """Return the end of the session's newest bar that is served at `instant` (now), or None when none is."""
        instant = instant or self.now
        last_end = self.last_end(session, base)
        if self.available_at(last_end) <= instant:
            return last_end
        if base is Timeframe.D1:
            return None
        starts = self.calendar.slots_us(base, session)

        def end_of(slot: int) -> datetime:
            return _EPOCH + timedelta(microseconds=int(starts[slot])) + base.span

        served = bisect_right(range(len(starts)), instant, key=lambda slot: self.available_at(end_of(slot)))
        return end_of(served - 1) if served else None


class Reach(NamedTuple):
    """The session days that a series should hold, ascending: those that the plan reaches, and those before them."""

    sessions: tuple[Session, ...]
    beyond: tuple[Session, ...]


def reach(timing: Timing, history_days: int, history_limit: timedelta | None) -> Reach:
    """Return the sessions of the last `history_days` calendar days, today's included, on the calendar of `timing`.

    Args:
        timing: the calendar, and the instant it is now.
        history_days: calendar days of history that the series should hold.
        history_limit: how far back the plan reaches, None for all.
    """
    today = timing.calendar.session_date(timing.now)
    sessions = timing.calendar.sessions(today - timedelta(days=history_days), today + timedelta(days=1))
    first = today - history_limit if history_limit is not None else None
    beyond = tuple(session for session in sessions if first is not None and session.date < first)
    return Reach(sessions[len(beyond) :], beyond)


def wanted(
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
    *,
    full: bool = False,
) -> tuple[Session, ...]:
    """Return the sessions worth a request now, ascending.

    Args:
        sessions: the days that the series should hold and the plan reaches, ascending.
        coverage: what is known of them.
        base: the fetched timeframe.
        timing: when bars can be had.
        full: ask for every day again that has a bar to give.
    """
    return tuple(session for session in sessions if _is_wanted(session, coverage.get(session.date), base, timing, full))


def with_witnesses(
    days: tuple[Session, ...],
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
) -> tuple[Session, ...]:
    """Return the wanted `days`, and beside each that is over and held already the complete ones next to it.

    An answer without the bars of a day is believed only when it has those of the days around it (covering). They cost
    no request: where many days are read again they are each other's witnesses, and none is added.
    """
    again = [session for session in days if _is_read_again(session, coverage.get(session.date), base, timing)]
    if not 0 < len(again) <= _WITNESSED:
        return days
    complete = [
        session
        for session in sessions
        if (known := coverage.get(session.date)) is not None and known.status is CoverageStatus.COMPLETE and known.rows
    ]
    dates = [session.date for session in complete]
    asked = {session.date: session for session in days}
    for session in again:
        at = bisect_right(dates, session.date)
        asked |= {each.date: each for each in complete[max(at - 1, 0) : at + 1]}
    return tuple(asked[day] for day in sorted(asked))


def _is_read_again(session: Session, known: Coverage | None, base: Timeframe, timing: Timing) -> bool:
    """Return whether bars are held of a day that is over."""
    return known is not None and known.rows > 0 and timing.available_at(timing.last_end(session, base)) <= timing.now


def _is_wanted(session: Session, known: Coverage | None, base: Timeframe, timing: Timing, full: bool) -> bool:
    served = timing.served_until(session, base)
    if served is None:
        return False
    # A day once before the plan's history is asked for when a better plan reaches it.
    if full or known is None or known.status in (CoverageStatus.FAILED, CoverageStatus.CLAMPED):
        return True
    if known.status.final:
        return False
    asked = known.fetched_at
    settled = settled_at(session)
    if asked >= settled:  # it settled without a bar: one more look before it counts as empty
        return timing.now >= asked + SETTLE_AFTER
    late_trades = timing.available_at(timing.last_end(session, base)) + SETTLE_AFTER
    return (
        timing.served_until(session, base, asked) != served
        or asked < late_trades <= timing.now
        or asked < settled <= timing.now
    )


def status_after(
    session: Session, rows: int, known: Coverage | None, timing: Timing, *, cut: bool = False
) -> CoverageStatus:
    """Return how well a session is held after an answer that was asked for at `timing.now`.

    Args:
        session: the day.
        rows: bars that the answer has for it.
        known: what was known of it before.
        timing: when it was asked.
        cut: the answer ends with this day though it was asked for more, as one does that lost its next page.
    """
    settled = settled_at(session)
    if timing.now < settled:
        return CoverageStatus.PROVISIONAL
    second_look = known is not None and known.status is CoverageStatus.PROVISIONAL and known.fetched_at >= settled
    if rows:
        return CoverageStatus.PROVISIONAL if cut and not second_look else CoverageStatus.COMPLETE
    return CoverageStatus.EMPTY_CONFIRMED if second_look else CoverageStatus.PROVISIONAL
