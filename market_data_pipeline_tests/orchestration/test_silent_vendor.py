"""A vendor that answers and has nothing new: every run succeeds, and yet an alert is sent in time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.objectives import FRESHNESS, TIER_OBJECTIVES, Freshness
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.alert_receiver import AlertReceiver as Webhook
from market_data_pipeline.measure.alert_receiver import alert_receiver as webhook
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world
from market_data_pipeline_tests.orchestration.conftest import StandIn

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock

NOON = datetime(2026, 3, 11, 16, 0, tzinfo=UTC)  # a Wednesday: 12:00 in New York
RPO = TIER_OBJECTIVES[Tier.CRITICAL].rpo
CADENCE = TIER_OBJECTIVES[Tier.CRITICAL].cadence
STALE_AFTER = FRESHNESS[Freshness.AGING].up_to
INTERVAL = timedelta(minutes=1)  # of the staleness sensor


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


class Watched:
    """A world whose clock moves from one tick of the staleness sensor to the next, with a refresh at each cadence."""

    def __init__(self, world: World, instance: dg.DagsterInstance, hook: Webhook) -> None:
        self.world, self.instance, self.hook = world, instance, hook
        self.cursor: str | None = None
        self.late: list[int] = []
        self.stale: list[list[str]] = []
        self.sensor = build_defs().get_repository_def().get_sensor_def("staleness_sensor")
        self.refreshed_at = world.now - CADENCE

    def tick(self) -> None:
        if self.world.now - self.refreshed_at >= CADENCE:
            outcomes = self.world.refresh("AAPL", history_days=2)
            assert {outcome.status for outcome in outcomes.values()} <= {"ok", "unchanged"}
            self.refreshed_at = self.world.now
        pipeline = StandIn(
            url=self.world.database_url, alert_urls=[self.hook.address()], now=self.world.now.isoformat()
        )
        result = self.sensor(
            dg.build_sensor_context(self.instance, cursor=self.cursor, resources={"pipeline": pipeline})
        )
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        for event in result.asset_events:
            assert isinstance(event, dg.AssetCheckEvaluation)
            self.late.append(event.metadata["late"].value)  # type: ignore[arg-type]
            worst = event.metadata["worst"]
            assert isinstance(worst, dg.TableMetadataValue)
            self.stale.append([str(row.data["series"]) for row in worst.records if row.data["state"] == "STALE"])
            assert event.metadata["stale"].value == len(self.stale[-1])

    def until(self, end: datetime, step: timedelta = INTERVAL) -> datetime | None:
        """Tick until `end`; return when the first message came, if one did."""
        while self.world.now + step <= end:
            self.world.now += step
            self.tick()
            if self.hook.received:
                return self.world.now
        return None


def test_a_silent_vendor_raises_an_alert_within_the_rpo_and_a_tick_and_its_series_become_stale(
    instance: dg.DagsterInstance, make_world: MakeWorld, hook: Webhook
) -> None:
    vendor = ChangingSource(open_source(None))
    watched = Watched(make_world(NOON, source=vendor), instance, hook)
    watched.tick()
    assert watched.until(NOON + timedelta(minutes=30), CADENCE) is None

    silent_from = watched.world.now
    vendor.hidden.append(("AAPL", silent_from, silent_from + timedelta(days=2)))
    # The first bar that never comes is the one that starts now; it is due at its end and two minutes for the vendor.
    due = silent_from + timedelta(minutes=5 + 2)
    assert watched.until(due + RPO, CADENCE) is None
    alerted_at = watched.until(due + RPO + timedelta(hours=1))

    assert alerted_at is not None
    assert alerted_at - due <= RPO + INTERVAL
    (message,) = hook.received
    assert message["title"] == "1 of 5 critical series are more than 1 hour behind"
    assert "AAPL|5m: No bars from the vendor since 2026-03-11 16:25Z" in message["message"]
    assert watched.late[-1] == 1

    # Every run goes on to succeed; six hours after the first missing bar was due, and not before, the series is stale.
    titles = hook.titles()
    while watched.until(due + STALE_AFTER, CADENCE):
        titles += hook.titles()
    assert not any(watched.stale)
    watched.world.now = due + STALE_AFTER + INTERVAL
    watched.tick()
    assert watched.stale[-1] == ["AAPL|5m"]
    # The symbol's other series became late later, for the same reason: nothing new.
    assert titles == ["1 of 5 critical series are more than 1 hour behind"]


def test_a_vendor_with_nothing_new_on_a_weekend_raises_no_alert(
    instance: dg.DagsterInstance, make_world: MakeWorld, hook: Webhook
) -> None:
    friday_evening = datetime(2026, 3, 14, 1, 30, tzinfo=UTC)
    watched = Watched(make_world(friday_evening, source=ChangingSource(open_source(None))), instance, hook)
    watched.tick()
    assert watched.until(friday_evening + timedelta(days=2), timedelta(hours=6)) is None
    assert set(watched.late) == {0}
