"""The random lives are what they say: bars only where the symbol could trade."""

from __future__ import annotations

from hypothesis import given, settings

from market_data_pipeline_tests.domain.lives import FIVE_MINUTES, Day, Life, lives
from market_data_pipeline_tests.domain.strategies import laws


@settings(laws, max_examples=20)
@given(lives())
def test_a_life_has_bars_exactly_on_the_days_that_it_calls_traded(life: Life) -> None:
    for session in life.sessions:
        bars = life.bars_on(session)
        assert bool(bars) == (life.day(session) is Day.TRADED)
        assert all(session.start <= start < session.end for start in bars)
        assert not any(start <= bar < end for bar in bars for start, end in life.halts)
        if life.day(session) in (Day.CLOSED, Day.UNLISTED, Day.DELISTED):
            assert not bars
    every = life.bars()
    assert every == sorted(set(every))
    if every:
        assert life.bars(every[-1]) == every[:-1]
        assert life.bars(every[-1] + FIVE_MINUTES) == every
