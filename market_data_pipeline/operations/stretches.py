"""Every stretch of a fetched series' history in which it holds no bar, and why.

Pure: calendar, coverage and the bars' starts in, stretches out; over whole arrays, because a year has 48,000 slots.
Nights and weekends are no stretches: nobody misses them. Add here: a reason. Keep out: reading the ledger and wording
(gaps).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.due import settled_at
from market_data_pipeline.domain.instants import from_us, to_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.domain.sessions import slot_count
from market_data_pipeline.store.ledger import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from market_data_pipeline.domain.sessions import Session, SessionCalendar
    from market_data_pipeline.ingest.demand import Reach, Timing


class Reason(StrEnum):
    """Why there is no bar."""

    NO_SESSION = "no_session"  # a holiday within the week
    EARLY_CLOSE = "early_close"
    NOT_DUE = "not_due"  # the plan does not serve it yet
    PROVISIONAL = "provisional"  # the vendor gave none so far; asked again until the day settles
    VENDOR_NONE = "vendor_none"  # the vendor gave none, and the day has settled
    BEFORE_PLAN = "before_plan"  # before the plan's history
    FAILED = "failed"
    NEVER_ASKED = "never_asked"  # not yet, or not since the last refresh of a day in progress


class Stretch(NamedTuple):
    """A stretch without bars.

    Attributes:
        start: first missing slot, aware UTC.
        end: end of the last one, exclusive.
        bars: missing slots; 0 where none can exist.
        reason: why.
        day: the session that it begins in.
        asked_at: when the vendor last answered, or failed to, about the (first) day; None when it was not asked.
    """

    start: datetime
    end: datetime
    bars: int
    reason: Reason
    day: date
    asked_at: datetime | None


_DAY: Final = timedelta(days=1)
_FRIDAY: Final = 4
_BY_STATUS: Final = {
    CoverageStatus.COMPLETE: Reason.VENDOR_NONE,
    CoverageStatus.EMPTY_CONFIRMED: Reason.VENDOR_NONE,
    CoverageStatus.CLAMPED: Reason.BEFORE_PLAN,
    CoverageStatus.FAILED: Reason.FAILED,
    CoverageStatus.PROVISIONAL: Reason.PROVISIONAL,
}
_REASONS: Final = tuple(Reason)


def stretches(
    base: Timeframe,
    reach: Reach,
    coverage: Mapping[date, Coverage],
    held_us: np.ndarray,
    timing: Timing,
    *,
    failing: bool = False,
) -> list[Stretch]:
    """Return all stretches from the start of the history to now, ascending.

    Args:
        base: the fetched timeframe.
        reach: the days that the series should hold.
        coverage: what is known of them.
        held_us: starts of the bars that are held, int64 microseconds since 1970 UTC, ascending.
        timing: calendar, plan and the instant it is now.
        failing: the last execution of the series failed; what nobody asked for then failed with it.
    """
    sessions = (*reach.beyond, *reach.sessions)
    if not sessions:
        return []
    known = [coverage.get(session.date) for session in sessions]
    found = _merged(_missing(base, sessions, known, held_us, timing, len(reach.beyond), failing=failing), sessions)
    found += _closed(base, sessions, timing)
    return sorted(found)


def _missing(
    base: Timeframe,
    sessions: Sequence[Session],
    known: Sequence[Coverage | None],
    held_us: np.ndarray,
    timing: Timing,
    beyond: int,
    *,
    failing: bool,
) -> Iterator[Stretch]:
    """Yield the runs of empty slots, each within one session and with one reason."""
    import numpy as np

    slots = timing.calendar.slots_between(base, Interval(sessions[0].day_start, timing.now))
    starts = np.array([to_us(session.day_start) for session in sessions], dtype="int64")
    at = np.searchsorted(starts, slots, side="right") - 1
    reasons = np.empty(len(slots), dtype="int8")
    bounds = np.searchsorted(slots, np.append(starts, to_us(timing.now)))
    for i, (session, day) in enumerate(zip(sessions, known, strict=True)):
        low, high = int(bounds[i]), int(bounds[i + 1])
        reasons[low:high] = _number(_reason(day, failing=failing, beyond=i < beyond))
        if day is not None and day.status is CoverageStatus.PROVISIONAL:
            since = low + _served(base, session, slots[low:high], timing, day.fetched_at)
            reasons[since:high] = _number(Reason.FAILED if failing else Reason.NEVER_ASKED)
        if i >= beyond and timing.available_at(timing.last_end(session, base)) > timing.now:
            reasons[low + _served(base, session, slots[low:high], timing, timing.now) : high] = _number(Reason.NOT_DUE)
    empty = np.flatnonzero(~np.isin(slots, held_us, assume_unique=True))
    if not len(empty):
        return
    breaks = (np.diff(empty) != 1) | (np.diff(at[empty]) != 0) | (np.diff(reasons[empty]) != 0)
    first = empty[np.r_[True, breaks]]
    last = empty[np.r_[breaks, True]]
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        session, day = sessions[at[low]], known[at[low]]
        end = session.day_end if base is Timeframe.D1 else from_us(int(slots[high])) + base.span
        asked_at = None if day is None else day.fetched_at
        yield Stretch(from_us(int(slots[low])), end, high - low + 1, _REASONS[reasons[low]], session.date, asked_at)


def _reason(day: Coverage | None, *, failing: bool, beyond: bool) -> Reason:
    if day is not None and (beyond or day.status is not CoverageStatus.CLAMPED):
        return _BY_STATUS[day.status]
    if beyond:
        return Reason.BEFORE_PLAN
    return Reason.FAILED if failing else Reason.NEVER_ASKED


def _number(reason: Reason) -> int:
    return _REASONS.index(reason)


def _served(base: Timeframe, session: Session, slots: np.ndarray, timing: Timing, instant: datetime) -> int:
    """Return how many of the session's slots were served at `instant`."""
    until = timing.served_until(session, base, instant)
    return 0 if until is None else int(slots.searchsorted(to_us(until)))


def _merged(runs: Iterator[Stretch], sessions: Sequence[Session]) -> list[Stretch]:
    """Join whole missing sessions, and the beginning of the next one, where the same is to be said of them."""
    order = {session.date: number for number, session in enumerate(sessions)}
    merged: list[Stretch] = []
    whole_until = None  # the session with which the last stretch ends, if it is missing whole
    for run in runs:
        number = order[run.day]
        session = sessions[number]
        opens = run.start in (session.start, session.day_start)
        if opens and whole_until == number - 1 and _alike(merged[-1], run, session):
            merged[-1] = merged[-1]._replace(end=run.end, bars=merged[-1].bars + run.bars)
        else:
            merged.append(run)
        whole_until = number if opens and run.end in (session.end, session.day_end) else None
    return merged


def _alike(before: Stretch, run: Stretch, session: Session) -> bool:
    if before.reason is not run.reason:
        return False
    if run.reason is Reason.BEFORE_PLAN or before.asked_at is None or run.asked_at is None:
        return run.reason is Reason.BEFORE_PLAN or before.asked_at is run.asked_at
    # Provisional days settle one by one; once settled they wait for their second look together.
    together = run.reason is not Reason.PROVISIONAL or settled_at(session) <= run.asked_at
    return together and before.asked_at.date() == run.asked_at.date()


def _closed(base: Timeframe, sessions: Sequence[Session], timing: Timing) -> Iterator[Stretch]:
    """Yield the holidays that interrupt a week and the hours after an early close."""
    calendar = timing.calendar
    today = calendar.session_date(timing.now)
    trading = {session.date for session in sessions}
    day = sessions[0].date
    while calendar.asset_class is AssetClass.US_EQUITY and day <= today:
        if day.weekday() <= _FRIDAY and day not in trading:
            yield Stretch(calendar.midnight(day), calendar.midnight(day + _DAY), 0, Reason.NO_SESSION, day, None)
        day += _DAY
    if base is Timeframe.D1:
        return
    for session in sessions:
        cut = calendar.full_slot_count(base) - slot_count(base, session)
        if cut and session.end < timing.now:
            yield Stretch(session.end, session.end + cut * base.span, 0, Reason.EARLY_CLOSE, session.date, None)


def weekends(calendar: SessionCalendar, first: date, last: date) -> int:
    """Return how many Saturdays without a session lie in [first, last]."""
    if calendar.asset_class is not AssetClass.US_EQUITY:
        return 0
    saturday = first + (5 - first.weekday()) % 7 * _DAY
    return max((last - saturday).days // 7 + 1, 0)
