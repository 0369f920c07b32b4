"""Which settled days to read again, although an ordinary refresh never would.

Pure: coverage and an instant in, days out. The vendor corrects bars and fills gaps for weeks after a day settled, and
announces neither. Reverifying finds them at a bounded cost: as long as nothing is suspicious, one request a night for a
symbol's 5-minute bars and one a week for its day bars. It reads again

- a SAMPLE: the settled days that have gone unread the longest, as many as one page of an answer holds, also of those
  that lie before the configured history;
- SUSPICIOUS days, every night for four weeks: empty ones, and ones with far fewer bars than the symbol usually has;
- EVERY day, when the splits in force have changed since the last time.

The chosen days join the fetch plan; from there on it is a refresh like any other, so corrections and filled gaps are
stored with the old values kept, and the features are computed again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import expected_slots
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.request_windows import PAGE_LIMIT
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.calendar import Session

# Gaps are sometimes filled weeks later: nearly all within a month, according to users' records. The sample finds the
# later ones.
SUSPECT_FOR: Final = timedelta(days=28)

# A page holds 52 sessions of 5m bars (crypto: 34 days), so one page a night covers a year in 5 nights (crypto: 11). It
# holds every day bar there is: a page a night would read each of them 7 times a week, and a comparison with the whole
# market covers the last two weeks anyway.
SAMPLE_EVERY: Final = {Timeframe.M5: timedelta(0), Timeframe.D1: timedelta(days=7)}

# Readings of a series' days that are no further apart than this count as one: a run over a large universe takes hours.
_ONE_LOOK: Final = timedelta(hours=12)

_MINUTE: Final = timedelta(minutes=1)


class _Day(NamedTuple):
    session: Session
    known: Coverage
    filled: float  # the part of the day's slots that hold a bar, 0 to 1

    @property
    def looked_at(self) -> datetime:
        return max(self.known.fetched_at, self.known.reverified_at or self.known.fetched_at)


def days_to_reverify(
    sessions: Sequence[Session],
    coverage: Mapping[date, Coverage],
    base: Timeframe,
    now: datetime,
    *,
    splits_changed: bool = False,
) -> frozenset[date]:
    """Return the settled days of a fetched series to read again now.

    Args:
        sessions: the days that the series should hold or holds, and that the plan reaches, ascending.
        coverage: of those days, by session date.
        base: the fetched timeframe.
        now: aware UTC.
        splits_changed: the splits in force are not those under which all days were last read.
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
    """Return the coverage with `days` reopened, so that the fetch plan requests them again.

    They are then like days that have just settled and need one more answer: one with bars becomes complete again, an
    empty one stays confirmed. The stored coverage keeps its statuses: if the vendor fails, the days remain settled.
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
    # A clamped day with bars was held before the plan's history passed it: a better plan may reach it again.
    final = (CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.CLAMPED)
    return [
        _Day(session, known, known.rows / len(expected_slots(base, session)))
        for session in sessions
        if (known := coverage.get(session.date)) is not None
        and known.status in final
        and (known.rows or known.status is not CoverageStatus.CLAMPED)
    ]


def _suspicious(days: Sequence[_Day]) -> frozenset[date]:
    """Return the days with far fewer bars than usual, ignoring those before the first day with any.

    Usual is the median; far fewer means more than three times as far below it as the 20th percentile. For a symbol that
    trades in every slot, a day is suspicious as soon as one slot is empty; for one that often goes a day without a
    trade, no day ever is.
    """
    first = next((at for at, day in enumerate(days) if day.known.rows), len(days))
    listed = days[first:]
    if not listed:
        return frozenset()
    filled = sorted(day.filled for day in listed)
    usual, quiet = filled[len(filled) // 2], filled[(len(filled) - 1) // 5]
    return frozenset(day.session.date for day in listed if day.filled < usual - 3 * (usual - quiet))


def _sample(days: Sequence[_Day], suspicious: frozenset[date], base: Timeframe, now: datetime) -> Sequence[_Day]:
    """Return one page of days from the one that has gone unread the longest; among ties, the most suspicious page.

    Deterministic, and covers every day in bounded time: a day that was read moves to the end of the line in any case.
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
