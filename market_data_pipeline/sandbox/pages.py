"""How a range of bars is cut into pages.

`limit` counts base bars: the minutes behind minute and hour bars, the days behind day bars. A bar that the limit would
cut goes to the next page.
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


def page_of(view: View, requested: Range) -> Page:
    """Return the first page of a range."""
    if requested.step_ms:
        pieces = view.intraday(
            requested.ticker, requested.step_ms, requested.start_ms, requested.end_ms, descending=requested.descending
        )
    else:
        pieces = iter([_days(view, requested)])
    bars = _enough(pieces, requested)
    counted = np.cumsum(bars.base[::-1] if requested.descending else bars.base)
    # A bar of more base bars than the limit has a page of its own: the sandbox never sends one that does not advance.
    keep = max(int(np.searchsorted(counted, requested.limit, side="right")), 1)
    if keep >= len(bars):
        return Page(bars, None)
    if requested.descending:
        kept = bars.take(slice(len(bars) - keep, None))
        return Page(kept, int(kept.t[0]) - 1)
    kept = bars.take(slice(0, keep))
    return Page(kept, _following(int(kept.t[-1]), requested))


def _enough(pieces: Iterator[Bars], requested: Range) -> Bars:
    """Return enough bars for a page and a few more, to know whether another page follows."""
    held: list[Bars] = []
    for piece in pieces:
        held.append(piece)
        # A bar cut between two pieces counts twice here, hence three bars to be sure of two.
        if sum(int(p.base.sum()) for p in held) > requested.limit and sum(map(len, held)) >= 3:
            break
    return join(held[::-1] if requested.descending else held)


def _days(view: View, requested: Range) -> Bars:
    days = view.days(requested.ticker, requested.start_ms, requested.end_ms)
    if requested.multiplier == 1:
        return days
    calendar = requested.calendar
    dates = (calendar.session_date(from_ms(int(t))) for t in days.t)
    starts = [to_ms(calendar.midnight(bucket_day(date, requested.multiplier))) for date in dates]
    return aggregate(days, np.array(starts, dtype="int64"))


def _following(start_ms: int, requested: Range) -> int:
    """Return the end of the bar that starts at `start_ms`; days are local, so 23 or 25 hours twice a year."""
    if requested.step_ms:
        return start_ms + requested.step_ms
    date = requested.calendar.session_date(from_ms(start_ms)) + dt.timedelta(days=requested.multiplier)
    return to_ms(requested.calendar.midnight(date))


def reverse(bars: Bars) -> Bars:
    """Return the bars from last to first, as a descending page lists them."""
    return replace(bars, **{name: getattr(bars, name)[::-1] for name in bars.__slots__})
