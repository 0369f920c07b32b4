"""Which requests cover the missing sessions of one series, and how many pages they take.

The vendor counts base bars: minutes for every intraday timeframe, days for day bars.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Timeframe

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from datetime import date

    from market_data_pipeline.domain.calendar import Session, SessionCalendar

PAGE_LIMIT: Final = 50_000  # base bars per page, the vendor's maximum (API reference, 2026-10)

# A longer window is cut between sessions, so that a history is stored part by part and a run's memory does not grow
# with its length. Five full pages: a year of a US equity, 253 sessions of 960 minutes, is one part.
PART_BASE_BARS: Final = 5 * PAGE_LIMIT
_DAY: Final = timedelta(days=1)
_MINUTE: Final = timedelta(minutes=1)


class Window(NamedTuple):
    """One interval to request, with the pages that follow.

    Attributes:
        interval: half-open UTC, on the timeframe's grid.
        timeframe: a fetched one.
        base_bars: minutes of extended sessions in it (for day bars: sessions), of which a page holds `PAGE_LIMIT`; the
            vendor has that many if every minute has a trade.
    """

    interval: Interval
    timeframe: Timeframe
    base_bars: int


class _Run(NamedTuple):
    """Missing sessions with no other session between them."""

    interval: Interval
    base_bars: int
    gap: int  # base bars of the sessions between the run before and this one
    apart: bool  # one of these sessions must not be requested along with others


def windows(
    missing: Sequence[Session],
    timeframe: Timeframe,
    page_limit: int = PAGE_LIMIT,
    *,
    apart: Container[date] = (),
    asset_class: AssetClass = AssetClass.US_EQUITY,
) -> tuple[Window, ...]:
    """Return the fewest requests that cover `missing`, ascending and disjoint.

    Sessions with others between them share a window when that costs no more pages than two requests; the answer then
    holds sessions that were not missing.

    Args:
        missing: sessions of one calendar to cover, ascending, each once.
        timeframe: `5m` (a window runs from a session's start to a session's end) or `1d` (from midnight to midnight).
        page_limit: base bars per page.
        apart: dates of sessions, none of them in `missing`, that no window may reach across.
        asset_class: whose calendar has the sessions.
    """
    runs = _runs(missing, timeframe, apart, calendar_for(asset_class))
    # best[i]: calls for runs[i:], the number of windows, and where the second of them begins.
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (len(runs) + 1)
    for i in reversed(range(len(runs))):
        options = []
        together = -runs[i].gap
        separately = 0
        for j, run in enumerate(runs[i:], start=i + 1):
            if run.apart and j > i + 1:
                break
            together += run.gap + run.base_bars
            separately += pages_of(run.base_bars, page_limit)
            calls = pages_of(together, page_limit)
            if calls > separately:
                break  # a longer window would not be cheaper than its parts either
            # Of equally few calls, the fewest windows: they share their last pages.
            options.append((calls + best[j][0], 1 + best[j][1], j))
        best[i] = min(options)
    made = []
    i = 0
    while i < len(runs):
        j = best[i][2]
        base_bars = sum(run.gap + run.base_bars for run in runs[i:j]) - runs[i].gap
        interval = Interval(runs[i].interval.start, runs[j - 1].interval.end)
        made.append(Window(interval, timeframe, base_bars))
        i = j
    return tuple(made)


def parts(window: Window, sessions: Sequence[Session], most: int) -> tuple[Window, ...]:
    """Return a 5m window cut between sessions into parts of at most `most` base bars; one that fits is not cut.

    Args:
        window: one that `windows` made.
        sessions: all sessions in it, ascending.
        most: base bars of a part, not fewer than those of a session.
    """
    if window.base_bars <= most:
        return (window,)
    bars = [_base_bars(session, window.timeframe) for session in sessions]
    made: list[Window] = []
    start = total = 0
    for at, count in enumerate(bars):
        total += count
        if at + 1 == len(bars) or total + bars[at + 1] > most:
            interval = Interval(sessions[start].start, sessions[at].end)
            made.append(Window(interval, window.timeframe, total))
            start, total = at + 1, 0
    return tuple(made)


def pages_of(base_bars: int, page_limit: int = PAGE_LIMIT) -> int:
    """Return how many pages, and so calls, an answer with `base_bars` takes."""
    return max(1, -(-base_bars // page_limit))


def _runs(
    missing: Sequence[Session], timeframe: Timeframe, apart: Container[date], calendar: SessionCalendar
) -> list[_Run]:
    runs: list[_Run] = []
    before: Session | None = None
    for session in missing:
        interval = Interval(session.start, session.end)
        if timeframe is Timeframe.D1:
            interval = Interval(session.day_start, session.day_end)
        bars = _base_bars(session, timeframe)
        between = calendar.sessions(before.date + _DAY, session.date) if before else ()
        if before and not between:
            held = runs.pop()
            runs.append(_Run(Interval(held.interval.start, interval.end), held.base_bars + bars, held.gap, held.apart))
        else:
            gap = sum(_base_bars(each, timeframe) for each in between)
            runs.append(_Run(interval, bars, gap, any(each.date in apart for each in between)))
        before = session
    return runs


def _base_bars(session: Session, timeframe: Timeframe) -> int:
    return 1 if timeframe is Timeframe.D1 else (session.end - session.start) // _MINUTE
