"""Every stretch of a fetched series' history in which it holds no bar, and why.

Pure: calendar, coverage and the bars' starts in, stretches out; over whole arrays, because a year has 48,000 slots.
Nights and weekends are no stretches: nobody misses them. Add here: a reason. Keep out: reading the ledger and wording
(gaps).

Why a symbol lacks bars: each missing stretch of its history with its reason, for `market-data gaps`.

Keep out: how stretches are found (stretches) and how they are printed (cli_reports).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for, from_us, slot_count, to_us
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, AssetClass, Series, Tier, Timeframe, asset_class_of
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from market_data_pipeline.domain.calendar import Session, SessionCalendar
    from market_data_pipeline.ingest.fetch_plan import Reach, Timing
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection


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


_STATE: Final = """
select
    s.tier,
    coalesce(t.consecutive_failures, 0) as failures,
    t.last_error_class as error_class,
    t.last_error as error,
    t.settled_until,
    (
        select max(l.finished_at) from market_data.ingest_log as l
        where l.symbol = %(symbol)s and l.timeframe = %(timeframe)s and l.status = 'failed'
    ) as failed_at
from market_data.symbols as s
left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = %(timeframe)s
where s.symbol = %(symbol)s
"""


def gaps_document(settings: Settings, symbol: str, timeframes: Sequence[Timeframe] = ()) -> dict[str, Any]:
    """Return every missing stretch between the start of the history and now, as JSON values.

    Args:
        settings: plan, history, database and clock.
        symbol: a followed one.
        timeframes: fetched ones; both when empty. The others are made of `5m` and lack what it lacks.

    Raises:
        UsageError: the symbol is not followed.
        DatabaseUnavailableError: the database cannot be reached.
    """
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.polygon.plans import available_at, plan_named
    from market_data_pipeline.runtime.database import check_followed
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection

    check_followed(settings, [symbol])
    plan = plan_named(settings.plan)
    calendar = calendar_for(asset_class_of(symbol))
    timing = Timing(calendar, lambda end: available_at(plan, calendar, end), settings.clock())
    with StoreConnection(settings.database_url, settings.as_of, Role.READER) as connection:
        documents = [
            _of_series(connection, Series(symbol, timeframe), timing, plan, settings.history_days)
            for timeframe in timeframes or BASE_TIMEFRAMES
        ]
    return {
        "symbol": symbol,
        "timestamp": timing.now,
        "plan": plan.name,
        "exchange_timezone": str(calendar.tz),
        "timeframes": documents,
    }


def _of_series(
    connection: StoreConnection, series: Series, timing: Timing, plan: Plan, history_days: int
) -> dict[str, Any]:
    from market_data_pipeline.ingest.fetch_plan import reach
    from market_data_pipeline.store.bars import read_starts
    from market_data_pipeline.store.coverage import read_coverage

    within = reach(timing, history_days, plan.history)
    state = connection.rows(_STATE, series._asdict())[0]
    since = history_start(within, timing)
    starts = read_starts(connection, series, since)
    coverage = read_coverage(connection, series)
    connection.commit()
    return series_gaps(series, within, coverage, starts, timing, state)


def history_start(within: Reach, timing: Timing) -> datetime:
    """Return when the history begins that a series should hold, aware UTC."""
    days = (*within.beyond, *within.sessions)
    return days[0].day_start if days else timing.now


def series_gaps(
    series: Series,
    within: Reach,
    coverage: Mapping[date, Coverage],
    held_us: np.ndarray,
    timing: Timing,
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """Return every missing stretch of one fetched series, as JSON values.

    Args:
        series: a fetched one.
        within: the days that it should hold.
        coverage: what is known of them.
        held_us: starts of the bars that it holds from `history_start` on, int64 microseconds since 1970 UTC, ascending.
        timing: calendar, plan and the instant it is now.
        state: its `tier`, `failures` in a row, `error_class`, `error` and `failed_at`, the last three None for none.
    """
    days = (*within.beyond, *within.sessions)
    found = stretches(series.timeframe, within, coverage, held_us, timing, failing=state["failures"] > 0)
    missing = {reason: [each for each in found if each.reason is reason] for reason in Reason}
    return {
        "timeframe": series.timeframe,
        "history_start": history_start(within, timing),
        "sessions": len(days),
        "settled_until": state.get("settled_until"),
        "bars_held": len(held_us),
        "bars_missing": sum(each.bars for each in found),
        "weekends": weekends(timing.calendar, days[0].date, timing.calendar.session_date(timing.now)) if days else 0,
        "summary": {
            str(reason): {"stretches": len(each), "bars": sum(one.bars for one in each)}
            for reason, each in missing.items()
            if each
        },
        "stretches": [_document(each, series, timing, state) for each in found],
    }


def table_rows(document: dict[str, Any]) -> list[tuple[str, str, str, int, str]]:
    """Return what a person reads of a document: timeframe, from, to (exchange time), bars and explanation.

    Stretches of one day with the same explanation are one row, which says how many they are: a thin name has dozens.
    """
    zone = calendar_for(asset_class_of(document["symbol"])).tz
    rows = []
    for one in document["timeframes"]:

        def alike(stretch: dict[str, Any]) -> tuple[object, str]:
            return stretch["start"].astimezone(zone).date(), stretch["explanation"]

        for (_, explanation), group in groupby(one["stretches"], key=alike):
            members = list(group)
            start, end = members[0]["start"].astimezone(zone), members[-1]["end"].astimezone(zone)
            count = f" ({len(members)} stretches)" if len(members) > 1 else ""
            bars = sum(member["bars"] for member in members)
            rows.append((str(one["timeframe"]), _moment(start), _moment(end), bars, explanation + count))
    return rows


def _moment(local: datetime) -> str:
    return f"{local:%a %Y-%m-%d %H:%M}"


def _document(stretch: Stretch, series: Series, timing: Timing, state: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if stretch.reason is Reason.VENDOR_NONE and stretch.asked_at is not None:
        said["confirmed_on"] = timing.calendar.session_date(stretch.asked_at)
    if stretch.reason is Reason.FAILED:
        tried = stretch.asked_at or state["failed_at"]
        said["error"] = ": ".join(filter(None, (state["error_class"], state["error"]))) or "an earlier run failed"
        said["failed_at"] = tried
        said["next_try_by"] = None if tried is None else tried + TIER_OBJECTIVES[Tier(state["tier"])].cadence
    if stretch.reason is Reason.PROVISIONAL:
        said["last_asked_at"] = stretch.asked_at
        session = timing.calendar.session_on(stretch.day)
        said["settles_at"] = None if session is None else settled_at(session)
    if stretch.reason is Reason.NOT_DUE:
        said["due_at"] = timing.available_at(_first_end(stretch, series))
    return {
        "start": stretch.start,
        "end": stretch.end,
        "bars": stretch.bars,
        "reason": stretch.reason,
        "explanation": _explain(stretch, said, timing),
        **said,
    }


def _first_end(stretch: Stretch, series: Series) -> datetime:
    return stretch.end if series.timeframe is Timeframe.D1 else stretch.start + series.timeframe.span


def _explain(stretch: Stretch, said: dict[str, Any], timing: Timing) -> str:
    """Return the reason as a person would say it; times are the exchange's."""

    def local(instant: datetime | None) -> str:
        return "an unknown time" if instant is None else f"{instant.astimezone(timing.calendar.tz):%Y-%m-%d %H:%M}"

    match stretch.reason:
        case Reason.NO_SESSION:
            return "no session"
        case Reason.EARLY_CLOSE:
            return "early close"
        case Reason.NOT_DUE:
            return f"not yet due at this plan (from {local(said['due_at'])})"
        case Reason.PROVISIONAL:
            settles = said["settles_at"]
            if settles is not None and settles <= timing.now:
                return f"provisional: vendor gave none at {local(stretch.asked_at)}, to be asked a second time"
            return f"provisional: vendor gave none so far, settles {local(settles)}"
        case Reason.VENDOR_NONE:
            return f"vendor gave none (confirmed on {said['confirmed_on']})"
        case Reason.BEFORE_PLAN:
            return "before the plan's history"
        case Reason.FAILED:
            due = said["next_try_by"]
            tried = "at the next refresh" if due is None else f"by {local(due)}"
            late = ", which has passed: are the schedules running?" if due is not None and due < timing.now else ""
            return f"failed ({said['error']}; next try {tried}{late})"
        case Reason.NEVER_ASKED:
            return "never asked" if stretch.asked_at is None else f"not asked since {local(stretch.asked_at)}"
