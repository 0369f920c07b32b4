"""Whatever happens to a symbol: once the vendor has everything again, exactly what happened is stored."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timedelta
from math import prod
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from market_data_pipeline.sandbox.bars import concat
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.scenario import Scenario
from market_data_pipeline.sandbox.server import running_server
from market_data_pipeline.sandbox.staged import StagedMarket
from market_data_pipeline.sandbox.view import from_ms, to_ms
from market_data_pipeline_tests.conftest import _new_database
from market_data_pipeline_tests.domain.strategies import EQUITIES, laws, new_york
from market_data_pipeline_tests.ingest.conftest import World
from market_data_pipeline_tests.sandbox.scenarios import FIVE_MINUTES, HOUR, scenarios

SESSIONS = EQUITIES.sessions(new_york("2026-11-16 00:00").date(), new_york("2026-11-20 23:00").date())[:4]
HEALED = new_york("2026-11-20 09:00")
LAST_LOOKS = [new_york(f"2026-11-{day} 11:{minute}") for day in (20, 21) for minute in (30, 50)]
MARKET = SyntheticMarket()


def existing(ticker: str, scenario: Scenario) -> list[tuple[datetime, float, float]]:
    """Return start, close and volume of every 5-minute bar that exists in the end, from the market as it was."""
    found = []
    gone = [(event.start, event.end) for event in scenario.halts]
    # What is withdrawn for good never was.
    gone += [(event.start, event.end) for event in scenario.withheld if event.until is None]
    for session in SESSIONS:
        day = session.date
        if day in {event.day for event in scenario.closings}:
            continue
        if any(day < event.first for event in scenario.listings) or any(
            day > event.last for event in scenario.delistings
        ):
            continue
        minutes = concat(MARKET.intraday(ticker, 60_000, to_ms(session.start), to_ms(session.end)))
        factor = prod(event.split_from / event.split_to for event in scenario.splits if day >= event.day)
        bars: dict[datetime, list[tuple[float, float]]] = {}
        for t, close, volume in zip(minutes.t.tolist(), minutes.c.tolist(), minutes.v.tolist(), strict=True):
            start = from_ms(t)
            if not any(begin <= start < end for begin, end in gone):
                slot = session.start + (start - session.start) // FIVE_MINUTES * FIVE_MINUTES
                bars.setdefault(slot, []).append((close, volume))
        found += [
            (slot, parts[-1][0] * factor, sum(volume for _, volume in parts) / factor) for slot, parts in bars.items()
        ]
    return found


instants = st.lists(
    st.integers(4, int((HEALED - SESSIONS[0].day_start) / HOUR)), min_size=2, max_size=6, unique=True
).map(lambda hours: [SESSIONS[0].day_start + hour * HOUR + timedelta(minutes=7) for hour in sorted(hours)])


@settings(
    laws,
    max_examples=8,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_after_a_random_scenario_exactly_what_happened_is_stored(
    postgres_url: str, migrated_template: str, data: Any
) -> None:
    ticker = data.draw(st.sampled_from(["MSFT", "KIMpL"]))
    scenario = data.draw(scenarios(ticker, SESSIONS, HEALED))
    looks = data.draw(instants)
    with contextmanager(_new_database)(postgres_url, migrated_template) as url:
        world = World("", url, looks[0])
        with running_server(StagedMarket(MARKET, scenario, world.clock), world.clock) as world.base_url:
            for world.now in [*looks, *LAST_LOOKS]:
                days = (EQUITIES.session_date(world.now) - SESSIONS[0].date).days
                outcomes = world.refresh(ticker, history_days=days, reverify=world.now in LAST_LOOKS)
                assert {key: outcome.error for key, outcome in outcomes.items() if outcome.failed} == {}
        stored = world.query(
            "select ts, close, volume from market_data.bars where timeframe = '5m' and ts < %s order by ts",
            SESSIONS[-1].day_end,
        )
        held = [(row["ts"], row["close"], row["volume"]) for row in stored]
        truth = existing(ticker, scenario)
        assert [bar[0] for bar in held] == [bar[0] for bar in truth], (scenario, looks)
        for column in (1, 2):  # the vendor rounds prices to four decimals
            assert [bar[column] for bar in held] == pytest.approx([bar[column] for bar in truth], abs=1.1e-4)
