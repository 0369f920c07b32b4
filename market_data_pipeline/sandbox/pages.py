"""How a range of bars is cut into pages.

`limit` counts base bars: the minutes behind minute and hour bars, the days behind day bars. A bar that the
limit would cut is left to the next page.

Add here: cutting. Keep out: reading requests (query) and writing answers (wire).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from market_data_pipeline.sandbox.bars import Bars, aggregate, join
from market_data_pipeline.sandbox.query import bucket_day
from market_data_pipeline.sandbox.view import from_ms, to_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline.sandbox.query import Range
    from market_data_pipeline.sandbox.view import View


class Page(NamedTuple):
    """The bars of one page, ascending, and where the next page begins.

    `resume` is None on the last page; else, in ms, the next page's `from`, or its `to` when descending.
    """

    bars: Bars
    resume: int | None


def page_of(view: View, asked: Range) -> Page:
    """Return the first page of a range."""
    if asked.step_ms:
        pieces = view.intraday(asked.ticker, asked.step_ms, asked.start_ms, asked.end_ms, descending=asked.descending)
    else:
        pieces = iter([_days(view, asked)])
    bars = _enough(pieces, asked)
    counted = np.cumsum(bars.base[::-1] if asked.descending else bars.base)
    # A bar of more base bars than the limit has a page of its own: the sandbox never sends one that does not advance.
    keep = max(int(np.searchsorted(counted, asked.limit, side="right")), 1)
    if keep >= len(bars):
        return Page(bars, None)
    if asked.descending:
        kept = bars.take(slice(len(bars) - keep, None))
        return Page(kept, int(kept.t[0]) - 1)
    kept = bars.take(slice(0, keep))
    return Page(kept, _following(int(kept.t[-1]), asked))


def _enough(pieces: Iterator[Bars], asked: Range) -> Bars:
    """Return what fills a page and a little more, so that it is known whether anything follows."""
    held: list[Bars] = []
    for piece in pieces:
        held.append(piece)
        # A bar cut between two pieces counts twice here, hence three bars to be sure of two.
        if sum(int(p.base.sum()) for p in held) > asked.limit and sum(map(len, held)) >= 3:
            break
    return join(held[::-1] if asked.descending else held)


def _days(view: View, asked: Range) -> Bars:
    days = view.days(asked.ticker, asked.start_ms, asked.end_ms)
    if asked.multiplier == 1:
        return days
    calendar = asked.calendar
    dates = (calendar.session_date(from_ms(int(t))) for t in days.t)
    starts = [to_ms(calendar.midnight(bucket_day(date, asked.multiplier))) for date in dates]
    return aggregate(days, np.array(starts, dtype="int64"))


def _following(start_ms: int, asked: Range) -> int:
    """Return the end of the bar that starts at `start_ms`; days are local, so 23 or 25 hours twice a year."""
    if asked.step_ms:
        return start_ms + asked.step_ms
    date = asked.calendar.session_date(from_ms(start_ms)) + dt.timedelta(days=asked.multiplier)
    return to_ms(asked.calendar.midnight(date))


def reverse(bars: Bars) -> Bars:
    """Return the bars from last to first, as a descending page lists them."""
    return replace(bars, **{name: getattr(bars, name)[::-1] for name in bars.__slots__})
