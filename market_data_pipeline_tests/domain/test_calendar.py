"""Trading sessions against the exchange's own announcements, and slots across clock changes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain import exchange_days
from market_data_pipeline.domain.calendar import (
    END_DATE,
    FIRST_DATE,
    SessionCalendar,
    calendar_for,
    expected_slots,
    from_us,
    slot_count,
    slot_start,
    to_us,
)
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline_tests.domain.exchange_days import text
from market_data_pipeline_tests.domain.strategies import (
    CRYPTO,
    EQUITIES,
    NEW_YORK,
    calendars,
    days,
    instants,
    laws,
    new_york,
)

DAY = timedelta(days=1)

# "Holidays & Trading Hours", nyse.com/markets/hours-calendars: full holidays and 13:00 closes as announced; 9 January
# 2025 by the announcement of 30 December 2024 (President Carter's day of mourning).
NYSE_HOLIDAYS = {
    2025: "01-01 01-09 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25",
    2026: "01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 12-25",
    2027: "01-01 01-18 02-15 03-26 05-31 06-18 07-05 09-06 11-25 12-24",
}
NYSE_EARLY_CLOSES = {2025: "07-03 11-28 12-24", 2026: "11-27 12-24", 2027: "11-26"}


def dates(year: int, text: str) -> set[date]:
    return {date.fromisoformat(f"{year}-{day}") for day in text.split()}


@pytest.mark.parametrize("year", NYSE_HOLIDAYS)
def test_equity_sessions_are_the_weekdays_that_the_exchange_announced(year: int) -> None:
    weekdays = {date(year, 1, 1) + i * DAY for i in range(365) if (date(year, 1, 1) + i * DAY).weekday() < 5}
    sessions = EQUITIES.sessions(date(year, 1, 1), date(year + 1, 1, 1))
    assert {s.date for s in sessions} == weekdays - dates(year, NYSE_HOLIDAYS[year])
    assert {s.date for s in sessions if s.early_close} == dates(year, NYSE_EARLY_CLOSES[year])


@laws
@given(days)
def test_an_equity_session_lasts_from_four_to_eight_or_five_on_new_yorks_clock(day: date) -> None:
    session = EQUITIES.session_on(day)
    if session is None:
        return
    assert session.start == new_york(f"{day} 04:00")
    assert session.end == new_york(f"{day} {'17' if session.early_close else '20'}:00")
    assert (session.day_start, session.day_end) == (new_york(f"{day} 00:00"), new_york(f"{day + DAY} 00:00"))


@laws
@given(days)
def test_every_utc_day_is_a_crypto_session(day: date) -> None:
    session = CRYPTO.session_on(day)
    assert session is not None
    assert session.start == session.day_start == datetime(day.year, day.month, day.day, tzinfo=UTC)
    assert session.end == session.day_end == session.start + DAY


def test_the_local_day_has_23_hours_in_spring_and_25_in_autumn() -> None:
    spring, autumn = date(2025, 3, 9), date(2025, 11, 2)
    assert EQUITIES.midnight(spring + DAY) - EQUITIES.midnight(spring) == timedelta(hours=23)
    assert EQUITIES.midnight(autumn + DAY) - EQUITIES.midnight(autumn) == timedelta(hours=25)


def literal_slots(calendar: SessionCalendar, timeframe: Timeframe, day: date) -> list[datetime]:
    """The slots of a session day as a person reads them off the exchange's clock."""
    session = calendar.session_on(day)
    if session is None:
        return []
    if timeframe is Timeframe.D1:
        return [session.day_start]
    wall = [datetime.combine(day, time()) + m * timedelta(minutes=1) for m in range(0, 1440, 5)]
    anchor = 4 if calendar is EQUITIES else 0
    on_grid = [w for w in wall if (w.hour - anchor) * 60 + w.minute >= 0]
    on_grid = [w for w in on_grid if ((w.hour - anchor) * 60 + w.minute) % timeframe.minutes == 0]
    instants = [w.replace(tzinfo=calendar.tz).astimezone(UTC) for w in on_grid]
    return [ts for ts in instants if session.start <= ts < session.end]


@laws
@given(calendars, st.sampled_from(Timeframe), days)
def test_slots_are_those_of_the_exchanges_clock(calendar: SessionCalendar, timeframe: Timeframe, day: date) -> None:
    session = calendar.session_on(day)
    expected = literal_slots(calendar, timeframe, day)
    if session is not None:
        assert [from_us(us) for us in calendar.slots_us(timeframe, session)] == expected
        assert [slot_start(timeframe, session, i) for i in range(slot_count(timeframe, session))] == expected
        assert slot_count(timeframe, session) <= calendar.full_slot_count(timeframe)


@laws
@given(calendars, st.sampled_from(Timeframe), instants, st.integers(0, 14 * 24 * 60))
def test_slots_between_are_the_sessions_slots_that_start_inside(
    calendar: SessionCalendar, timeframe: Timeframe, start: datetime, minutes: int
) -> None:
    end = start + timedelta(minutes=minutes)
    found = [from_us(us) for us in calendar.slots_between(timeframe, Interval(start, end))]
    first = calendar.session_date(start)
    near = [ts for i in range(16) for ts in literal_slots(calendar, timeframe, first + i * DAY)]
    assert found == [ts for ts in near if start <= ts < end]


def test_four_hour_slots_keep_new_yorks_hours_in_summer_and_winter() -> None:
    for day in (date(2025, 7, 15), date(2025, 1, 15)):
        session = EQUITIES.session_on(day)
        assert session is not None
        local = [from_us(us).astimezone(NEW_YORK).hour for us in EQUITIES.slots_us(Timeframe.H4, session)]
        assert local == [4, 8, 12, 16]


@laws
@given(calendars, st.lists(instants, min_size=1, max_size=20))
def test_many_instants_get_the_dates_that_each_gets_alone(calendar: SessionCalendar, some: list[datetime]) -> None:
    found = calendar.session_days(np.array([to_us(ts) for ts in some]))
    assert found.tolist() == [calendar.session_date(ts) for ts in some]
    assert [from_us(to_us(ts)) for ts in some] == some


@laws
@given(calendars, days)
def test_neighbouring_sessions_have_none_between_them(calendar: SessionCalendar, day: date) -> None:
    after, before = calendar.next_session(day), calendar.previous_session(day)
    assert before.date < day < after.date
    between = calendar.sessions(before.date + DAY, after.date)
    assert [s.date for s in between] == ([day] if calendar.session_on(day) else [])


@pytest.mark.parametrize("calendar", [EQUITIES, CRYPTO])
def test_a_date_outside_the_calendar_is_refused_with_its_range(calendar: SessionCalendar) -> None:
    for ask in (
        lambda: calendar.session_on(END_DATE),
        lambda: calendar.sessions(FIRST_DATE - DAY, FIRST_DATE + DAY),
        lambda: calendar.next_session(END_DATE - DAY),
        lambda: calendar.next_session(END_DATE - 2 * DAY) if calendar is EQUITIES else calendar.session_on(END_DATE),
        lambda: calendar.previous_session(FIRST_DATE),
        lambda: calendar.slots_between(
            Timeframe.M5, Interval(datetime(1980, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
        ),
    ):
        with pytest.raises(UsageError, match="1990-01-01 to 2039-12-31"):
            ask()
    assert calendar.sessions(END_DATE - timedelta(days=7), END_DATE)[-1].date.year == 2039


@laws
@given(calendars, st.lists(instants, max_size=40, unique=True))
def test_the_first_instants_of_days_are_those_whose_date_differs_from_the_one_before(
    calendar: SessionCalendar, some: list[datetime]
) -> None:
    dates = [calendar.session_date(ts) for ts in sorted(some)]
    expected = [i for i, day in enumerate(dates) if i == 0 or day != dates[i - 1]]
    found = calendar.first_of_days(np.array([to_us(ts) for ts in sorted(some)], dtype="int64"))
    assert found.tolist() == expected


def test_asking_about_a_session_loads_no_heavy_library() -> None:
    """Dagster's code location imports these modules on every start of a process."""
    code = """
import datetime
import sys
from market_data_pipeline.domain import adjustments, calendar, freshness, intervals, objectives
from market_data_pipeline.domain.series import AssetClass
made = calendar.calendar_for(AssetClass.US_EQUITY)
assert made is calendar.calendar_for(AssetClass.US_EQUITY)
assert made.session_on(datetime.date(2025, 11, 28)).early_close
print([name for name in ("numpy", "pandas", "exchange_calendars", "pyarrow", "dagster") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_listed_days_are_those_of_the_installed_exchange_calendars() -> None:
    listed = Path(exchange_days.__file__).read_text(encoding="utf-8")
    assert listed == text(), "run: python -m market_data_pipeline_tests.domain.exchange_days"


def test_with_another_exchange_calendars_its_own_days_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = SessionCalendar(AssetClass.US_EQUITY)
    answers = [listed.session_on(FIRST_DATE + timedelta(days=number)) for number in range(0, 18_000, 3)]
    monkeypatch.setattr(exchange_days, "MADE_FROM", "4.10")
    monkeypatch.setattr(exchange_days, "CLOSED", "")
    theirs = SessionCalendar(AssetClass.US_EQUITY)
    assert [theirs.session_on(FIRST_DATE + timedelta(days=number)) for number in range(0, 18_000, 3)] == answers


def test_the_calendars_speak_the_exchanges_time_zone() -> None:
    assert calendar_for(AssetClass.US_EQUITY).tz == ZoneInfo("America/New_York")
    assert calendar_for(AssetClass.CRYPTO).tz == ZoneInfo("UTC")


def hours(asset_class: AssetClass, day: date) -> str | None:
    """Return a session's hours in UTC, with the date of its end where that is another."""
    session = calendar_for(asset_class).session_on(day)
    return session and f"{session.start:%a %H:%M} to {session.end:%a %H:%M}"


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (date(2026, 3, 6), "Fri 00:00 to Fri 22:00"),  # 17:00 New York in winter
        (date(2026, 3, 7), None),
        (date(2026, 3, 8), "Sun 21:00 to Mon 00:00"),  # clocks went forward that morning
        (date(2026, 3, 9), "Mon 00:00 to Tue 00:00"),
        (date(2026, 3, 13), "Fri 00:00 to Fri 21:00"),
        (date(2026, 10, 30), "Fri 00:00 to Fri 21:00"),
        (date(2026, 11, 1), "Sun 22:00 to Mon 00:00"),  # clocks went back that morning
        (date(2026, 11, 26), "Thu 00:00 to Fri 00:00"),  # Thanksgiving
        (date(2026, 12, 25), "Fri 00:00 to Fri 22:00"),
    ],
)
def test_a_week_of_forex_lasts_from_sunday_to_friday_17_00_new_york(day: date, expected: str | None) -> None:
    assert hours(AssetClass.FOREX, day) == expected


def test_a_week_of_forex_has_120_hours_and_six_day_bars() -> None:
    calendar = calendar_for(AssetClass.FOREX)
    for sunday in (date(2026, 3, 8), date(2026, 7, 5), date(2026, 11, 1)):
        week = Interval(calendar.midnight(sunday), calendar.midnight(sunday + timedelta(days=7)))
        counts = [len(calendar.slots_between(timeframe, week)) for timeframe in Timeframe]
        assert counts[:3] + counts[-1:] == [120 * 12, 120 * 4, 120, 6]
    # The last 4h bar of a week, and the first, begin on the day's grid and are cut by the market's hours.
    first, last = (calendar.slots_between(Timeframe.H4, week)[at] for at in (0, -1))
    assert [from_us(int(us)).strftime("%a %H:%M") for us in (first, last)] == ["Sun 20:00", "Fri 20:00"]


@pytest.mark.parametrize("asset_class", AssetClass)
@pytest.mark.parametrize("timeframe", Timeframe)
def test_slots_one_by_one_are_those_of_the_arrays(asset_class: AssetClass, timeframe: Timeframe) -> None:
    calendar = calendar_for(asset_class)
    sessions = calendar.sessions(date(2026, 10, 28), date(2026, 12, 1))
    one_by_one = [
        to_us(slot_start(timeframe, each, index)) for each in sessions for index in range(slot_count(timeframe, each))
    ]
    within = Interval(sessions[0].day_start, sessions[-1].day_end)
    slots = calendar.slots_between(timeframe, within)
    assert slots.tolist() == one_by_one
    assert calendar.in_session(timeframe, slots).all()
    assert one_by_one == [us for each in sessions for us in calendar.slots_us(timeframe, each).tolist()]


@pytest.mark.parametrize(("day", "closes"), [(date(2026, 11, 25), "16:00"), (date(2026, 11, 27), "13:00")])
def test_bars_of_an_index_are_expected_in_regular_hours(day: date, closes: str) -> None:
    index, stock = (calendar_for(each).session_on(day) for each in (AssetClass.INDEX, AssetClass.US_EQUITY))
    assert index is not None
    assert stock is not None
    assert (index.start, index.end, index.day_start) == (stock.start, stock.end, stock.day_start)
    local = [f"{at.astimezone(NEW_YORK):%H:%M}" for at in (index.expected_start, index.expected_end)]
    assert local == ["09:30", closes]
    assert local == [f"{at.astimezone(NEW_YORK):%H:%M}" for at in (stock.regular_start, stock.regular_end)]
    assert (stock.expected_start, stock.expected_end) == (stock.start, stock.end)
    for timeframe in (Timeframe.M5, Timeframe.H1, Timeframe.H4):
        expected = expected_slots(timeframe, index)
        bars = np.array([to_us(slot_start(timeframe, index, slot)) for slot in expected])
        _, slots, counts = calendar_for(AssetClass.INDEX).expected_slot_index(timeframe, bars)
        assert slots.tolist() == list(range(len(expected)))
        assert set(counts.tolist()) == {len(expected)}


def test_an_index_rests_when_the_exchange_does() -> None:
    assert calendar_for(AssetClass.INDEX).session_on(date(2026, 11, 26)) is None  # Thanksgiving
    assert calendar_for(AssetClass.INDEX).session_on(date(2026, 6, 19)) is None
