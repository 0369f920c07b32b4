"""Which session days of a fetched series to request now, and in which requests.

Pure: coverage and an instant in, a plan out. A day that is settled and stored is never requested again, a provisional
one only when the vendor may have something new.

Add here: when a day is worth a request. Keep out: how the vendor counts a request's pages (polygon.request_windows) and
sending anything (fetch).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for, from_us
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.identity import NOBODY
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.life import HABIT, usual_silence
from market_data_pipeline.domain.objectives import SETTLE_AFTER
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.plans import available_at
from market_data_pipeline.polygon.request_windows import PART_BASE_BARS, parts, windows
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.calendar import Session, SessionCalendar
    from market_data_pipeline.domain.identity import Identity
    from market_data_pipeline.domain.series import AssetClass, Series
    from market_data_pipeline.ingest.own_days import OwnDays
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.polygon.request_windows import Window

# A day whose answers are not believed is requested again by the next refresh, and then at growing intervals, each half
# as long as it has not been believed for: a fault that is mended soon is noticed soon, one that stays costs four
# requests a day. Where a second look must say the same, it comes a quarter of an hour later at the earliest.
_LONGEST_BACKOFF: Final = timedelta(hours=6)

# A day without a bar, of a symbol that trades every day, is one that the vendor lost, or a closing. Until it settles it
# is requested again this often, as far as its tier is refreshed; for three days it comes along with any other request,
# which costs none of its own.
_LOST_AGAIN_AFTER: Final = timedelta(hours=1)
_LOST_FOR: Final = timedelta(days=3)

# With the days before and after each, they still fit one page of 5m bars: 15 sessions of a page's 52 (crypto: 34).
_MOST_WITH_NEIGHBOURS: Final = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """When a session's bars are available: its calendar, the delay of the vendor's plan, and now (aware UTC).

    `available_at` maps a bar's end to the instant from which the vendor serves it; it never decreases.
    """

    calendar: SessionCalendar
    available_at: Callable[[datetime], datetime]
    now: datetime

    @classmethod
    def on(cls, plan: Plan, asset_class: AssetClass, now: datetime) -> Timing:
        """Return when bars of an asset class are available on a plan of the vendor, at `now`, aware UTC."""
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
            return from_us(starts[slot]) + base.span

        served = bisect_right(range(len(starts)), instant, key=lambda slot: self.available_at(end_of(slot)))
        return end_of(served - 1) if served else None


class Reach(NamedTuple):
    """The session days that a series should hold, ascending: those that the vendor's plan reaches, and those before.

    `oldest` is the first date that the plan reaches, None when it has no limit.
    """

    sessions: tuple[Session, ...]
    beyond: tuple[Session, ...]
    oldest: date | None = None


def reach(
    timing: Timing,
    history_days: int,
    history_limit: timedelta | None,
    held: Mapping[date, Coverage] | None = None,
    *,
    ended: date | None = None,
) -> Reach:
    """Return the sessions of the last `history_days` calendar days, today's included, on the calendar of `timing`.

    Args:
        timing: the calendar, and now.
        history_days: calendar days of history that the series should hold.
        history_limit: how far back the vendor's plan reaches, None for all.
        held: coverage by session date. What was fetched before these days, from the first stored bar on, belongs to the
            history too: it is kept correct, whatever the setting has become.
        ended: the first day on which the security was no longer listed: the days count back from there, and later ones
            only belong to it where bars are held, so that they can be cut off. None while it is.
    """
    today = timing.calendar.session_date(timing.now)
    end = today + timedelta(days=1) if ended is None else min(ended, today + timedelta(days=1))
    begin = end - timedelta(days=history_days + 1)
    sessions = timing.calendar.sessions(begin, end)
    older = {day: known for day, known in (held or {}).items() if day < begin}
    first_held = min((day for day, known in older.items() if known.rows), default=begin)
    kept = sorted(day for day, known in older.items() if day >= first_held and (known.rows or not _is_clamped(known)))
    stray = sorted(day for day, known in (held or {}).items() if day >= end and known.rows)
    sessions = (*_on(timing, kept), *sessions, *_on(timing, stray))
    first = today - history_limit if history_limit is not None else None
    beyond = tuple(session for session in sessions if first is not None and session.date < first)
    return Reach(sessions[len(beyond) :], beyond, first)


def _on(timing: Timing, days: Iterable[date]) -> Iterator[Session]:
    return (each for day in days if (each := timing.calendar.session_on(day)) is not None)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What to request of one fetched series.

    Attributes:
        series: a fetched series: `5m` or `1d`.
        timing: when bars are available, and now.
        sessions: the days that the series should hold and the vendor's plan reaches, ascending.
        coverage: of the series now, by session date.
        last_ts: start of the last stored bar, None without one.
        oldest: the first date that the vendor's plan reaches, None when it has no limit.
        days: those of `sessions` that are worth a request now.
        clamped: coverage to store for days before the history of the vendor's plan.
        others: coverage to store for days on which the ticker was another security's.
        replaced: days of which the stored bars are another security's, to be replaced by what this answer has.
        identity: the security, which had the tickers to request; None for the symbol alone.
        parts: the requests. A long history comes in several parts, each stored before the next is requested; there is
            always at least one, which is empty when there is nothing to request.
    """

    series: Series
    timing: Timing
    sessions: tuple[Session, ...]
    coverage: Mapping[date, Coverage]
    last_ts: datetime | None
    oldest: date | None
    days: tuple[Session, ...]
    clamped: tuple[Coverage, ...]
    parts: tuple[tuple[Window, ...], ...]
    others: tuple[Coverage, ...] = ()
    replaced: tuple[Session, ...] = ()
    identity: Identity | None = None

    @property
    def windows(self) -> tuple[Window, ...]:
        """The requests of all parts."""
        return tuple(window for part in self.parts for window in part)

    @property
    def has_ended(self) -> bool:
        """Whether its security is no longer listed: no more bars are expected, whoever has the ticker now."""
        ended = None if self.identity is None else self.identity.ended
        return ended is not None and ended <= self.timing.calendar.session_date(self.timing.now)

    def ticker_on(self, session: Session) -> str:
        """Return the ticker under which a day is requested."""
        return self.asked_as(session) or self.series.symbol

    def asked_as(self, session: Session) -> str | None:
        """Return the ticker under which a day is requested, None for the symbol itself, as coverage has it."""
        ticker = self.identity.ticker_on(session.date) if self.identity is not None else NOBODY
        return None if ticker in (NOBODY, self.series.symbol) else ticker


def plan_fetch(
    series: Series,
    within: Reach,
    coverage: Mapping[date, Coverage],
    timing: Timing,
    *,
    last_ts: datetime | None,
    full: bool = False,
    until: date | None = None,
    own: OwnDays | None = None,
) -> FetchPlan:
    """Return what to request of a fetched series now.

    Args:
        series: a fetched series: `5m` or `1d`.
        within: the days that it should hold.
        coverage: of the series now, by session date.
        timing: when bars are available, and now.
        last_ts: start of the last stored bar, None without one. A history that begins after it comes in parts; one that
            begins before it does not, because each part would cause all later features to be computed again.
        full: request every day again, in one part.
        until: request no day after this one, if given: no bars are expected (ingest.life).
        own: which days are the security's own, `within` and `coverage` among them; None where all are the symbol's.
    """
    identity = own.identity if own is not None else None
    sessions = within.sessions if until is None else tuple(day for day in within.sessions if day.date <= until)
    days = days_to_fetch(sessions, coverage, series.timeframe, timing, full=full)
    days = with_lost_days(days, sessions, coverage, series.timeframe, timing)
    requested = with_neighbours(days, within.sessions, coverage, series.timeframe, timing)
    made = _windows(requested, coverage, series.timeframe, timing, identity)
    in_parts = not full and made and (last_ts is None or made[0].interval.start > last_ts)
    return FetchPlan(
        series,
        timing,
        within.sessions,
        coverage,
        last_ts,
        within.oldest,
        days,
        tuple(
            Coverage(session.date, CoverageStatus.CLAMPED, 0 if known is None else known.rows, timing.now)
            for session in within.beyond
            if (known := coverage.get(session.date)) is None or (known.rows and not _is_clamped(known))
        ),
        tuple(_in_parts(made)) if in_parts else (made,),
        own.others if own is not None else (),
        own.replaced if own is not None else (),
        identity,
    )


def days_to_fetch(
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
    *,
    full: bool = False,
) -> tuple[Session, ...]:
    """Return the sessions worth a request now, ascending.

    Args:
        sessions: the days that the series should hold and the vendor's plan reaches, ascending.
        coverage: of those days, by session date.
        base: the fetched timeframe.
        timing: when bars are available, and now.
        full: return every day for which the vendor serves a bar.
    """
    return tuple(session for session in sessions if _is_due(session, coverage.get(session.date), base, timing, full))


def with_lost_days(
    days: tuple[Session, ...],
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
) -> tuple[Session, ...]:
    """Return `days` and the days of the last three that the vendor may have lost and have again by now.

    Args:
        days: those worth a request, ascending.
        sessions: the days that the series should hold and the vendor's plan reaches, ascending.
        coverage: of those days, by session date.
        base: the fetched timeframe.
        timing: when bars are available, and now.
    """
    recent = takewhile(lambda session: timing.now < session.day_end + _LOST_FOR, reversed(sessions))
    lost = {
        session.date: (session, known)
        for session in recent
        if (known := coverage.get(session.date)) is not None and _may_be_lost(session, known, base, timing)
    }
    if not lost or _goes_without(coverage, min(lost)):
        return days
    if not days and not any(
        known.fetched_at < settled_at(session) and timing.now >= known.fetched_at + _LOST_AGAIN_AFTER
        for session, known in lost.values()
    ):
        return days
    asked = {session.date: session for session in days} | {day: session for day, (session, _) in lost.items()}
    return tuple(asked[day] for day in sorted(asked))


def _may_be_lost(session: Session, known: Coverage, base: Timeframe, timing: Timing) -> bool:
    """Return whether the day is over, no answer had a bar of it, and the last one is a while ago."""
    empty = known.status in (CoverageStatus.PROVISIONAL, CoverageStatus.EMPTY_CONFIRMED) and not known.rows
    over = timing.available_at(timing.last_end(session, base)) <= timing.now
    return empty and over and not known.refused and timing.now >= known.fetched_at + SETTLE_AFTER


def _goes_without(coverage: Mapping[date, Coverage], lost: date) -> bool:
    """Return whether a series usually has whole days without a bar, or had none before the lost day."""
    held = [coverage[day].rows > 0 for day in sorted(coverage) if lost - HABIT <= day < lost]
    return not any(held) or usual_silence(held) > 0


def with_neighbours(
    days: tuple[Session, ...],
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
) -> tuple[Session, ...]:
    """Return `days` and, for each of them that is over and already has bars, the complete days next to it.

    An answer without the bars of a day is believed only when it has those of the days around it (ingest.coverage).
    The neighbours cost no request. Where many days are read again, they are each other's neighbours; none is added.
    """
    again = [session for session in days if _is_read_again(session, coverage.get(session.date), base, timing)]
    if not 0 < len(again) <= _MOST_WITH_NEIGHBOURS:
        return days
    complete = [
        session
        for session in sessions
        if (known := coverage.get(session.date)) is not None and known.status is CoverageStatus.COMPLETE and known.rows
    ]
    dates = [session.date for session in complete]
    requested = {session.date: session for session in days}
    for session in again:
        at = bisect_right(dates, session.date)
        requested |= {each.date: each for each in complete[max(at - 1, 0) : at + 1]}
    return tuple(requested[day] for day in sorted(requested))


def _is_read_again(session: Session, known: Coverage | None, base: Timeframe, timing: Timing) -> bool:
    """Return whether the day is over and already has bars; a refused one is requested apart from its neighbours."""
    if known is None or known.refused:
        return False
    return known.rows > 0 and timing.available_at(timing.last_end(session, base)) <= timing.now


def _is_due(session: Session, known: Coverage | None, base: Timeframe, timing: Timing, full: bool) -> bool:
    served = timing.served_until(session, base)
    if served is None:
        return False
    # A day that was before the plan's history is requested once a better plan reaches it.
    if full or known is None or (_is_clamped(known) and not known.rows):
        return True
    if known.status is CoverageStatus.FAILED and not known.refused:
        return True
    if known.status.final:
        return False
    fetched = known.fetched_at
    settled = settled_at(session)
    if known.doubted_at is not None and timing.now >= worth_a_request_at(known):
        return True
    if (
        fetched >= settled and known.doubted_at is None
    ):  # it settled without a bar: requested once more before it counts as empty
        return timing.now >= fetched + SETTLE_AFTER
    late_trades = timing.available_at(timing.last_end(session, base)) + SETTLE_AFTER
    return (
        timing.served_until(session, base, fetched) != served
        or fetched < late_trades <= timing.now
        or fetched < settled <= timing.now
    )


def _is_clamped(known: Coverage) -> bool:
    return known.status is CoverageStatus.CLAMPED


def worth_a_request_at(known: Coverage) -> datetime:
    """Return when to request again a day about which the last answer was not believed."""
    wait = min((known.fetched_at - (known.doubted_at or known.fetched_at)) / 2, _LONGEST_BACKOFF)
    return known.fetched_at + (wait if known.refused else max(wait, SETTLE_AFTER))


def _windows(
    days: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    timing: Timing,
    identity: Identity | None = None,
) -> tuple[Window, ...]:
    """Return the requests for `days`, up to the newest bar that is served now.

    Refused days are requested apart from the others, and so are those of another ticker. Only the last session can
    still be in progress; the vendor must serve a bar of each.
    """
    refused = {day for day, known in coverage.items() if known.refused}
    market = timing.calendar.asset_class
    by_tenure: dict[int | None, list[Session]] = {}
    for day in days:
        by_tenure.setdefault(None if identity is None else identity.tenure_on(day.date), []).append(day)
    wanted = [
        window
        for some in by_tenure.values()
        for window in (
            *windows([day for day in some if day.date not in refused], base, apart=refused, asset_class=market),
            *windows([day for day in some if day.date in refused], base, asset_class=market),
        )
    ]
    made = tuple(cut for window in sorted(wanted) for cut in _cut(window, timing))
    served = timing.served_until(days[-1], base) if days else None
    if served is None or served >= (last := made[-1]).interval.end:
        return made
    unserved = (last.interval.end - served) // timedelta(minutes=1)
    return (
        *made[:-1],
        last._replace(interval=Interval(last.interval.start, served), base_bars=last.base_bars - unserved),
    )


def _cut(window: Window, timing: Timing) -> tuple[Window, ...]:
    if window.base_bars <= PART_BASE_BARS:
        return (window,)
    first, end = (timing.calendar.session_date(instant) for instant in window.interval)
    return parts(window, timing.calendar.sessions(first, end + timedelta(days=1)), PART_BASE_BARS)


def _in_parts(made: tuple[Window, ...]) -> Iterator[tuple[Window, ...]]:
    """Yield the windows in parts of at most `PART_BASE_BARS` base bars, but of at least one window each."""
    start = total = 0
    for at, window in enumerate(made):
        total += window.base_bars
        if at > start and total > PART_BASE_BARS:
            yield made[start:at]
            start, total = at, window.base_bars
    yield made[start:]
