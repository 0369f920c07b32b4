"""Request windows cover everything that is missing, with the fewest requests."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.calendar import Session, calendar_for
from market_data_pipeline.domain.series import AssetClass, Timeframe
from market_data_pipeline.polygon.request_windows import pages_of, windows
from market_data_pipeline_tests.domain.strategies import laws

STOCKS = calendar_for(AssetClass.US_EQUITY)
CRYPTO = calendar_for(AssetClass.CRYPTO)
FOREX = calendar_for(AssetClass.FOREX)
YEAR = STOCKS.sessions(dt.date(2024, 1, 1), dt.date(2025, 1, 1))


def test_nothing_missing_needs_no_request() -> None:
    assert windows((), Timeframe.M5) == ()


def test_a_first_year_of_5m_is_one_window_of_5_pages_and_of_1d_one_page() -> None:
    (minutes,) = windows(YEAR, Timeframe.M5)
    assert minutes.interval == (YEAR[0].start, YEAR[-1].end)
    assert pages_of(minutes.base_bars) == 5
    assert minutes.base_bars == 249 * 960 + 3 * 780  # 252 sessions, three of which close early
    (days,) = windows(YEAR, Timeframe.D1)
    assert days.interval == (YEAR[0].day_start, YEAR[-1].day_end)
    assert pages_of(days.base_bars) == 1


def test_a_day_is_requested_from_its_first_to_its_last_minute() -> None:
    early = STOCKS.session_on(dt.date(2024, 7, 3))
    assert early is not None
    (window,) = windows((early,), Timeframe.M5)
    assert window.interval == (early.start, early.end)
    assert window.base_bars == 780


def test_a_weekend_between_two_sessions_costs_nothing() -> None:
    friday, monday = STOCKS.sessions(dt.date(2024, 1, 5), dt.date(2024, 1, 9))
    (window,) = windows((friday, monday), Timeframe.M5)
    assert window.base_bars == 2 * 960


def test_a_gap_that_fits_on_the_page_is_bridged_and_one_that_does_not_is_not() -> None:
    near = windows((YEAR[0], YEAR[40]), Timeframe.M5)
    assert [pages_of(window.base_bars) for window in near] == [1]
    assert near[0].interval == (YEAR[0].start, YEAR[40].end)
    far = windows((YEAR[0], YEAR[200]), Timeframe.M5)
    assert [window.interval for window in far] == [(YEAR[i].start, YEAR[i].end) for i in (0, 200)]


def test_a_crypto_year_is_11_pages() -> None:
    days = CRYPTO.sessions(dt.date(2023, 1, 1), dt.date(2024, 1, 1))
    (window,) = windows(days, Timeframe.M5, asset_class=AssetClass.CRYPTO)
    assert window.base_bars == 365 * 1440
    assert pages_of(window.base_bars) == 11


def test_weekends_of_forex_and_nights_of_indices_cost_no_base_bars() -> None:
    week = FOREX.sessions(dt.date(2023, 3, 5), dt.date(2023, 3, 18))  # two weeks, between which clocks changed
    (window,) = windows(week, Timeframe.M5, asset_class=AssetClass.FOREX)
    assert window.base_bars == 2 * 120 * 60
    assert window.interval == (week[0].start, week[-1].end)
    assert [f"{at:%a %H:%M}" for at in window.interval] == ["Sun 22:00", "Fri 21:00"]
    year = FOREX.sessions(dt.date(2023, 1, 1), dt.date(2024, 1, 1))
    assert [pages_of(one.base_bars) for one in windows(year, Timeframe.M5, asset_class=AssetClass.FOREX)] == [8]
    apart = (week[1], week[3])  # Monday and Wednesday: Tuesday comes along
    (joined,) = windows(apart, Timeframe.M5, asset_class=AssetClass.FOREX)
    assert joined.base_bars == 3 * 1440


def calls_by_trying_everything(missing: tuple[Session, ...], page_limit: int) -> int:
    """The fewest calls, found by trying every way to group the missing sessions."""

    def cost(first: Session, last: Session) -> int:
        between = YEAR[YEAR.index(first) : YEAR.index(last) + 1]
        bars = sum((session.end - session.start) // dt.timedelta(minutes=1) for session in between)
        return max(1, -(-bars // page_limit))

    best = [0] * (len(missing) + 1)
    for i in reversed(range(len(missing))):
        best[i] = min(cost(missing[i], missing[j]) + best[j + 1] for j in range(i, len(missing)))
    return best[0]


@settings(laws, max_examples=80)
@given(held=st.sets(st.integers(0, 24)), page_limit=st.sampled_from([500, 960, 2_000, 5_000, 50_000]))
def test_windows_cover_what_is_missing_with_the_fewest_calls(held: set[int], page_limit: int) -> None:
    missing = tuple(session for i, session in enumerate(YEAR[115:140]) if i not in held)
    made = windows(missing, Timeframe.M5, page_limit)
    for session in missing:
        assert sum(w.interval.start <= session.start and session.end <= w.interval.end for w in made) == 1
    assert all(a.interval.end <= b.interval.start for a, b in pairwise(made))
    edges = {instant for session in missing for instant in (session.start, session.end)}
    assert {instant for window in made for instant in window.interval} <= edges
    assert sum(pages_of(window.base_bars, page_limit) for window in made) == calls_by_trying_everything(
        missing, page_limit
    )


def test_no_window_reaches_across_a_day_that_is_requested_apart() -> None:
    days = STOCKS.sessions(dt.date(2025, 3, 10), dt.date(2025, 3, 22))
    without = [day for day in days if day.date not in (dt.date(2025, 3, 13), dt.date(2025, 3, 19))]
    (shared,) = windows(without, Timeframe.M5)
    assert (shared.interval.start, shared.interval.end) == (days[0].start, days[-1].end)
    first, second = windows(without, Timeframe.M5, apart={dt.date(2025, 3, 13)})
    assert (first.interval.end, second.interval.start) == (days[2].end, days[4].start)
    assert first.base_bars + second.base_bars == shared.base_bars - 960
