"""Every gap in a fetched series' history, and why there is no bar.

Computed on whole arrays, because a year has 48,000 slots. Nights and weekends are not gaps: no bars are expected there.
Add here: a reason. Keep out: which days are requested because of a gap (ingest.fetch_plan).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from market_data_pipeline.domain.calendar import calendar_for, from_us, slot_count, to_us
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.identity import NOBODY
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Tier, Timeframe, asset_class_of
from market_data_pipeline.ingest.fetch_plan import Timing, reach, worth_a_request_at
from market_data_pipeline.polygon.plans import plan_named
from market_data_pipeline.reports.models import GapCount, GapReport, GapsReport, SeriesGaps
from market_data_pipeline.reports.securities import ended_on
from market_data_pipeline.store.connection import snapshot
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline.store.universe import select_followed

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    import numpy as np

    from market_data_pipeline.domain.calendar import Session, SessionCalendar
    from market_data_pipeline.ingest.fetch_plan import Reach
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.settings import Settings


class Reason(StrEnum):
    """Why there is no bar."""

    NO_SESSION = "no_session"  # a holiday within the week
    EARLY_CLOSE = "early_close"
    ANNOUNCED = "announced"  # a closing that the vendor announced and the calendar does not know
    NOT_DUE = "not_due"  # the plan does not serve it yet
    PROVISIONAL = "provisional"  # the vendor gave none so far; requested again until the day settles
    VENDOR_NONE = "vendor_none"  # the vendor gave none, and the day has settled
    BEFORE_FIRST = "before_first"  # before the first bar that the vendor has
    OTHER_SECURITY = "other_security"  # the ticker was another security, or none, on that day
    BEFORE_PLAN = "before_plan"  # before the plan's history
    NOT_EXPECTED = "not_expected"  # after the last bar of a series that is halted or delisted
    FAILED = "failed"
    NEVER_ASKED = "never_asked"  # not yet, or not since the last refresh of a day in progress


class Gap(NamedTuple):
    """A stretch of time without bars.

    Attributes:
        start: first missing slot, aware UTC.
        end: end of the last one, exclusive.
        bars: missing slots; 0 where none can exist.
        reason: why.
        day: date of the session that it begins in.
        asked_at: when the vendor last answered, or failed to, about the first day; None when it was never asked.
        refused: why its answer about the day was refused, with the row; None otherwise.
        retry_at: when a refused day is worth another request.
    """

    start: datetime
    end: datetime
    bars: int
    reason: Reason
    day: date
    asked_at: datetime | None
    refused: str | None = None
    retry_at: datetime | None = None


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


def find_gaps(
    base: Timeframe,
    reach: Reach,
    coverage: Mapping[date, Coverage],
    held_us: np.ndarray,
    timing: Timing,
    *,
    failing: bool = False,
    ended: bool = False,
    closed: Container[date] = (),
) -> list[Gap]:
    """Return all gaps from the start of the history to now, ascending.

    Args:
        base: the fetched timeframe.
        reach: the days that the series should hold.
        coverage: what is known of them.
        held_us: starts of the bars that are held, int64 microseconds since 1970 UTC, ascending.
        timing: calendar, plan and the instant it is now.
        failing: whether the last execution of the series failed; what it then did not request counts as failed.
        ended: whether no more bars of the series are expected.
        closed: session dates on which the market was closed, as the vendor announced.
    """
    sessions = (*reach.beyond, *reach.sessions)
    if not sessions:
        return []
    known = [coverage.get(session.date) for session in sessions]
    missing = _missing(base, sessions, known, held_us, timing, len(reach.beyond), failing=failing, ended=ended)
    found = _merged((_announced(gap, closed) for gap in missing), sessions)
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
    ended: bool,
) -> Iterator[Gap]:
    """Yield the runs of empty slots, each within one session and with one reason."""
    import numpy as np

    until = min(timing.now, sessions[-1].day_end)
    slots = timing.calendar.slots_between(base, Interval(sessions[0].day_start, until))
    _, slot, count = timing.calendar.expected_slot_index(base, slots)
    slots = slots[((slot >= 0) & (slot < count)) | np.isin(slots, held_us, assume_unique=True)]
    starts = np.array([to_us(session.day_start) for session in sessions], dtype="int64")
    at = np.searchsorted(starts, slots, side="right") - 1
    reasons = np.empty(len(slots), dtype="int8")
    bounds = np.searchsorted(slots, np.append(starts, to_us(until)))
    first_held = int(slots.searchsorted(held_us[0])) if len(held_us) else 0
    for i, (session, day) in enumerate(zip(sessions, known, strict=True)):
        low, high = int(bounds[i]), int(bounds[i + 1])
        reasons[low:high] = _number(_reason(day, failing=failing, beyond=i < beyond))
        if day is not None and day.status is CoverageStatus.PROVISIONAL and not day.refused:
            since = low + _served(base, session, slots[low:high], timing, day.fetched_at)
            reasons[since:high] = _number(Reason.FAILED if failing else Reason.NEVER_ASKED)
        if i >= beyond and timing.available_at(timing.last_end(session, base)) > timing.now:
            reasons[low + _served(base, session, slots[low:high], timing, timing.now) : high] = _number(Reason.NOT_DUE)
        if day is not None and day.ticker == NOBODY:
            reasons[low:high] = _number(Reason.OTHER_SECURITY)
        elif day is not None and day.status is CoverageStatus.EMPTY_CONFIRMED and high <= first_held:
            reasons[low:high] = _number(Reason.BEFORE_FIRST)
    if ended:
        reasons[slots > (held_us[-1] if len(held_us) else -1)] = _number(Reason.NOT_EXPECTED)
    empty = np.flatnonzero(~np.isin(slots, held_us, assume_unique=True))
    if not len(empty):
        return
    breaks = (np.diff(empty) != 1) | (np.diff(at[empty]) != 0) | (np.diff(reasons[empty]) != 0)
    first = empty[np.r_[True, breaks]]
    last = empty[np.r_[breaks, True]]
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        session, day = sessions[at[low]], known[at[low]]
        end = session.day_end if base is Timeframe.D1 else from_us(int(slots[high])) + base.span
        gap = Gap(from_us(int(slots[low])), end, high - low + 1, _REASONS[reasons[low]], session.date, None)
        if day is not None:
            gap = gap._replace(asked_at=day.fetched_at)
        if day is not None and day.refused:
            gap = gap._replace(refused=day.reason, retry_at=worth_a_request_at(day))
        yield gap


def _announced(gap: Gap, closed: Container[date]) -> Gap:
    """Return the gap with the market's closing as its reason, if that explains it."""
    unexplained = gap.reason in (Reason.PROVISIONAL, Reason.VENDOR_NONE, Reason.NEVER_ASKED)
    return gap._replace(reason=Reason.ANNOUNCED) if unexplained and gap.day in closed else gap


def _reason(day: Coverage | None, *, failing: bool, beyond: bool) -> Reason:
    if day is not None and day.refused:
        return Reason.FAILED
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


def _merged(runs: Iterator[Gap], sessions: Sequence[Session]) -> list[Gap]:
    """Join gaps of whole sessions, and of the beginning of the next one, that have the same explanation."""
    order = {session.date: number for number, session in enumerate(sessions)}
    merged: list[Gap] = []
    whole_until = None  # the session with which the last gap ends, if all of it is missing
    for run in runs:
        number = order[run.day]
        session = sessions[number]
        opens = run.start in (session.expected_start, session.day_start)
        if opens and whole_until == number - 1 and _alike(merged[-1], run, session):
            merged[-1] = merged[-1]._replace(end=run.end, bars=merged[-1].bars + run.bars)
        else:
            merged.append(run)
        whole_until = number if opens and run.end in (session.expected_end, session.day_end) else None
    return merged


def _alike(before: Gap, run: Gap, session: Session) -> bool:
    if before.reason is not run.reason or before.refused != run.refused:
        return False
    if run.reason in (Reason.BEFORE_FIRST, Reason.NOT_EXPECTED, Reason.OTHER_SECURITY):
        return True
    if run.reason is Reason.BEFORE_PLAN or before.asked_at is None or run.asked_at is None:
        return run.reason is Reason.BEFORE_PLAN or before.asked_at is run.asked_at
    # Provisional days settle one by one; once settled they wait together for their second request.
    together = run.reason is not Reason.PROVISIONAL or settled_at(session) <= run.asked_at
    return together and before.asked_at.date() == run.asked_at.date()


def _closed(base: Timeframe, sessions: Sequence[Session], timing: Timing) -> Iterator[Gap]:
    """Yield the holidays that interrupt a week and the hours after an early close."""
    calendar = timing.calendar
    today = _last_day(sessions, timing)
    trading = {session.date for session in sessions}
    day = sessions[0].date
    while calendar.asset_class.market.keeps_exchange_days and day <= today:
        if day.weekday() <= _FRIDAY and day not in trading:
            yield Gap(calendar.midnight(day), calendar.midnight(day + _DAY), 0, Reason.NO_SESSION, day, None)
        day += _DAY
    if base is Timeframe.D1:
        return
    for session in sessions:
        if session.early_close and session.end < timing.now:
            cut = calendar.full_slot_count(base) - slot_count(base, session)
            end = session.expected_end
            yield Gap(end, end + cut * base.span, 0, Reason.EARLY_CLOSE, session.date, None)


def _last_day(sessions: Sequence[Session], timing: Timing) -> date:
    """Return today, or the last day of a history that ended before the last week."""
    today = timing.calendar.session_date(timing.now)
    return sessions[-1].date if today - sessions[-1].date > 7 * _DAY else today


def _weekends(calendar: SessionCalendar, first: date, last: date) -> int:
    """Return how many Saturdays without a session lie in [first, last]."""
    if not calendar.asset_class.market.rests_on_weekends:
        return 0
    saturday = first + (5 - first.weekday()) % 7 * _DAY
    return max((last - saturday).days // 7 + 1, 0)


_STATE: Final = sa.text("""
    select
        s.tier,
        coalesce(t.consecutive_failures, 0) as failures,
        t.last_error_class as error_class,
        t.last_error as error,
        t.settled_until,
        coalesce(t.life, 'trading') as life,
        t.life_since,
        (
            select max(l.finished_at) from market_data.ingest_log as l
            where l.symbol = :symbol and l.timeframe = :timeframe and l.status = 'failed'
        ) as failed_at
    from market_data.symbols as s
    left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = :timeframe
    where s.symbol = :symbol
""")

_COVERAGE: Final = sa.text("""
    select session_date, status, rows, fetched_at, rechecked_at, doubted_at, reason, ticker
    from market_data.coverage
    where symbol = :symbol and timeframe = :timeframe
""")

_OUTSIDE: Final = sa.text("""
    select count(*)
    from market_data.stray_bars
    where symbol = :symbol and timeframe = :timeframe and ts >= :start
""")

_CLOSINGS: Final = sa.text("""
    select session_date, min(coalesce(name, 'without a name')) as name
    from market_data.announcements
    where
        asset_class = :asset_class and status = 'closed' and first_seen_at <= :now
        and (withdrawn_at is null or withdrawn_at > :now)
    group by session_date
""")

_STARTS: Final = sa.text("""
    select coalesce(array_agg(cast(extract(epoch from ts) * 1000000 as bigint) order by ts), '{}')
    from market_data.bars
    where symbol = :symbol and timeframe = :timeframe and ts >= :start
""")


class History(NamedTuple):
    """The history of one fetched series, and when its bars become available.

    Attributes:
        series: the fetched series.
        within: the days that it should hold.
        coverage: what is known of them.
        held_us: starts of the bars that it holds, int64 microseconds since 1970 UTC, ascending.
        state: `tier`, `failures` in a row, `settled_until`, `life`, `life_since`; `error_class`, `error` and
            `failed_at` of the last failure.
        timing: calendar, plan and the instant it is now.
        outside: how many bars the vendor sent that lie in no session.
        closings: by session date, what the vendor announced about a closing of the market.
    """

    series: Series
    within: Reach
    coverage: Mapping[date, Coverage]
    held_us: np.ndarray
    state: sa.RowMapping
    timing: Timing
    outside: int = 0
    closings: Mapping[date, str] = MappingProxyType({})

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The days that the series should hold, ascending; those before the plan's history come first."""
        return (*self.within.beyond, *self.within.sessions)

    @property
    def start(self) -> datetime:
        """The start of the history that the series should hold, aware UTC."""
        return self.sessions[0].day_start if self.sessions else self.timing.now


def gaps_report(engine: sa.Engine, settings: Settings, symbol: str, timeframes: Sequence[Timeframe] = ()) -> GapsReport:
    """Return every gap between the start of the history and now.

    Args:
        engine: of a database with a universe.
        settings: plan, history and clock.
        symbol: a followed one.
        timeframes: fetched ones; both when empty. The others are resampled from `5m` and share its gaps.

    Raises:
        UsageError: the symbol is not followed.
        DatabaseUnavailableError: the database cannot be reached.
    """
    select_followed(engine, [symbol])
    plan = plan_named(settings.plan)
    timing = Timing.on(plan, asset_class_of(symbol), settings.clock())
    with snapshot(engine) as connection:
        histories = [
            read_history(connection, Series(symbol, timeframe), timing, plan, settings.history_days)
            for timeframe in timeframes or BASE_TIMEFRAMES
        ]
    return GapsReport(
        symbol=symbol,
        timestamp=timing.now,
        plan=plan.name,
        exchange_timezone=str(timing.calendar.tz),
        timeframes=[series_gaps(history) for history in histories],
    )


def read_history(connection: sa.Connection, series: Series, timing: Timing, plan: Plan, history_days: int) -> History:
    """Return the history of a fetched series of a known symbol, read within one snapshot."""
    import numpy as np

    named: dict[str, Any] = {"symbol": series.symbol, "timeframe": str(series.timeframe)}
    state = connection.execute(_STATE, named).mappings().one()
    coverage = {
        row.session_date: Coverage(
            row.session_date,
            CoverageStatus(row.status),
            row.rows,
            row.fetched_at,
            row.rechecked_at,
            row.doubted_at,
            row.reason,
            ticker=row.ticker,
        )
        for row in connection.execute(_COVERAGE, named)
    }
    within = reach(timing, history_days, plan.history, ended=ended_on(connection, series.symbol))
    empty = History(series, within, coverage, np.empty(0, dtype="int64"), state, timing)
    named["start"] = empty.start
    starts = connection.execute(_STARTS, named).scalar_one()
    outside = connection.execute(_OUTSIDE, named).scalar_one()
    said = {"asset_class": str(timing.calendar.asset_class.closes_with), "now": timing.now}
    closings = {row.session_date: row.name for row in connection.execute(_CLOSINGS, said)}
    return empty._replace(held_us=np.asarray(starts, dtype="int64"), outside=outside, closings=closings)


def series_gaps(history: History) -> SeriesGaps:
    """Return every gap of one fetched series with its explanation."""
    base, timing, days = history.series.timeframe, history.timing, history.sessions
    failing = history.state["failures"] > 0
    ended = not Life(history.state["life"]).expects_bars
    found = find_gaps(
        base,
        history.within,
        history.coverage,
        history.held_us,
        timing,
        failing=failing,
        ended=ended,
        closed=history.closings,
    )
    by_reason = {reason: [gap for gap in found if gap.reason is reason] for reason in Reason}
    return SeriesGaps(
        timeframe=base,
        history_start=history.start,
        sessions=len(days),
        settled_until=history.state["settled_until"],
        bars_held=len(history.held_us),
        bars_missing=sum(gap.bars for gap in found),
        stray_bars=history.outside,
        weekends=_weekends(timing.calendar, days[0].date, _last_day(days, timing)) if days else 0,
        summary={
            str(reason): GapCount(stretches=len(gaps), bars=sum(gap.bars for gap in gaps))
            for reason, gaps in by_reason.items()
            if gaps
        },
        stretches=[_explained(gap, history) for gap in found],
    )


def table_rows(symbol: str, timeframes: Sequence[SeriesGaps]) -> list[tuple[str, str, str, int, str]]:
    """Return the rows of a table for people: timeframe, from, to (exchange time), bars and explanation.

    Gaps of one day with the same explanation are one row, which counts them: a thinly traded symbol has dozens.
    """
    zone = calendar_for(asset_class_of(symbol)).tz

    def alike(gap: GapReport) -> tuple[object, str]:
        return gap.start.astimezone(zone).date(), gap.explanation

    rows = []
    for one in timeframes:
        for (_, explanation), group in groupby(one.stretches, key=alike):
            gaps = list(group)
            start, end = gaps[0].start.astimezone(zone), gaps[-1].end.astimezone(zone)
            count = f" ({len(gaps)} gaps)" if len(gaps) > 1 else ""
            rows.append(
                (one.timeframe, _minute(start), _minute(end), sum(gap.bars for gap in gaps), explanation + count)
            )
    return rows


def _minute(local: datetime) -> str:
    return f"{local:%a %Y-%m-%d %H:%M}"


def _explained(gap: Gap, history: History) -> GapReport:
    """Return a gap with its explanation in words, whose times are the exchange's, and the facts behind it."""
    timing, state = history.timing, history.state
    facts: dict[str, Any] = {}

    def local(instant: datetime | None) -> str:
        return "an unknown time" if instant is None else f"{instant.astimezone(timing.calendar.tz):%Y-%m-%d %H:%M}"

    match gap.reason:
        case Reason.NO_SESSION:
            text = "no session"
        case Reason.EARLY_CLOSE:
            text = "early close"
        case Reason.ANNOUNCED:
            text = f"the market is closed, as the vendor announced ({history.closings[gap.day]})"
        case Reason.NOT_DUE:
            base = history.series.timeframe
            facts["due_at"] = timing.available_at(gap.end if base is Timeframe.D1 else gap.start + base.span)
            text = f"not yet due on this plan (from {local(facts['due_at'])})"
        case Reason.PROVISIONAL:
            session = timing.calendar.session_on(gap.day)
            settles = None if session is None else settled_at(session)
            facts = {"last_asked_at": gap.asked_at, "settles_at": settles}
            text = f"provisional: vendor gave none so far, settles {local(settles)}"
            if settles is not None and settles <= timing.now:
                text = f"provisional: vendor gave none at {local(gap.asked_at)}, will be asked a second time"
        case Reason.VENDOR_NONE:
            if gap.asked_at is not None:
                facts["confirmed_on"] = timing.calendar.session_date(gap.asked_at)
            text = f"vendor gave none (confirmed on {facts.get('confirmed_on', 'an unknown day')})"
        case Reason.BEFORE_FIRST:
            text = "before the first bar that the vendor has"
        case Reason.NOT_EXPECTED:
            text = f"no bars expected: it {sentence(Life(state['life']), state['life_since'])}"
        case Reason.OTHER_SECURITY:
            text = "not this security: the ticker was another one's, or nobody's"
        case Reason.BEFORE_PLAN:
            text = "before the plan's history"
        case Reason.FAILED:
            error = ": ".join(filter(None, (state["error_class"], state["error"]))) or "an earlier run failed"
            failed_at = gap.asked_at or state["failed_at"]
            if gap.refused:
                error, failed_at = gap.refused.rstrip("."), gap.retry_at
            due = None if failed_at is None else failed_at + TIER_OBJECTIVES[Tier(state["tier"])].cadence
            facts = {"error": error, "failed_at": gap.asked_at or failed_at, "next_try_by": due}
            tried = "at the next refresh" if due is None else f"by {local(due)}"
            late = ", which has passed: are the schedules running?" if due is not None and due < timing.now else ""
            text = f"{'refused' if gap.refused else 'failed'} ({error}; next try {tried}{late})"
        case Reason.NEVER_ASKED:
            text = "never asked" if gap.asked_at is None else f"not asked since {local(gap.asked_at)}"
    return GapReport(start=gap.start, end=gap.end, bars=gap.bars, reason=gap.reason, explanation=text, **facts)
