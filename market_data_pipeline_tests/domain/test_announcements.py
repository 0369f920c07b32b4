"""Until when bars of an announced day are to be expected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from market_data_pipeline.domain.announcements import Announcement, DayStatus
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.ingest.coverage import ExpectedBars, silence_of
from market_data_pipeline.ingest.fetch_plan import Timing
from market_data_pipeline.store.coverage import Coverage, CoverageStatus
from market_data_pipeline_tests.domain.strategies import EQUITIES, new_york

TODAY = new_york("2026-11-17 12:00").date()  # a Tuesday with a full session in the calendar
ONE = new_york("2026-11-17 13:00").astimezone(UTC)
MINUTE = timedelta(minutes=1)
SESSIONS = EQUITIES.sessions(TODAY - timedelta(days=10), TODAY + timedelta(days=1))


def due(now: datetime, last: str, said: Announcement | None, timeframe: Timeframe = Timeframe.M5) -> datetime:
    """Return when the first missing bar is due of a symbol whose last bar starts at a time in New York."""
    last_ts = new_york(last).astimezone(UTC)
    held = EQUITIES.session_date(last_ts)
    known = {day.date: Coverage(day.date, CoverageStatus.COMPLETE, 100, now) for day in SESSIONS if day.date <= held}
    if TODAY in known:
        known[TODAY] = Coverage(TODAY, CoverageStatus.PROVISIONAL, 100, now)
    announced = {} if said is None else {said.session_date: said}
    timing = Timing(EQUITIES, lambda end: end, now)
    expected = ExpectedBars(timeframe, timing, SESSIONS, known, silence_of(SESSIONS, known), announced=announced)
    found = expected.next_due(last_ts, 0)
    assert found is not None
    return found


CLOSED = Announcement(TODAY, DayStatus.CLOSED, "Mourning")
EARLY = Announcement(TODAY, DayStatus.EARLY_CLOSE, "Mourning", ONE)
TOMORROW = new_york("2026-11-18 04:07").astimezone(UTC)


def test_on_a_closed_day_the_next_bar_is_due_after_the_next_session_begins() -> None:
    noon = ONE - timedelta(hours=1)
    assert due(noon, "2026-11-16 19:55", None) < noon
    assert due(noon, "2026-11-16 19:55", CLOSED) == TOMORROW
    assert due(noon, "2026-11-16 00:00", CLOSED, Timeframe.D1) == new_york("2026-11-19 00:02").astimezone(UTC)


def test_a_bar_on_an_announced_closing_shows_that_the_market_trades() -> None:
    assert due(ONE, "2026-11-17 04:00", CLOSED) < ONE


def test_after_an_early_close_and_the_hours_after_it_no_bar_is_due() -> None:
    five = ONE + timedelta(hours=4)
    assert due(five - MINUTE, "2026-11-17 16:00", EARLY) < five
    assert due(five, "2026-11-17 16:00", EARLY) == TOMORROW
    assert due(five, "2026-11-17 12:55", EARLY) == TOMORROW
    assert due(five, "2026-11-17 11:55", EARLY) < five  # it stopped before
    assert due(five, "2026-11-16 00:00", EARLY, Timeframe.D1) == new_york("2026-11-18 00:02").astimezone(UTC)
