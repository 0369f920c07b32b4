"""Any mixture of faults over several refreshes on a moving clock ends in the truth."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.sandbox.view import Source
from market_data_pipeline_tests.domain.strategies import laws
from market_data_pipeline_tests.ingest.faults.conftest import NOON, new_world
from market_data_pipeline_tests.ingest.faults.repertoire import REFUSED, SPOILING, SURVIVED, Fault
from market_data_pipeline_tests.ingest.faults.vendor import Exchange, Page, first_page
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot, differences

FIRST_DAY = date(2026, 11, 18)
MINUTES = int((datetime(2026, 11, 24, 11, 30, tzinfo=NEW_YORK) - NOON).total_seconds()) // 60
# A day that was refused in the last of these refreshes is read again in the meantime.
END = datetime(2026, 11, 25, 11, 30, tzinfo=NEW_YORK)
FAULTS = {
    **SURVIVED,
    **{name: refused.fault for name, refused in REFUSED.items()},
    **{name: Fault(spoiling.make, first_page) for name, spoiling in SPOILING.items()},
}
# A stall costs a fifth of a second each time, and shows nothing that a reset does not.
NAMES = sorted(name for name in FAULTS if "stall" not in name)

faults = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 7)), max_size=4)
edits = st.sampled_from(["none", "none", "gap", "early values"])
steps = st.lists(st.tuples(st.integers(0, MINUTES - 1), faults, edits), min_size=2, max_size=4)


def edit_of(kind: str, world: FaultyWorld) -> Any:
    """Return what the vendor says about today, which is not settled yet, instead of the truth."""
    if kind == "none":
        return None

    def change(exchange: Exchange, page: Page) -> None:
        midnight = world.now.astimezone(NEW_YORK).replace(hour=0, minute=0, second=0).timestamp() * 1000
        rows = page["results"]
        for row in rows:
            if kind == "early values" and row["t"] >= midnight and row["t"] // 300_000 % 3 == 0:
                row.update(c=row["l"], v=row["v"] / 2)
        if kind == "gap":
            page["results"] = [row for row in rows if row["t"] < midnight or row["t"] // 300_000 % 7]

    return change


def refresh(world: FaultyWorld) -> None:
    world.refresh("AAPL", history_days=(world.now.astimezone(NEW_YORK).date() - FIRST_DAY).days)


@pytest.fixture(scope="module")
def truth_at_end(postgres_url: str, migrated_template: str, market: Source) -> Snapshot:
    with new_world(postgres_url, migrated_template, market, END) as world:
        refresh(world)
        return world.snapshot()


@settings(
    laws,
    max_examples=5,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(steps=steps)
def test_after_random_faults_the_database_holds_the_truth(
    postgres_url: str, migrated_template: str, market: Source, truth_at_end: Snapshot, steps: list[Any]
) -> None:
    with new_world(postgres_url, migrated_template, market) as world:
        for minutes, injected, edited in sorted(steps, key=lambda step: step[0]):
            world.now = NOON + timedelta(minutes=minutes)
            world.vendor.heal()
            world.vendor.edit(edit_of(edited, world))
            for name, times in injected:
                world.vendor.inject(FAULTS[name].make, FAULTS[name].applies, times)
            refresh(world)
        world.vendor.heal()
        world.now = END
        refresh(world)
        assert differences(world.snapshot(), truth_at_end) == {}
