"""Which settled days are reverified: what is suspicious, and how long any day can go unread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from market_data_pipeline.domain.calendar import Session, calendar_for, slot_count
from market_data_pipeline.domain.series import AssetClass, Series, Timeframe
from market_data_pipeline.ingest.fetch_plan import Timing, plan_fetch, reach
from market_data_pipeline.ingest.reverify import days_to_reverify, reopened
from market_data_pipeline.store.coverage import Coverage, CoverageStatus

NOON = datetime(2026, 11, 20, 17, tzinfo=UTC)  # a Friday, 12:00 in New York
DAY = timedelta(days=1)
STOCKS = calendar_for(AssetClass.US_EQUITY)
YEAR = STOCKS.sessions(date(2025, 11, 20), date(2026, 11, 20))

Held = dict[date, Coverage]


def held(
    sessions: tuple[Session, ...],
    base: Timeframe = Timeframe.M5,
    rows: Callable[[Session], int] | None = None,
    looked: datetime = NOON - 10 * DAY,
) -> Held:
    """Return coverage of full, complete days that were all read at once, unless `rows` says how many bars one has."""
    found = {}
    for session in sessions:
        count = rows(session) if rows else slot_count(base, session)
        status = CoverageStatus.COMPLETE if count else CoverageStatus.EMPTY_CONFIRMED
        found[session.date] = Coverage(session.date, status, count, looked)
    return found


def chosen(coverage: Held, base: Timeframe = Timeframe.M5, now: datetime = NOON, **more: bool) -> list[date]:
    return sorted(days_to_reverify(YEAR, coverage, base, now, **more))


def test_a_night_reads_the_page_of_days_that_went_unread_the_longest() -> None:
    assert chosen(held(YEAR)) == [session.date for session in YEAR[:52]]


@pytest.mark.parametrize(
    ("asset_class", "base", "nights"),
    [
        (AssetClass.US_EQUITY, Timeframe.M5, 7),
        (AssetClass.US_EQUITY, Timeframe.D1, 8),
        (AssetClass.CRYPTO, Timeframe.M5, 14),
    ],
)
def test_every_held_day_is_read_again_in_bounded_time_also_after_it_left_the_history(
    asset_class: AssetClass, base: Timeframe, nights: int
) -> None:
    calendar = calendar_for(asset_class)
    coverage: Held = {}
    for night in range(60):
        now = NOON + night * DAY
        timing = Timing(calendar, lambda end: end, now)
        sessions = reach(timing, 365, None, coverage).sessions
        again = days_to_reverify(sessions, coverage, base, now)
        newly_settled = tuple(
            session for session in sessions if session.date not in coverage and session.date < now.date()
        )
        coverage |= held(newly_settled, base, looked=now)
        coverage |= {day: replace(coverage[day], fetched_at=now) for day in again}
        assert max(now - known.fetched_at for known in coverage.values()) < nights * DAY
    assert min(coverage) == NOON.date() - 365 * DAY


def test_a_page_that_cannot_be_read_does_not_keep_the_others_waiting() -> None:
    coverage = held(YEAR)
    first = chosen(coverage)
    coverage |= {day: replace(coverage[day], reverified_at=NOON) for day in first}  # requested without a result
    assert not set(first) & set(chosen(coverage, now=NOON + DAY))


def test_of_pages_read_equally_long_ago_the_most_suspicious_comes_first() -> None:
    gaps = {YEAR[120].date: 100, YEAR[150].date: 191}
    again = chosen(held(YEAR, rows=lambda s: gaps.get(s.date, slot_count(Timeframe.M5, s))))
    assert len(again) == 52
    assert gaps.keys() <= set(again)


def test_a_recent_gap_of_a_symbol_that_trades_in_every_slot_is_read_every_night() -> None:
    recent, old = YEAR[-3].date, YEAR[200].date
    coverage = held(YEAR, rows=lambda s: slot_count(Timeframe.M5, s) - (s.date in (recent, old)), looked=NOON - DAY)
    coverage |= held(YEAR[:52], looked=NOON - 6 * DAY)
    assert chosen(coverage) == [*(session.date for session in YEAR[:52]), recent]


def test_a_day_confirmed_empty_between_stored_ones_is_suspicious_and_one_before_the_listing_is_not() -> None:
    halted = YEAR[-2].date
    fresh = {"looked": NOON - DAY}
    assert chosen(held(YEAR, Timeframe.D1, lambda s: s.date != halted, **fresh), Timeframe.D1) == [halted]
    unlisted = held(YEAR, Timeframe.D1, lambda s: s.date > halted, **fresh)
    assert chosen(unlisted, Timeframe.D1) == []


def test_gaps_that_are_usual_for_a_symbol_are_not_suspicious() -> None:
    thin = held(YEAR, rows=lambda s: 40 + (s.date.toordinal() * 7919) % 60, looked=NOON - DAY)
    assert len(chosen(thin)) == 52  # the sample
    sometimes = held(YEAR, Timeframe.D1, lambda s: s.date.toordinal() % 3, looked=NOON - DAY)
    assert chosen(sometimes, Timeframe.D1) == []


def test_day_bars_are_read_whole_once_a_week() -> None:
    coverage = held(YEAR, Timeframe.D1, looked=NOON - 6 * DAY)
    assert chosen(coverage, Timeframe.D1) == []
    assert chosen(coverage, Timeframe.D1, now=NOON + DAY) == [session.date for session in YEAR]


def test_a_changed_split_has_every_settled_day_read_again() -> None:
    assert chosen(held(YEAR, looked=NOON), splits_changed=True) == [session.date for session in YEAR]


def test_only_settled_days_are_read_again() -> None:
    coverage = held(YEAR[-3:])
    for session, status, rows in zip(YEAR[-3:], ("provisional", "failed", "clamped"), (192, 0, 0), strict=True):
        coverage[session.date] = replace(coverage[session.date], status=CoverageStatus(status), rows=rows)
    assert chosen(coverage, splits_changed=True) == []
    assert chosen({}) == []


def test_what_the_plan_no_longer_serves_is_marked_and_what_it_serves_again_is_read() -> None:
    """Two years on a plan of two years: the first month slides out of it, and comes back with a better plan."""
    long_ago = STOCKS.sessions(date(2024, 10, 20), date(2024, 11, 20))
    coverage = held((*long_ago, *YEAR))
    timing = Timing(STOCKS, lambda end: end, NOON)
    beyond = reach(timing, 365, timedelta(days=730), coverage)
    assert beyond.beyond == long_ago
    plan = plan_fetch(Series("AAPL", Timeframe.M5), beyond, coverage, timing, last_ts=YEAR[-1].start)
    assert [(day.session_date, day.status, day.rows) for day in plan.clamped] == [
        (session.date, CoverageStatus.CLAMPED, slot_count(Timeframe.M5, session)) for session in long_ago
    ]
    coverage |= {day.session_date: day for day in plan.clamped}
    again = plan_fetch(Series("AAPL", Timeframe.M5), beyond, coverage, timing, last_ts=YEAR[-1].start)
    assert again.clamped == ()
    coverage |= held(YEAR, looked=NOON + DAY)
    better = reach(timing, 365, None, coverage)
    again_read = days_to_reverify(better.sessions, coverage, Timeframe.M5, NOON + 2 * DAY)
    assert {session.date for session in long_ago} <= again_read


def test_a_reopened_day_counts_as_settled_and_due_for_its_second_look() -> None:
    session = YEAR[-3]
    coverage = held(YEAR[-3:])
    opened = reopened(coverage, frozenset({session.date}), YEAR)
    assert opened[session.date].status is CoverageStatus.PROVISIONAL
    assert opened[session.date].fetched_at.astimezone(STOCKS.tz).hour == 11
    assert {day: known for day, known in opened.items() if day != session.date} == {
        day: known for day, known in coverage.items() if day != session.date
    }
