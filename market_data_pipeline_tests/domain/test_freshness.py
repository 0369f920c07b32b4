"""When the next bar is due and how stale a series is, by hand-worked examples."""

from __future__ import annotations

from collections.abc import Container
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.calendar import SessionCalendar, calendar_for, from_us, slot_count, to_us
from market_data_pipeline.domain.freshness import (
    Availability,
    bar_end,
    expected_last_ts,
    freshness,
    next_due,
    quiet_slots,
    settled_at,
    staleness_seconds,
)
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.objectives import DUE_GRACE, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe
from market_data_pipeline_tests.domain.strategies import (
    CRYPTO,
    EQUITIES,
    INTRADAY,
    NEW_YORK,
    calendars,
    instants,
    laws,
    new_york,
)

DAY = timedelta(days=1)
HISTORY_START = datetime(2022, 6, 1, tzinfo=UTC)


def real_time(end: datetime) -> datetime:
    return end


def quarter_hour_late(end: datetime) -> datetime:
    return end + timedelta(minutes=15)


def end_of_day(end: datetime) -> datetime:
    """Served at the New York midnight at or after the bar's end."""
    day = end.astimezone(NEW_YORK).date()
    return end if EQUITIES.midnight(day) == end else EQUITIES.midnight(day + DAY)


availabilities = st.sampled_from([real_time, quarter_hour_late, end_of_day])


def due(
    last: datetime | None,
    timeframe: Timeframe = Timeframe.M5,
    calendar: SessionCalendar = EQUITIES,
    *,
    quiet: int = 0,
    confirmed: Container[date] = (),
    availability: Availability = real_time,
    gap: datetime | None = None,
    history_start: datetime = HISTORY_START,
) -> datetime:
    return next_due(
        calendar,
        timeframe,
        last_ts=last,
        history_start=history_start,
        quiet_slots=quiet,
        confirmed=confirmed,
        availability=availability,
        first_gap_ts=gap,
    )


# In New York's time: the last bar, and when the next one is due on a real-time plan (bar end + 2 minutes).
@pytest.mark.parametrize(
    ("timeframe", "last", "expected"),
    [
        ("5m", "2025-11-19 10:00", "2025-11-19 10:12"),  # within a session
        ("15m", "2025-11-19 10:00", "2025-11-19 10:32"),
        ("4h", "2025-11-19 12:00", "2025-11-19 20:02"),
        ("5m", "2025-11-21 19:55", "2025-11-24 04:07"),  # over a weekend
        ("1d", "2025-11-21 00:00", "2025-11-25 00:02"),
        ("5m", "2025-11-26 19:55", "2025-11-28 04:07"),  # over Thanksgiving
        ("1d", "2025-11-26 00:00", "2025-11-29 00:02"),
        ("5m", "2025-11-28 16:50", "2025-11-28 17:02"),  # to the end of an early close
        ("5m", "2025-11-28 16:55", "2025-12-01 04:07"),  # and over the weekend behind it
        ("4h", "2025-11-28 12:00", "2025-11-28 20:02"),
        ("4h", "2025-11-28 16:00", "2025-12-01 08:02"),
        ("5m", "2025-10-31 19:55", "2025-11-03 04:07"),  # the clocks go back on 2 November
        ("1d", "2025-10-31 00:00", "2025-11-04 00:02"),
        ("5m", "2025-03-07 19:55", "2025-03-10 04:07"),  # and forward on 9 March
        ("1h", "2025-12-31 19:00", "2026-01-02 05:02"),  # over New Year
    ],
)
def test_the_next_bar_is_due_two_minutes_after_the_next_slot_ends(timeframe: str, last: str, expected: str) -> None:
    assert due(new_york(last), Timeframe(timeframe)) == new_york(expected)


def test_crypto_bars_fall_due_on_weekends_too() -> None:
    saturday = datetime(2025, 11, 22, 23, 55, tzinfo=UTC)
    assert due(saturday, Timeframe.M5, CRYPTO) == datetime(2025, 11, 23, 0, 7, tzinfo=UTC)
    assert due(datetime(2025, 11, 22, tzinfo=UTC), Timeframe.D1, CRYPTO) == datetime(2025, 11, 24, 0, 2, tzinfo=UTC)


def test_the_plans_delay_is_added() -> None:
    last = new_york("2025-11-19 10:00")
    assert due(last, availability=quarter_hour_late) == new_york("2025-11-19 10:27")
    assert due(last, availability=end_of_day) == new_york("2025-11-20 00:02")


def test_nothing_goes_stale_on_a_sunday_and_everything_does_when_bars_stop() -> None:
    sunday = new_york("2025-11-23 15:00")
    assert staleness_seconds(sunday, due(new_york("2025-11-21 19:55"))) == 0
    assert staleness_seconds(sunday, due(new_york("2025-11-21 00:00"), Timeframe.D1)) == 0
    stopped = due(new_york("2025-11-21 12:00"))
    assert staleness_seconds(new_york("2025-11-21 12:12"), stopped) == 0
    assert staleness_seconds(new_york("2025-11-21 12:42"), stopped) == 30 * 60
    assert freshness(staleness_seconds(sunday, stopped)) is Freshness.STALE


def test_a_session_that_the_vendor_confirmed_has_no_missing_bar() -> None:
    friday, monday = date(2025, 11, 21), date(2025, 11, 24)
    halted_on_friday = new_york("2025-11-21 12:00")
    assert due(halted_on_friday, confirmed={friday}) == new_york("2025-11-24 04:07")
    assert due(halted_on_friday, confirmed={friday, monday}) == new_york("2025-11-25 04:07")
    assert due(new_york("2025-11-20 00:00"), Timeframe.D1, confirmed={friday}) == new_york("2025-11-25 00:02")


def test_a_series_without_bars_misses_its_first_one_since_the_start_of_its_history() -> None:
    start = new_york("2025-11-19 00:00")
    assert due(None, history_start=start) == new_york("2025-11-19 04:07")
    assert due(None, Timeframe.D1, history_start=start) == new_york("2025-11-20 00:02")
    assert due(None, history_start=start, confirmed={date(2025, 11, 19)}) == new_york("2025-11-20 04:07")
    assert due(None, history_start=new_york("2025-11-22 12:00")) == new_york("2025-11-24 04:07")


def test_bars_before_the_history_are_not_expected() -> None:
    start = new_york("2025-11-19 12:02")
    assert due(None, history_start=start) == new_york("2025-11-19 12:12")
    assert due(None, Timeframe.D1, history_start=start) == new_york("2025-11-21 00:02")
    assert due(new_york("2024-01-03 10:00"), history_start=start) == new_york("2025-11-19 12:12")


def test_a_gap_before_the_last_bar_is_due_since_its_own_time() -> None:
    last = new_york("2025-11-21 19:55")
    assert due(last, gap=new_york("2025-11-18 04:00")) == new_york("2025-11-18 04:07")
    monday = new_york("2025-11-17 00:00")
    assert due(new_york("2025-11-21 00:00"), Timeframe.D1, gap=monday) == new_york("2025-11-18 00:02")
    in_its_hours = new_york("2025-11-17 04:00")
    assert due(new_york("2025-11-21 00:00"), Timeframe.D1, gap=in_its_hours) == new_york("2025-11-18 00:02")


# A thinly traded series whose usual quiet period is 12 slots (one hour of 5m).
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("2025-11-19 10:00", "2025-11-19 11:12"),  # the 13th slot after it starts at 11:05
        ("2025-11-19 18:50", "2025-11-19 20:02"),  # 13 slots are left: the last of them
        ("2025-11-19 18:55", "2025-11-20 05:07"),  # 12 are left: an ordinary evening, and an ordinary morning
        ("2025-11-26 18:55", "2025-11-28 05:07"),
        ("2025-11-28 15:55", "2025-12-01 05:07"),
    ],
)
def test_a_quiet_period_of_the_usual_length_is_not_missing(last: str, expected: str) -> None:
    assert due(new_york(last), quiet=12) == new_york(expected)


def test_no_quiet_period_excuses_a_full_session_without_a_bar() -> None:
    assert due(new_york("2025-11-19 10:00"), quiet=10_000) == new_york("2025-11-20 20:02")
    short_day_passes = due(new_york("2025-11-26 10:00"), quiet=10_000)
    assert short_day_passes == new_york("2025-12-01 20:02")


def slots_of(calendar: SessionCalendar, timeframe: Timeframe, start: str, end: str) -> list[datetime]:
    return [from_us(us) for us in calendar.slots_between(timeframe, Interval(new_york(start), new_york(end)))]


def quiet(bars: list[datetime], timeframe: Timeframe = Timeframe.M5, calendar: SessionCalendar = EQUITIES) -> int:
    return quiet_slots(calendar, timeframe, np.array([to_us(ts) for ts in bars], dtype="int64"))


def test_a_gapless_series_has_no_quiet_periods_over_nights_weekends_and_early_closes() -> None:
    for timeframe in Timeframe:
        assert quiet(slots_of(EQUITIES, timeframe, "2025-10-27 00:00", "2025-12-06 00:00"), timeframe) == 0


def test_the_longest_leading_inner_or_trailing_run_counts() -> None:
    def without(start: str, end: str, *, of: tuple[str, str] = ("2025-11-24 00:00", "2025-11-26 00:00")) -> int:
        return quiet([ts for ts in slots_of(EQUITIES, Timeframe.M5, *of) if not new_york(start) <= ts < new_york(end)])

    assert without("2025-11-25 10:00", "2025-11-25 10:30") == 6
    assert without("2025-11-25 04:00", "2025-11-25 06:00") == 24
    assert without("2025-11-24 19:00", "2025-11-25 05:00") == 12  # two runs, not one: the night does not count
    early_close = ("2025-11-28 00:00", "2025-12-02 00:00")
    assert without("2025-11-28 16:00", "2025-11-28 17:00", of=early_close) == 12  # trailing


def test_a_halt_of_one_session_is_no_habit_and_a_pause_of_two_is() -> None:
    weeks = slots_of(EQUITIES, Timeframe.M5, "2025-11-03 00:00", "2025-11-22 00:00")
    days = slots_of(EQUITIES, Timeframe.M5, "2025-11-11 00:00", "2025-11-14 00:00")

    def without(*stretches: tuple[str, str]) -> int:
        gone = [(new_york(start), new_york(end)) for start, end in stretches]
        return quiet([ts for ts in weeks if not any(start <= ts < end for start, end in gone)])

    halt = ("2025-11-11 11:00", "2025-11-11 14:00")
    assert without(halt) == 0
    assert quiet([ts for ts in days if not new_york(halt[0]) <= ts < new_york(halt[1])]) == 0
    assert without(halt, ("2025-11-13 12:00", "2025-11-13 12:30")) == 6
    assert without(halt, ("2025-11-13 12:00", "2025-11-13 13:30")) == 36
    morning = ("2025-11-18 04:00", "2025-11-18 08:00")
    assert without(halt, morning) == 48


def test_the_runs_at_the_edges_of_what_was_given_do_not_count() -> None:
    cut_at_noon_and_in_progress = slots_of(EQUITIES, Timeframe.M5, "2025-11-24 12:00", "2025-11-26 10:00")
    assert quiet(cut_at_noon_and_in_progress) == 0
    first_day_of_a_listing = slots_of(EQUITIES, Timeframe.M5, "2025-11-24 09:30", "2025-11-24 15:00")
    assert quiet(first_day_of_a_listing) == 66


def test_a_series_without_bars_or_of_days_has_no_quiet_period() -> None:
    assert quiet([]) == 0
    assert quiet([new_york("2025-11-23 12:00")]) == 0  # a stray bar on a Sunday
    assert quiet([new_york("2025-11-03 00:00"), new_york("2025-11-21 00:00")], Timeframe.D1) == 0


@laws
@given(calendars, st.sampled_from(Timeframe), instants, availabilities)
def test_a_series_with_every_due_bar_is_never_stale(
    calendar: SessionCalendar, timeframe: Timeframe, now: datetime, availability: Availability
) -> None:
    last = expected_last_ts(calendar, timeframe, now=now, availability=availability)
    assert due(last, timeframe, calendar, availability=availability) > now
    session = calendar.session_on(calendar.session_date(last))
    assert session is not None
    assert availability(bar_end(session, timeframe, last)) + DUE_GRACE <= now


@laws
@given(calendars, st.sampled_from(Timeframe), instants, st.integers(0, 400), availabilities)
def test_the_first_missing_bar_is_the_one_that_counting_slots_finds(
    calendar: SessionCalendar, timeframe: Timeframe, last: datetime, tolerated: int, availability: Availability
) -> None:
    tolerated = 0 if timeframe is Timeframe.D1 else tolerated
    full = max(slot_count(timeframe, s) for s in calendar.sessions(date(2025, 1, 6), date(2025, 1, 20)))
    found: datetime | None = None
    day = calendar.session_date(last)
    while found is None:
        session = calendar.session_on(day)
        if session is not None:
            after = [from_us(us) for us in calendar.slots_us(timeframe, session) if from_us(us) > last]
            for missing in after[min(tolerated, full - 1) :][:1]:
                found = availability(bar_end(session, timeframe, missing)) + DUE_GRACE
        day += DAY
    assert due(last, timeframe, calendar, quiet=tolerated, availability=availability) == found


@laws
@given(
    calendars, st.sampled_from(INTRADAY), instants, st.integers(0, 300), st.integers(0, 50), st.sets(st.integers(0, 9))
)
def test_holding_confirming_or_excusing_more_never_makes_a_series_staler(
    calendar: SessionCalendar, timeframe: Timeframe, last: datetime, quiet: int, more: int, offsets: set[int]
) -> None:
    confirmed = {calendar.session_date(last) + i * DAY for i in offsets}
    before = due(last, timeframe, calendar, quiet=quiet)
    assert due(last + more * timeframe.span, timeframe, calendar, quiet=quiet) >= before
    assert due(last, timeframe, calendar, quiet=quiet, confirmed=confirmed) >= before
    assert due(last, timeframe, calendar, quiet=quiet + more) >= before


@laws
@given(calendars, st.sampled_from(Timeframe), instants, st.integers(0, 10_000), availabilities)
def test_when_bars_stop_every_series_goes_stale_within_the_longest_holiday_and_a_session(
    calendar: SessionCalendar, timeframe: Timeframe, last: datetime, quiet: int, availability: Availability
) -> None:
    assert due(last, timeframe, calendar, quiet=quiet, availability=availability) - last < timedelta(days=7)


# Weeks with Thanksgiving and its early close, and with both changes of clock.
@pytest.mark.parametrize("monday", ["2025-11-24", "2025-10-27", "2025-03-03"])
@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("availability", [real_time, quarter_hour_late])
def test_a_tier_that_is_refreshed_on_schedule_stays_within_its_rpo(
    tier: Tier, monday: str, availability: Availability
) -> None:
    objective = TIER_OBJECTIVES[tier]
    daily = tier is Tier.LOW_PRIORITY
    first = new_york(f"{monday} 00:30") if daily else new_york(f"{monday} 00:00")
    refreshes = [first + i * objective.cadence for i in range(timedelta(days=14) // objective.cadence)]
    if daily:
        start = date.fromisoformat(monday)
        refreshes = [new_york(f"{start + i * DAY} 00:30") for i in range(14)]
    for timeframe in Timeframe:
        for refresh, following in pairwise(refreshes):
            last = expected_last_ts(EQUITIES, timeframe, now=refresh, availability=availability)
            assert staleness_seconds(following, due(last, timeframe, availability=availability)) <= (
                objective.rpo.total_seconds()
            )


def test_staleness_grows_from_the_instant_a_bar_falls_due() -> None:
    at = new_york("2025-11-19 10:12")
    assert staleness_seconds(at - timedelta(hours=1), at) == staleness_seconds(at, at) == 0.0
    assert staleness_seconds(at + timedelta(milliseconds=1500), at) == 1.5


def test_a_series_is_fresh_to_the_hour_aging_to_six_stale_beyond_and_missing_when_never_computed() -> None:
    assert [freshness(s) for s in (0.0, 3600.0, 3600.1, 21600.0, 21600.1, 1e9, None)] == [
        Freshness.FRESH,
        Freshness.FRESH,
        Freshness.AGING,
        Freshness.AGING,
        Freshness.STALE,
        Freshness.STALE,
        Freshness.MISSING,
    ]


def test_a_session_settles_at_eleven_the_next_day_weekend_or_not() -> None:
    friday, crypto_day = EQUITIES.session_on(date(2025, 11, 28)), CRYPTO.session_on(date(2025, 11, 28))
    assert friday is not None
    assert crypto_day is not None
    assert settled_at(friday) == settled_at(crypto_day) == new_york("2025-11-29 11:00")


def test_the_last_bar_that_should_exist_follows_the_calendar() -> None:
    def last(timeframe: Timeframe, now: str, availability: Availability = real_time) -> datetime:
        return expected_last_ts(EQUITIES, timeframe, now=new_york(now), availability=availability)

    assert last(Timeframe.M5, "2025-11-28 17:02") == new_york("2025-11-28 16:55")
    assert last(Timeframe.M5, "2025-11-28 17:01") == new_york("2025-11-28 16:50")
    assert last(Timeframe.M5, "2025-11-27 12:00") == new_york("2025-11-26 19:55")
    assert last(Timeframe.H4, "2025-11-28 19:00") == new_york("2025-11-28 12:00")
    assert last(Timeframe.D1, "2025-11-30 12:00") == new_york("2025-11-28 00:00")
    assert last(Timeframe.D1, "2025-11-28 20:00") == new_york("2025-11-26 00:00")
    assert last(Timeframe.M5, "2025-11-28 23:00", end_of_day) == new_york("2025-11-26 19:55")


FOREX, INDEX = (calendar_for(each) for each in (AssetClass.FOREX, AssetClass.INDEX))


def due_next(calendar: SessionCalendar, last_ts: datetime, quiet: int = 0, timeframe: Timeframe = Timeframe.M5) -> str:
    """Return in New York when the bar after `last_ts` is due, in real time."""
    found = next_due(
        calendar,
        timeframe,
        last_ts=last_ts,
        history_start=HISTORY_START,
        quiet_slots=quiet,
        confirmed=(),
        availability=real_time,
    )
    return f"{found.astimezone(NEW_YORK):%a %m-%d %H:%M}"


def test_nothing_of_forex_is_late_before_sundays_first_bar_is() -> None:
    friday = new_york("2026-10-30 16:55")
    assert due_next(FOREX, friday) == "Sun 11-01 17:07"
    assert due_next(FOREX, friday, timeframe=Timeframe.H1) == "Sun 11-01 18:02"
    # Clocks went back that Sunday: the 4h bar from 20:00 UTC holds the first two hours, and ends at 19:00 New York.
    assert due_next(FOREX, friday, timeframe=Timeframe.H4) == "Sun 11-01 19:02"
    assert due_next(FOREX, new_york("2026-11-04 11:00")) == "Wed 11-04 11:12"


def test_an_index_is_late_within_its_regular_hours_whatever_it_usually_lacks_outside() -> None:
    wednesday = INDEX.slots_between(Timeframe.M5, Interval(new_york("2026-11-25 09:30"), new_york("2026-11-25 16:00")))
    days = [wednesday - shift * 86_400_000_000 for shift in (2, 1, 0)]
    assert quiet_slots(INDEX, Timeframe.M5, np.concatenate(days)) == 0
    assert due_next(INDEX, new_york("2026-11-25 10:00")) == "Wed 11-25 10:12"
    # Thanksgiving follows, then an early close at 13:00, then a weekend.
    assert due_next(INDEX, new_york("2026-11-25 15:55")) == "Fri 11-27 09:37"
    assert due_next(INDEX, new_york("2026-11-27 12:55")) == "Mon 11-30 09:37"
    # What comes after the close is stored, and makes nothing late.
    assert due_next(INDEX, new_york("2026-11-25 16:10")) == "Fri 11-27 09:37"
    assert due_next(INDEX, new_york("2026-11-25 15:00"), timeframe=Timeframe.H1) == "Fri 11-27 10:02"
    last = expected_last_ts(INDEX, Timeframe.M5, now=new_york("2026-11-28 12:00"), availability=real_time)
    assert last == new_york("2026-11-27 12:55")
