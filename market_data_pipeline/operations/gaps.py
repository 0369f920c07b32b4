"""Why a symbol lacks bars: each missing stretch of its history with its reason, for `market-data gaps`.

Keep out: how stretches are found (stretches) and how they are printed (cli_reports).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.due import settled_at
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, Series, Tier, Timeframe, asset_class_of
from market_data_pipeline.operations.stretches import Reason, stretches, weekends

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    import numpy as np

    from market_data_pipeline.ingest.demand import Reach, Timing
    from market_data_pipeline.operations.stretches import Stretch
    from market_data_pipeline.polygon.plans import Plan
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.ledger import Coverage

_STATE: Final = """
select
    s.tier,
    coalesce(t.consecutive_failures, 0) as failures,
    t.last_error_class as error_class,
    t.last_error as error,
    t.settled_until,
    (
        select max(l.finished_at) from market_data.ingest_log as l
        where l.symbol = $1 and l.timeframe = $2 and l.status = 'failed'
    ) as failed_at
from market_data.symbols as s
left join market_data.series_state as t on t.symbol = s.symbol and t.timeframe = $2
where s.symbol = $1
"""
_STARTS: Final = "select ts from market_data.bars where symbol = $2 and timeframe = $3 and ts >= $1 order by ts"


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
    from market_data_pipeline.domain.sessions import calendar_for
    from market_data_pipeline.ingest.demand import Timing
    from market_data_pipeline.operations.universe import check_followed
    from market_data_pipeline.polygon.plans import available_at, plan_named
    from market_data_pipeline.store.bulk import Bulk
    from market_data_pipeline.store.roles import Role

    check_followed(settings, [symbol])
    plan = plan_named(settings.plan)
    calendar = calendar_for(asset_class_of(symbol))
    timing = Timing(calendar, lambda end: available_at(plan, calendar, end), settings.clock())
    with Bulk(settings.database_url, settings.as_of, Role.READER) as bulk:
        documents = [
            _of_series(bulk, Series(symbol, timeframe), timing, plan, settings.history_days)
            for timeframe in timeframes or BASE_TIMEFRAMES
        ]
    return {
        "symbol": symbol,
        "timestamp": timing.now,
        "plan": plan.name,
        "exchange_timezone": str(calendar.tz),
        "timeframes": documents,
    }


def _of_series(bulk: Bulk, series: Series, timing: Timing, plan: Plan, history_days: int) -> dict[str, Any]:
    from market_data_pipeline.ingest.demand import reach
    from market_data_pipeline.store.bars import read_pieces
    from market_data_pipeline.store.ledger import read_coverage

    within = reach(timing, history_days, plan.history)
    state = bulk.rows(_STATE, series.symbol, str(series.timeframe))[0]
    since = history_start(within, timing)
    starts = read_pieces(bulk, {"ts": "instant"}, _STARTS, since, series.symbol, str(series.timeframe))["ts"]
    coverage = read_coverage(bulk, series)
    bulk.commit()
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
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(document["exchange_timezone"])
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
