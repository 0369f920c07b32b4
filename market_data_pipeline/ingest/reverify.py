"""Which settled days an audit asks the vendor for again, though an ordinary refresh never would.

Pure: coverage and an instant in, days out. The vendor corrects bars and fills holes for weeks after a day settled, and
says so nowhere; an audit finds out at a bounded cost, which is one request for a symbol's 5-minute bars a night and one
a week for its day bars, as long as nothing is suspicious:

- a SAMPLE: the settled days that nobody has looked at for the longest time, as many as one page of an answer holds;
- SUSPICIOUS days, for four weeks every night: empty ones, and ones with far fewer bars than the symbol usually has;
- EVERY day, when the splits in force have changed since the last time.

Add here: when a settled day is worth another look. Keep out: ordinary demand (demand) and asking (audit).

An audit of one fetched series: the settled days that it asks for again, on top of what a refresh asks for anyway.

From there on it IS a refresh: same requests, same validation, same commit, so that corrections and filled holes are
taken in with the old values kept and the features made anew. Add here: what an audit does with the ledger. Keep out:
the choice of days (recheck) and what is compared for the whole market at once (orchestration.reconcile).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import slot_count
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.fetch_plan import reach
from market_data_pipeline.polygon.request_windows import PAGE_LIMIT
from market_data_pipeline.store.coverage import Coverage, CoverageStatus, write_reverified

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.domain.series import Series
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState


# "Holes are sometimes filled weeks later": nearly all within a month, by what people recorded. Later ones the sample
# finds.
SUSPECT_FOR: Final = timedelta(days=28)

# A page holds 52 sessions of 5m bars (crypto: 34 days), so a nightly page goes round a year in 5 nights (11). It holds
# every day bar there is: a page a night would read each of them 7 times a week, and a market-wide comparison looks at
# the last two weeks anyway.
SAMPLE_EVERY: Final = {Timeframe.M5: timedelta(0), Timeframe.D1: timedelta(days=7)}

# Looks at a series' days that are no further apart count as one: a run over a large universe takes hours.
_ONE_LOOK: Final = timedelta(hours=12)

_MINUTE: Final = timedelta(minutes=1)


class _Day(NamedTuple):
    session: Session
    known: Coverage
    filled: float  # the part of the day's slots that hold a bar, 0 to 1

    @property
    def looked_at(self) -> datetime:
        return max(self.known.fetched_at, self.known.reverified_at or self.known.fetched_at)


def days_to_recheck(
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    now: datetime,
    *,
    splits_changed: bool = False,
) -> frozenset[date]:
    """Return the settled days of a fetched series to ask for again now.

    Args:
        sessions: the days that the series should hold and the plan reaches, ascending.
        coverage: what is known of them.
        base: the fetched timeframe.
        now: aware UTC.
        splits_changed: other splits are in force than when all days were last read.
    """
    days = _settled(sessions, coverage, base)
    if splits_changed or not days:
        return frozenset(day.session.date for day in days)
    suspicious = _suspicious(days)
    recent = {date for date in suspicious if date >= (now - SUSPECT_FOR).date()}
    return frozenset(recent | {day.session.date for day in _sample(days, suspicious, base, now)})


def reopened(
    coverage: Mapping[date, Coverage], days: frozenset[date], sessions: Sequence[Session]
) -> dict[date, Coverage]:
    """Return the coverage as it is to be read so that `days` are wanted once more.

    They are then as days that settled and still want their second look: one with bars becomes complete again, an empty
    one stays confirmed.
    """
    return {
        **coverage,
        **{
            session.date: replace(
                coverage[session.date], status=CoverageStatus.PROVISIONAL, fetched_at=settled_at(session)
            )
            for session in sessions
            if session.date in days
        },
    }


def _settled(sessions: Sequence[Session], coverage: Mapping[date, Coverage], base: Timeframe) -> list[_Day]:
    final = (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED)
    return [
        _Day(session, known, known.rows / slot_count(base, session))
        for session in sessions
        if (known := coverage.get(session.date)) is not None and known.status in final
    ]


def _suspicious(days: Sequence[_Day]) -> frozenset[date]:
    """Return the days that hold far fewer bars than is usual, from the first that holds any.

    Usual is the median; far is three times as far below it as the quietest fifth of days begins. A name that trades in
    every slot is suspicious as soon as one is empty, one that often has a day without a trade never is.
    """
    first = next((at for at, day in enumerate(days) if day.known.rows), len(days))
    listed = days[first:]
    if not listed:
        return frozenset()
    filled = sorted(day.filled for day in listed)
    usual, quiet = filled[len(filled) // 2], filled[(len(filled) - 1) // 5]
    return frozenset(day.session.date for day in listed if day.filled < usual - 3 * (usual - quiet))


def _sample(days: Sequence[_Day], suspicious: frozenset[date], base: Timeframe, now: datetime) -> Sequence[_Day]:
    """Return one page of days around the one that was looked at the longest time ago; of equals, the most suspicious.

    Deterministic, and complete in bounded time: each look makes its days the last in line, whatever came of it.
    """
    oldest = min(day.looked_at for day in days)
    if now - oldest < SAMPLE_EVERY[base]:
        return ()
    page = _page_sessions(days, base)
    doubts = [0, *accumulate(day.session.date in suspicious for day in days)]
    starts = [min(at, max(len(days) - page, 0)) for at, day in enumerate(days) if day.looked_at <= oldest + _ONE_LOOK]
    start = max(starts, key=lambda at: (doubts[min(at + page, len(days))] - doubts[at], -at))
    return days[start : start + page]


def _page_sessions(days: Sequence[_Day], base: Timeframe) -> int:
    """Return how many sessions of full length one page of an answer holds."""
    if base is Timeframe.D1:
        return PAGE_LIMIT
    longest = max(day.session.end - day.session.start for day in days)
    return PAGE_LIMIT // (longest // _MINUTE)


def opened_for_audit(
    connection: StoreConnection,
    series: Series,
    held: Mapping[date, Coverage],
    state: SeriesState,
    splits_digest: str,
    timing: Timing,
    pipeline: Pipeline,
) -> dict[date, Coverage]:
    """Return `held` with the days to audit opened again; that they are asked for is noted before they are.

    The ledger keeps its statuses: when the vendor fails, the days are as settled as they were.

    Args:
        connection: the transaction, which the caller commits.
        series: a fetched one.
        held: what is known of its days.
        state: of the series.
        splits_digest: the symbol's splits in force now.
        timing: calendar, plan and the instant it is now.
        pipeline: tells how much history is held, and is to be had.
    """
    sessions = reach(timing, pipeline.history_days, pipeline.plan.history).sessions
    days = days_to_recheck(
        sessions,
        held,
        series.timeframe,
        timing.now,
        splits_changed=state.reverified_splits not in (None, splits_digest),
    )
    write_reverified(connection, series, days, timing.now)
    return reopened(held, days, sessions)
