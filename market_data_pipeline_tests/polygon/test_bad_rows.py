"""However rows are damaged: every day beyond doubt comes in as it is, and every other is refused with its row named."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.rows import Rows
from market_data_pipeline.polygon.wire import BarsAnswer, joined, read_bars
from market_data_pipeline_tests.domain.strategies import NEW_YORK, laws
from market_data_pipeline_tests.polygon.damage import Answered, Row, answers
from market_data_pipeline_tests.polygon.vendor import page
from market_data_pipeline_tests.polygon.vendor import rows as by_vendors_names


def read(answer: Answered, rows: list[Row], timeframe: Timeframe, cuts: list[int]) -> BarsAnswer:
    """Decode the rows as the pages of one answer, cut where `cuts` says."""
    first, last = answer.sessions[0], answer.sessions[-1]
    daily = timeframe is Timeframe.D1
    interval = Interval(first.day_start, last.day_end) if daily else Interval(first.start, last.end)
    pages: list[Rows] = []
    bounds = [0, *sorted(cuts), len(rows)]
    for start, end in pairwise(bounds):
        part = rows[start:end]
        body = json.dumps(page(part)).encode()
        pages.append(read_bars(body, "AAPL", timeframe, interval, pages).rows)
    return joined(pages, "AAPL", timeframe, interval)


def same(found: list[dict[str, Any]], expected: list[Row]) -> bool:
    fields = ("t", "o", "h", "l", "c", "v", "vw", "n")
    nothing = float("nan")

    def values(row: Row) -> list[str]:
        return [repr(float(nothing if (value := row.get(name)) is None else value)) for name in fields]

    return [values(row) for row in found] == [values(row) for row in expected]


@settings(laws, max_examples=60)
@given(st.data(), st.booleans())
def test_the_good_days_equal_the_truth_and_the_spoilt_ones_are_refused_with_a_reason(
    data: st.DataObject, daily: bool
) -> None:
    answer = data.draw(answers(daily=daily))
    base = Timeframe.D1 if daily else Timeframe.M5
    # A page that holds nothing but what came before is a paging fault, so pages are cut between two starts.
    starts = [at for at in range(1, len(answer.rows)) if answer.rows[at]["t"] != answer.rows[at - 1]["t"]]
    cuts = data.draw(st.lists(st.sampled_from(starts), max_size=2, unique=True)) if starts else []
    found = read(answer, list(answer.rows), base, cuts)
    assert set(found.refused) == set(answer.spoiled)
    assert same(by_vendors_names(found.bars), [row for rows in answer.good.values() for row in rows])
    assert all(reason.startswith("AAPL ") and ", bar " in reason for reason in found.refused.values())
    assert len(found.outside) == 0


STAMPS = st.sampled_from([None, "soon", 0, -1, 10**18, 1.5]) | st.integers(-20, 20)


@settings(laws, max_examples=60)
@given(st.data())
def test_rows_with_damaged_stamps_refuse_their_own_day_and_at_most_their_neighbours(data: st.DataObject) -> None:
    answer = data.draw(answers(most=0))
    rows = [dict(row) for row in answer.rows]
    true_days = [datetime.fromtimestamp(row["t"] / 1000, NEW_YORK).date() for row in rows]
    damaged = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2))
    if len(damaged) == len(rows):
        return  # nothing says where they belong: the answer is refused as a whole
    named: set[date] = set()
    for at in damaged:
        stamp = data.draw(STAMPS)
        # A small number moves the bar by as many days and seven minutes, which puts it off the grid.
        moved = isinstance(stamp, int) and 0 < abs(stamp) <= 20
        rows[at]["t"] = rows[at]["t"] + stamp * 86_400_000 + 420_000 if moved else stamp
        if moved:
            named.add((datetime.fromtimestamp(rows[at]["t"] / 1000, NEW_YORK)).date())
    found = read(answer, rows, Timeframe.M5, [])
    # One that was moved to a day off, and still comes after the row before it, may have been a bar of that day.
    strays = {at for at in damaged if f"bar {at}, " in " ".join(found.warnings)}
    spoilt = {true_days[at] for at in damaged - strays}
    assert spoilt <= set(found.refused)
    kept = [row for at, row in enumerate(rows) if at not in strays and true_days[at] not in found.refused]
    assert same(by_vendors_names(found.bars), kept)
    # Nothing is refused that a damaged row could not belong to.
    order = [session.date for session in answer.sessions]
    good = [day for at, day in enumerate(true_days) if at not in damaged]
    possible = set(named)
    for at in damaged:
        before = max((day for day in good if day <= true_days[at]), default=order[0])
        after = min((day for day in good if day >= true_days[at]), default=order[-1])
        possible |= {day for day in order if before <= day <= after}
    assert set(found.refused) <= possible | neighbours(order, spoilt)


def neighbours(order: list[date], days: set[date]) -> set[date]:
    """Return the days next to `days`: two damaged rows in a row may leave none of their day to tell them apart."""
    return {
        order[at] for day in days for at in range(max(order.index(day) - 1, 0), min(order.index(day) + 2, len(order)))
    }


def test_one_bar_listed_twice_and_an_unquoted_nan_cost_nothing() -> None:
    """As recorded: 10:00 New York of 13 March 2025 twice; NaN under a key that is not documented, no `vw`, no `n`."""
    start = datetime(2025, 3, 13, 9, 55, tzinfo=NEW_YORK)
    interval = Interval(start, start + timedelta(minutes=10))
    ms = int(start.timestamp()) * 1000
    flat = dict.fromkeys(("o", "h", "l", "c", "vw"), 10) | {"v": 100, "n": 1}
    twice = [{**flat, "t": ms}, {**flat, "t": ms + 300_000}, {**flat, "t": ms + 300_000}]
    pages = [read_bars(json.dumps(page(twice)).encode(), "AAPL", Timeframe.M5, interval).rows]
    found = joined(pages, "AAPL", Timeframe.M5, interval)
    assert (len(found.bars), found.refused, len(found.warnings)) == (2, {}, 1)
    bare = {"v": 0, "a": float("nan"), **dict.fromkeys(("o", "c", "h", "l", "op"), 23.4269), "t": ms + 300_000}
    pages = [read_bars(json.dumps(page([bare])).encode(), "AAPL", Timeframe.M5, interval).rows]
    found = joined(pages, "AAPL", Timeframe.M5, interval)
    assert (len(found.bars), found.refused, len(found.warnings)) == (1, {}, 1)
