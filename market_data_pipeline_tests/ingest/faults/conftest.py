"""Worlds around a faulty vendor, and the truth: what is stored when nothing goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from market_data_pipeline.domain.calendar import NEW_YORK
from market_data_pipeline.sandbox.market import SyntheticMarket
from market_data_pipeline.sandbox.view import Source
from market_data_pipeline_tests.conftest import _new_database
from market_data_pipeline_tests.ingest.faults.vendor import FaultyVendor
from market_data_pipeline_tests.ingest.faults.world import FaultyWorld, Snapshot

# A Friday in New York's winter time, in the middle of the session.
NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=NEW_YORK).astimezone(UTC)
DAYS = 2

MakeWorld = Callable[..., FaultyWorld]


@contextmanager
def new_world(postgres_url: str, template: str, source: Source, now: datetime = NOON) -> Iterator[FaultyWorld]:
    """Give a world with a new database around a new vendor of `source`."""
    with contextmanager(_new_database)(postgres_url, template) as url:
        world = FaultyWorld("http://127.0.0.1:9", url, now)
        with FaultyVendor(source, world.clock) as vendor:
            world.vendor = vendor
            yield world


@pytest.fixture(scope="package")
def market() -> Source:
    """The synthetic market, whose minutes are kept once made."""
    return SyntheticMarket(0)


@pytest.fixture
def make_world(postgres_url: str, migrated_template: str, market: Source) -> Iterator[MakeWorld]:
    """Return a function that makes worlds."""
    with ExitStack() as stack:
        yield lambda now=NOON, source=market: stack.enter_context(
            new_world(postgres_url, migrated_template, source, now)
        )


@pytest.fixture
def world(make_world: MakeWorld) -> FaultyWorld:
    return make_world()


@pytest.fixture(scope="package")
def truth(postgres_url: str, migrated_template: str, market: Source) -> Snapshot:
    """What a refresh of AAPL at `NOON` stores when the vendor does not misbehave."""
    with new_world(postgres_url, migrated_template, market) as world:
        outcomes = world.refresh("AAPL", history_days=DAYS)
        assert {outcome.status for outcome in outcomes.values()} == {"ok"}
        return world.snapshot()
