"""Which days of an answer are doubted: the rule over random losses and changes, with the counts made here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.bars import VALUES, bar_frame, ts_us
from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for, from_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.ingest.doubt import weighed
from market_data_pipeline.ingest.fetch import Answer
from market_data_pipeline.ingest.fetch_plan import Reach, Timing, plan_fetch
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.domain.strategies import laws

if TYPE_CHECKING:
    import pandas as pd

CALENDAR = calendar_for(AssetClass.US_EQUITY)
DAYS = CALENDAR.sessions(date(2026, 11, 16), date(2026, 11, 19))  # Monday to Wednesday
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=NEW_YORK).astimezone(UTC)
QUARTER = timedelta(minutes=15)


def frame(skipped: frozenset[int] = frozenset(), scaled: dict[int, float] | None = None) -> pd.DataFrame:
    """Return a bar for every slot of the three days except the skipped ones, some with their prices scaled."""
    starts = np.concatenate([CALENDAR.slots_us(Timeframe.M5, session) for session in DAYS])
    values = {name: np.full(len(starts), 100.0) for name in VALUES}
    for at, factor in (scaled or {}).items():
        for name in ("open", "high", "low", "close"):
            values[name][at] *= factor
    kept = np.array([at not in skipped for at in range(len(starts))])
    return bar_frame(starts[kept], {name: column[kept] for name, column in values.items()})


def answer(bars: pd.DataFrame, known: dict[date, Coverage], now: datetime = NOON, oldest: date | None = None) -> Answer:
    """Return the answer to a request for the three days."""
    timing = Timing(CALENDAR, lambda end: end, now)
    reach = Reach(DAYS, (), oldest)
    plan = plan_fetch(Series("AAPL", Timeframe.M5), reach, known, timing, last_ts=DAYS[-1].start, full=True)
    spans = (Interval(DAYS[0].start, DAYS[-1].end),)
    days = [from_us(us).astimezone(NEW_YORK).date() for us in ts_us(bars)]
    said = tuple(Coverage(day.date, CoverageStatus.COMPLETE, days.count(day.date), now) for day in DAYS)
    alone = frozenset(day.date for day in DAYS) if not days else frozenset()
    return Answer(plan, now, bars, spans, said, {**known, **{day.session_date: day for day in said}}, alone=alone)


def complete(fetched: datetime = NOON - timedelta(days=1)) -> dict[date, Coverage]:
    return {day.date: Coverage(day.date, CoverageStatus.COMPLETE, 192, fetched) for day in DAYS}


def doubted(given: Answer) -> set[date]:
    return {day.session_date for day in given.coverage if day.doubted_at is not None}


slots = st.integers(0, 3 * 192 - 1)


@laws
@given(
    st.lists(st.tuples(slots, st.integers(1, 40)), max_size=3),
    st.dictionaries(slots, st.sampled_from([1.004, 1.05, 0.4, 3.0]), max_size=30),
    st.booleans(),
)
def test_a_day_is_doubted_when_an_answer_takes_away_or_changes_more_than_a_twentieth_of_it(
    losses: list[tuple[int, int]], scaled: dict[int, float], settled: bool
) -> None:
    skipped = frozenset(at for start, count in losses for at in range(start, min(start + count, 576)))
    known = complete() if settled else complete(DAYS[0].end)
    given = answer(frame(skipped, scaled), known)
    found = weighed(given, frame())
    expected = set()
    for number, day in enumerate(DAYS):
        mine = range(number * 192, number * 192 + 192)
        lost = sum(at in skipped for at in mine)
        factors = [factor for at, factor in scaled.items() if at in mine and at not in skipped]
        changed = sum(abs(factor - 1) > 0.01 for factor in factors)
        absurd = any(factor > 2 or factor < 0.5 for factor in factors)
        if lost > 9.6 or (settled and (absurd or lost + changed > 9.6)):
            expected.add(day.date)
    assert doubted(found) == expected
    kept = {from_us(us).astimezone(NEW_YORK).date() for us in ts_us(found.bars)}
    assert not kept & expected
    assert all(span.start < span.end for span in found.spans)
    for day in found.coverage:
        if day.session_date in expected:
            assert (day.status, day.rows, day.fetched_at) == (CoverageStatus.PROVISIONAL, 192, NOON)
    assert bool(found.warnings) == bool(expected)


def looked(given: Answer, known: dict[date, Coverage]) -> dict[date, Coverage]:
    return known | {day.session_date: day for day in weighed(given, frame()).coverage}


HALF = frame(frozenset(range(192, 290)))


@pytest.mark.parametrize(
    ("second", "later", "believed"),
    [
        (HALF, QUARTER, True),
        (HALF, QUARTER - timedelta(seconds=1), False),  # too soon
        (frame(frozenset(range(192, 291))), QUARTER, False),  # it says something else
        (frame(), QUARTER, True),  # what is stored
    ],
)
def test_a_second_look_must_say_the_same_a_quarter_of_an_hour_later(
    second: pd.DataFrame, later: timedelta, believed: bool
) -> None:
    known = looked(answer(HALF, complete()), complete())
    assert known[DAYS[1].date].doubted_at == NOON
    found = weighed(answer(second, known, NOON + later), frame())
    assert doubted(found) == (set() if believed else {DAYS[1].date})
    assert len(found.bars) == (len(second) if believed else 2 * 192)


def test_a_first_look_before_the_day_settled_does_not_count() -> None:
    evening = DAYS[2].end + QUARTER
    known = complete(DAYS[2].start)
    first = answer(frame(frozenset(range(384, 450))), known, evening)
    known = looked(first, known)
    assert known[DAYS[2].date].doubted_at == evening
    morning = datetime(2026, 11, 19, 11, 0, tzinfo=NEW_YORK).astimezone(UTC)
    again = replace(first, plan=answer(first.bars, known, morning).plan)
    assert doubted(weighed(again, frame())) == {DAYS[2].date}
    known = looked(again, known)
    last = replace(first, plan=answer(first.bars, known, morning + QUARTER).plan)
    assert doubted(weighed(last, frame())) == set()


@pytest.mark.parametrize("edge", [0, 2])
def test_a_day_at_an_answers_edge_that_has_no_bar_is_doubted_and_the_rest_is_taken_in(edge: int) -> None:
    lost = frame(frozenset(range(edge * 192, edge * 192 + 192)))
    found = weighed(answer(lost, complete()), frame())
    assert doubted(found) == {DAYS[edge].date}
    assert len(found.bars) == 2 * 192
    later = weighed(answer(lost, looked(answer(lost, complete()), complete()), NOON + QUARTER), frame())
    assert doubted(later) == set()


def test_a_first_day_that_the_plan_may_no_longer_reach_is_kept_as_clamped() -> None:
    lost = frame(frozenset(range(192)))
    found = weighed(answer(lost, complete(), oldest=DAYS[0].date - timedelta(days=3)), frame())
    assert [(day.status, day.rows) for day in found.coverage] == [
        (CoverageStatus.CLAMPED, 192),
        (CoverageStatus.COMPLETE, 192),
        (CoverageStatus.COMPLETE, 192),
    ]
    assert doubted(found) == set()


def test_an_answer_without_any_bar_never_empties_what_is_stored() -> None:
    nothing = frame(frozenset(range(576)))
    known: dict[date, Any] = complete()
    for looks in range(5):
        now = NOON + looks * timedelta(hours=1)
        known = looked(answer(nothing, known, now), known)
        assert {(day.status, day.rows) for day in known.values()} == {(CoverageStatus.PROVISIONAL, 192)}
