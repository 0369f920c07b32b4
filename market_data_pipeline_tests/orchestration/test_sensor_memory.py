"""When a late series is tried again, and when a verdict is worth an event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from market_data_pipeline.domain.series import Series, Timeframe
from market_data_pipeline.orchestration.sensors.memory import FIRST_WAIT, LONGEST_WAIT, REPEAT_AFTER, Memory

NOW = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)
AAPL, MSFT = Series("AAPL", Timeframe.M5), Series("MSFT", Timeframe.D1)


def test_a_series_that_was_never_tried_is_due_at_once() -> None:
    assert Memory().due([AAPL, MSFT], NOW) == [AAPL, MSFT]


def test_each_attempt_doubles_the_wait_up_to_the_longest() -> None:
    memory, now, waits = Memory(), NOW, []
    for _ in range(12):
        memory.record([AAPL], now)
        wait = timedelta(0)
        while not memory.due([AAPL], now + wait):
            wait += timedelta(minutes=5)
        waits.append(wait)
        now += wait
    assert waits[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert waits[-1] == LONGEST_WAIT


def test_a_series_that_recovered_is_due_at_once_when_it_is_late_again() -> None:
    memory = Memory()
    memory.record([AAPL, MSFT], NOW)
    memory.forget_recovered([MSFT])
    assert memory.due([AAPL, MSFT], NOW) == [AAPL]


def test_memory_survives_as_a_cursor() -> None:
    memory = Memory()
    memory.record([AAPL], NOW)
    memory.is_news("critical", "1/0/40", NOW)
    again = Memory.from_cursor(memory.to_cursor())
    assert again.due([AAPL, MSFT], NOW) == [MSFT]
    assert not again.is_news("critical", "1/0/40", NOW)


def test_a_verdict_is_news_when_it_changes_and_after_a_while() -> None:
    memory = Memory()
    assert memory.is_news("critical", "0/0/40", NOW)
    assert not memory.is_news("critical", "0/0/40", NOW + timedelta(minutes=1))
    assert memory.is_news("critical", "1/0/40", NOW + timedelta(minutes=2))
    assert memory.is_news("critical", "1/0/40", NOW + timedelta(minutes=2) + REPEAT_AFTER)
