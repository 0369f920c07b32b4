"""Which days are worth a request, on the real calendar around Thanksgiving 2025."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.calendar import NEW_YORK, calendar_for
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.ingest.coverage import status_after
from market_data_pipeline.ingest.fetch_plan import Timing, days_to_fetch, with_lost_days
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.domain.strategies import laws

CALENDAR = calendar_for(AssetClass.US_EQUITY)
# Wednesday, Friday (early close), Monday: Thursday is Thanksgiving.
WEEK = CALENDAR.sessions(date(2025, 11, 26), date(2025, 12, 2))
WEDNESDAY, FRIDAY, MONDAY = WEEK


def new_york(day: int, hour: int, minute: int = 0, month: int = 11) -> datetime:
    return datetime(2025, month, day, hour, minute, tzinfo=NEW_YORK).astimezone(UTC)


def timing(now: datetime, delay: timedelta = timedelta(0)) -> Timing:
    return Timing(CALENDAR, lambda end: end + delay, now)


def held(session_date: date, status: CoverageStatus, fetched: datetime, rows: int = 192) -> dict[date, Coverage]:
    return {session_date: Coverage(session_date, status, rows, fetched)}


def days(now: datetime, coverage: dict[date, Coverage], base: Timeframe = Timeframe.M5, **more: bool) -> list[date]:
    return [session.date for session in days_to_fetch(WEEK, coverage, base, timing(now), **more)]


def test_an_unknown_day_is_fetched_as_soon_as_its_first_bar_is_served() -> None:
    assert days(new_york(26, 4, 4), {}) == []
    assert days(new_york(26, 4, 5), {}) == [WEDNESDAY.date]


def test_a_day_bar_is_fetched_once_its_day_is_over() -> None:
    assert days(new_york(26, 23, 59), {}, Timeframe.D1) == []
    assert days(new_york(27, 0, 0), {}, Timeframe.D1) == [WEDNESDAY.date]


@pytest.mark.parametrize("status", [CoverageStatus.COMPLETE, CoverageStatus.EMPTY_CONFIRMED])
def test_a_final_day_is_never_fetched_again(status: CoverageStatus) -> None:
    assert days(new_york(28, 12), held(WEDNESDAY.date, status, new_york(27, 11))) == [FRIDAY.date]


def test_a_day_that_a_better_plan_now_reaches_is_fetched() -> None:
    clamped = held(WEDNESDAY.date, CoverageStatus.CLAMPED, new_york(27, 11), rows=0)
    assert days(new_york(27, 12), clamped) == [WEDNESDAY.date]


def test_a_failed_day_is_fetched_again() -> None:
    failed = held(WEDNESDAY.date, CoverageStatus.FAILED, new_york(26, 10), rows=0)
    assert days(new_york(26, 10, 1), failed) == [WEDNESDAY.date]


def test_a_session_in_progress_is_fetched_when_another_bar_is_served() -> None:
    fetched = held(WEDNESDAY.date, CoverageStatus.PROVISIONAL, new_york(26, 10, 2))
    assert days(new_york(26, 10, 4), fetched) == []
    assert days(new_york(26, 10, 5), fetched) == [WEDNESDAY.date]


def test_the_plans_delay_postpones_a_bar() -> None:
    fetched = held(WEDNESDAY.date, CoverageStatus.PROVISIONAL, new_york(26, 10, 17))
    late = timing(new_york(26, 10, 19), timedelta(minutes=15))
    assert days_to_fetch(WEEK, fetched, Timeframe.M5, late) == ()
    late = timing(new_york(26, 10, 20), timedelta(minutes=15))
    assert days_to_fetch(WEEK, fetched, Timeframe.M5, late) == (WEDNESDAY,)


def test_a_night_and_a_holiday_cost_two_requests_in_all() -> None:
    """After the close the day is read once for late trades and once when it has settled, and not in between."""
    closed = held(WEDNESDAY.date, CoverageStatus.PROVISIONAL, new_york(26, 20, 0))
    assert days(new_york(26, 20, 14), closed) == []
    assert days(new_york(26, 20, 15), closed) == [WEDNESDAY.date]
    read_again = held(WEDNESDAY.date, CoverageStatus.PROVISIONAL, new_york(26, 20, 15))
    assert days(new_york(27, 10, 59), read_again) == []
    assert days(new_york(27, 11, 0), read_again) == [WEDNESDAY.date]


def test_an_early_close_ends_at_17_new_york() -> None:
    fetched = held(WEDNESDAY.date, CoverageStatus.COMPLETE, new_york(27, 11))
    fetched |= held(FRIDAY.date, CoverageStatus.PROVISIONAL, new_york(28, 17, 15))
    assert days(new_york(28, 19, 0), fetched) == []


def lost(now: datetime, fetched: datetime, *, due: bool = False, **more: bool) -> list[date]:
    """Return what is requested of a symbol that traded on all days before Wednesday, and of Wednesday has no bar."""
    sessions = CALENDAR.sessions(date(2025, 11, 10), date(2025, 12, 2))
    known = {
        day.date: Coverage(day.date, CoverageStatus.COMPLETE, more.get(f"day_{day.date.day}", 192), fetched)
        for day in sessions
        if day.date < WEDNESDAY.date
    }
    status = CoverageStatus.EMPTY_CONFIRMED if fetched > new_york(27, 11) else CoverageStatus.PROVISIONAL
    known |= held(WEDNESDAY.date, status, fetched, rows=0)
    found = with_lost_days((FRIDAY,) if due else (), sessions, known, Timeframe.M5, timing(now))
    return [session.date for session in found]


def test_a_day_that_the_vendor_may_have_lost_is_requested_hourly_until_it_settles() -> None:
    assert lost(new_york(26, 21, 14), new_york(26, 20, 15)) == []
    assert lost(new_york(26, 21, 15), new_york(26, 20, 15)) == [WEDNESDAY.date]
    assert lost(new_york(27, 13), new_york(27, 11, 15)) == []


def test_for_three_days_a_lost_day_comes_along_with_other_requests() -> None:
    along = [WEDNESDAY.date, FRIDAY.date]
    assert lost(new_york(28, 4, 15), new_york(27, 11, 15), due=True) == along
    assert lost(new_york(28, 4, 15), new_york(28, 4, 1), due=True) == [FRIDAY.date]  # a moment ago
    assert lost(new_york(29, 23, 59), new_york(28, 11, 15), due=True) == along
    assert lost(new_york(30, 0, 0), new_york(28, 11, 15), due=True) == [FRIDAY.date]


def test_a_symbol_that_often_has_no_bar_for_a_day_has_lost_none() -> None:
    quiet = {f"day_{day}": False for day in (12, 18, 20)}
    assert lost(new_york(26, 21, 15), new_york(26, 20, 15), **quiet) == []


def test_a_settled_day_without_a_bar_gets_a_second_look_before_it_counts_as_empty() -> None:
    settled = new_york(27, 12)
    first = status_after(WEDNESDAY, 0, None, timing(settled))
    assert first is CoverageStatus.PROVISIONAL
    known = held(WEDNESDAY.date, first, settled, rows=0)
    assert days(settled + timedelta(minutes=14), known) == []
    assert days(settled + timedelta(minutes=15), known) == [WEDNESDAY.date]
    second = status_after(WEDNESDAY, 0, known[WEDNESDAY.date], timing(settled + timedelta(minutes=15)))
    assert second is CoverageStatus.EMPTY_CONFIRMED


def test_a_day_that_is_confirmed_empty_stays_so_when_another_empty_answer_covers_it() -> None:
    confirmed = Coverage(WEDNESDAY.date, CoverageStatus.EMPTY_CONFIRMED, 0, new_york(27, 11, 20))
    later = timing(new_york(28, 20, 20))
    assert status_after(WEDNESDAY, 0, confirmed, later) is CoverageStatus.EMPTY_CONFIRMED
    assert status_after(WEDNESDAY, 0, confirmed, later, cut=True) is CoverageStatus.EMPTY_CONFIRMED
    assert status_after(WEDNESDAY, 3, confirmed, later) is CoverageStatus.COMPLETE


def test_a_complete_day_stays_so_when_an_answer_that_ends_with_it_says_the_same() -> None:
    complete = Coverage(WEDNESDAY.date, CoverageStatus.COMPLETE, 192, new_york(27, 11))
    later = timing(new_york(28, 20, 20))
    assert status_after(WEDNESDAY, 192, complete, later, cut=True) is CoverageStatus.COMPLETE
    assert status_after(WEDNESDAY, 96, complete, later, cut=True) is CoverageStatus.PROVISIONAL


STEPS = st.lists(st.tuples(st.integers(0, 4 * 24 * 4), st.sampled_from([0, 0, 0, 192]), st.booleans()), max_size=12)


@laws
@given(STEPS)
def test_without_news_a_days_status_only_moves_forward(steps: list[tuple[int, int, bool]]) -> None:
    """Answers at any quarter hour of four days, with or without the day's bars, cut off after it or not."""
    forward = [CoverageStatus.PROVISIONAL, CoverageStatus.EMPTY_CONFIRMED, CoverageStatus.COMPLETE]
    known: Coverage | None = None
    for quarters, rows, cut in sorted(steps):
        now = new_york(26, 4) + timedelta(minutes=15 * quarters)
        if known is not None and rows < known.rows:
            continue  # bars that an answer lacks are news, and another rule's
        status = status_after(WEDNESDAY, rows, known, timing(now), cut=cut)
        if known is not None and rows == known.rows:
            assert forward.index(status) >= forward.index(known.status)
        known = Coverage(WEDNESDAY.date, status, rows, now)


def test_a_day_is_complete_only_once_it_has_settled() -> None:
    assert status_after(WEDNESDAY, 192, None, timing(new_york(27, 10, 59))) is CoverageStatus.PROVISIONAL
    assert status_after(WEDNESDAY, 192, None, timing(new_york(27, 11, 0))) is CoverageStatus.COMPLETE


def test_a_full_refresh_fetches_every_day_that_the_plan_reaches() -> None:
    known = held(WEDNESDAY.date, CoverageStatus.COMPLETE, new_york(27, 11))
    known |= held(FRIDAY.date, CoverageStatus.EMPTY_CONFIRMED, new_york(30, 11), rows=0)
    assert days(new_york(2, 12, month=12), known, full=True) == [WEDNESDAY.date, FRIDAY.date, MONDAY.date]


def test_a_refused_day_is_requested_by_the_next_refresh_then_ever_more_rarely_and_at_last_four_times_a_day() -> None:
    began = new_york(27, 12)
    known = Coverage(WEDNESDAY.date, CoverageStatus.FAILED, 0, began, doubted_at=began, reason="bar 3: no close")
    assert days(began, {WEDNESDAY.date: known}) == [WEDNESDAY.date]
    asked = []
    for quarters in range(1, 4 * 24 * 4):
        now = began + quarters * timedelta(minutes=15)
        if WEDNESDAY.date in days(now, {WEDNESDAY.date: known}):
            known = replace(known, fetched_at=now)
            asked.append(quarters)
    assert asked[:6] == [1, 2, 3, 5, 8, 12]
    assert [later - earlier for earlier, later in pairwise(asked[-8:])] == [24] * 7


def test_a_refused_day_in_progress_is_requested_whenever_another_bar_is_served() -> None:
    began, last = new_york(26, 5), new_york(26, 10, 2)
    known = Coverage(WEDNESDAY.date, CoverageStatus.PROVISIONAL, 12, last, doubted_at=began, reason="bar 3: no close")
    assert days(new_york(26, 10, 4), {WEDNESDAY.date: known}) == []
    assert days(new_york(26, 10, 5), {WEDNESDAY.date: known}) == [WEDNESDAY.date]
