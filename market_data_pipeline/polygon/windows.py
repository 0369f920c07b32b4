"""Which requests cover the missing sessions of one series, and what they cost.

Add here: how the vendor counts (base bars, page limit). Keep out: sending anything (client), what is missing
(ingest.demand), and the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.limiter import UNLIMITED_CALLS_PER_SECOND, spacing_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.sessions import Session
    from market_data_pipeline.polygon.plans import Plan

PAGE_LIMIT: Final = 50_000  # base bars per page, the vendor's maximum (API reference, 2026-10)

# Size on the wire: 10,000 5m bars in the recorded shape (keys v, vw, o, c, h, l, t, n; prices of a 190-dollar share;
# every third volume fractional), gzip level 6, measured 2026-11: 26.5 bytes a bar, 104 unpacked. Real prices compress
# a little worse than a random walk's.
BYTES_PER_BAR: Final = 30

_DAY: Final = timedelta(days=1)
_MINUTE: Final = timedelta(minutes=1)
_SATURDAY: Final = 5


class Window(NamedTuple):
    """One interval to ask for, in one request and the pages that follow it.

    Attributes:
        interval: half-open UTC, on the timeframe's grid.
        timeframe: a fetched one.
        expected_calls: pages that the vendor will cut it into if every minute has a trade: an upper bound.
        base_bars: minutes of extended sessions in it (for day bars: sessions), of which pages hold `PAGE_LIMIT`.
    """

    interval: Interval
    timeframe: Timeframe
    expected_calls: int
    base_bars: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What windows cost.

    Attributes:
        calls: requests.
        pages: answers of up to `PAGE_LIMIT` base bars; the vendor counts each as a call.
        bytes: on the wire, compressed.
        seconds: how long the plan's limit makes the calls take; transfer is not counted.
    """

    calls: int
    pages: int
    bytes: int
    seconds: float


class _Run(NamedTuple):
    """Missing sessions with no trading day between them."""

    start: datetime
    end: datetime
    first: date
    last: date
    base_bars: int
    day_bars: int  # base bars of one full session, for guessing what a gap holds
    every_day: bool  # a market that trades on weekends


def windows(missing: Sequence[Session], timeframe: Timeframe, page_limit: int = PAGE_LIMIT) -> tuple[Window, ...]:
    """Return the fewest requests that cover `missing`, ascending and disjoint.

    Sessions apart are asked for in one window when what lies between costs no more pages than asking twice; the answer
    then holds sessions that were not missing. A holiday between two sessions is taken for a session: that may cost a
    request, never a bar.

    Args:
        missing: sessions to cover, ascending, each once.
        timeframe: `5m` (a window runs from a session's start to a session's end) or `1d` (from midnight to midnight).
        page_limit: base bars per page.
    """
    runs = _runs(missing, timeframe)
    # best[i] is the cheapest way to cover runs[i:]: (pages, base bars, end of its first window).
    best: list[tuple[int, int, int]] = [(0, 0, 0)] * (len(runs) + 1)
    for i in reversed(range(len(runs))):
        options = []
        apart = 0
        span = runs[i]
        for j in range(i, len(runs)):
            span = runs[j] if j == i else _joined(span, runs[j])
            apart += _pages(runs[j].base_bars, page_limit)
            pages = _pages(span.base_bars, page_limit)
            if pages > apart:
                break  # and so is every longer one no cheaper than its parts
            # Of equally cheap ways, the one with the fewest windows: a request has a latency of its own.
            options.append((pages + best[j + 1][0], len(runs) - j, j + 1))
        cheapest = min(options)
        best[i] = cheapest
    made = []
    i = 0
    while i < len(runs):
        j = best[i][2]
        span = runs[i]
        for run in runs[i + 1 : j]:
            span = _joined(span, run)
        calls = _pages(span.base_bars, page_limit)
        made.append(Window(Interval(span.start, span.end), timeframe, calls, span.base_bars))
        i = j
    return tuple(made)


def estimate(asked: Iterable[Window], plan: Plan) -> Estimate:
    """Return what `asked` costs at the plan's limit; for a first backfill an upper bound in every figure."""
    calls, size = 0, 0
    for window in asked:
        calls += window.expected_calls
        minutes = 1 if window.timeframe is Timeframe.D1 else window.timeframe.minutes
        size += -(-window.base_bars // minutes) * BYTES_PER_BAR
    limit = plan.calls_per_minute
    spacing = 1 / UNLIMITED_CALLS_PER_SECOND if limit is None else spacing_seconds(limit)
    return Estimate(calls, calls, size, max(0, calls - 1) * spacing)


def _pages(base_bars: int, page_limit: int) -> int:
    return max(1, -(-base_bars // page_limit))


def _runs(missing: Sequence[Session], timeframe: Timeframe) -> list[_Run]:
    runs: list[_Run] = []
    for session in missing:
        run = _run(session, timeframe)
        if runs and not _trading_days_between(runs[-1], run):
            runs[-1] = _joined(runs[-1], run)
        else:
            runs.append(run)
    return runs


def _run(session: Session, timeframe: Timeframe) -> _Run:
    length = session.end - session.start
    every_day = length >= _DAY
    if timeframe is Timeframe.D1:
        return _Run(session.day_start, session.day_end, session.date, session.date, 1, 1, every_day)
    full = 1440 if every_day else 960
    return _Run(session.start, session.end, session.date, session.date, length // _MINUTE, full, every_day)


def _joined(first: _Run, second: _Run) -> _Run:
    """Return both runs and what lies between them."""
    between = _trading_days_between(first, second) * first.day_bars
    base_bars = first.base_bars + between + second.base_bars
    return first._replace(end=second.end, last=second.last, base_bars=base_bars)


def _trading_days_between(first: _Run, second: _Run) -> int:
    """Return how many dates between the runs may be trading days: holidays count, weekends only where they trade."""
    days = (second.first - first.last).days - 1
    if first.every_day:
        return days
    return sum((first.last + i * _DAY).weekday() < _SATURDAY for i in range(1, days + 1))
