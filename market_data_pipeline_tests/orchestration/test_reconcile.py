"""Bars that the vendor corrected or added after their day had settled, found by the daily job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import SecretStr

from market_data_pipeline.definitions import build_defs
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.orchestration.jobs.reconcile import reconcile
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.sandbox.main import open_source
from market_data_pipeline.settings import Settings
from market_data_pipeline.store.connection import engine
from market_data_pipeline_tests.ingest.changing import ChangingSource
from market_data_pipeline_tests.ingest.conftest import MakeWorld, World, make_world

__all__ = ["make_world"]  # the fixture: a vendor, a database and a clock

NOW = datetime(2026, 3, 11, 20, 0, tzinfo=UTC)


def found(world: World) -> list[tuple[str, str]]:
    with world.pipeline(15) as pipeline, engine(world.database_url, as_of=world.now).connect() as connection:
        return [(difference.symbol, difference.column) for difference in reconcile(pipeline, connection, 3)]


def test_a_settled_day_that_differs_is_reopened_and_corrected_by_the_next_refresh(make_world: MakeWorld) -> None:
    world = make_world(NOW)
    world.refresh("AAPL", "MSFT", timeframes=(Timeframe.D1,), history_days=15)
    assert found(world) == []

    (bar,) = world.query(
        "select ts, close from market_data.bars where symbol = 'AAPL' order by ts desc offset 1 limit 1"
    )
    world.query("update market_data.bars set close = 1 where symbol = 'AAPL' and ts = %s returning 1", bar["ts"])
    assert found(world) == [("AAPL", "close")]
    opened = world.query("select symbol, session_date from market_data.coverage where status = 'provisional'")
    assert ("AAPL", bar["ts"].date()) in {(row["symbol"], row["session_date"]) for row in opened}  # type: ignore[attr-defined]

    world.now += timedelta(hours=1)
    world.refresh("AAPL", timeframes=(Timeframe.D1,), history_days=15)
    (corrected,) = world.query("select close from market_data.bars where symbol = 'AAPL' and ts = %s", bar["ts"])
    assert corrected["close"] == bar["close"]
    assert [row["close"] for row in world.query("select close from market_data.bar_revisions")] == [1]
    assert found(world) == []


class Located(PipelineResource):
    """The pipeline as settings build it, for a vendor and a database of a test."""

    base_url: str
    url: str
    as_of: str

    def settings(self) -> Settings:
        """Return the settings."""
        return Settings(
            base_url=self.base_url,
            api_key=SecretStr("sandbox"),
            plan="advanced",
            database_url=self.url,
            as_of=datetime.fromisoformat(self.as_of),
            history_days=15,
        )


def run_job(instance: dg.DagsterInstance, world: World) -> dg.ExecuteInProcessResult:
    located = Located(base_url=world.base_url, url=world.database_url, as_of=world.now.isoformat())
    job = build_defs(resource_overrides={"pipeline": located}).resolve_job_def("reconcile")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def test_the_job_takes_in_corrections_and_late_bars_and_says_what_changed(
    instance: dg.DagsterInstance, make_world: MakeWorld
) -> None:
    vendor = ChangingSource(open_source(None))
    world = make_world(NOW, source=vendor)
    ten = NOW.replace(hour=14) - timedelta(days=5)  # a Friday at 09:00 in New York
    midnight = NOW.replace(hour=5) - timedelta(days=7)
    vendor.hidden.append(("AAPL", ten, ten + timedelta(minutes=10)))
    vendor.volumes["AAPL", midnight] = 7.0
    vendor.volumes["MSFT", ten] = 1.0
    world.refresh("AAPL", "MSFT", history_days=15)
    vendor.hidden.clear()
    vendor.volumes.clear()
    world.now += timedelta(hours=20)

    result = run_job(instance, world)

    assert result.success
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    said = output.step_output_data.metadata
    assert said["differences"].value == 1  # the day bar
    assert said["bars_corrected"].value == 8  # it, MSFT's bar and the 15m, 1h and 4h ones made of changed bars
    assert said["bars_filled"].value == 2
    sample = [record.data for record in said["bars_changed"].records]
    assert {(row["series"], row["kind"]) for row in sample if row["series"].endswith(("|5m", "|1d"))} == {
        ("AAPL|1d", "corrected"),
        ("AAPL|5m", "filled"),
        ("MSFT|5m", "corrected"),
    }
    logged = world.query(
        "select sum(requests)::int as requests, count(*) as series from market_data.ingest_log where run_id = %s",
        result.run_id,
    )
    assert logged == [{"requests": said["requests"].value, "series": 10}]
    shown = result.filter_events(lambda event: event.event_type_value == "ASSET_MATERIALIZATION")
    assert {"AAPL|5m", "AAPL|1d", "MSFT|4h"} <= {event.partition for event in shown}

    world.now += timedelta(days=1)
    again = run_job(instance, world)
    (output,) = [e for e in again.all_events if e.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["differences"].value == 0
    assert "bars_changed" not in output.step_output_data.metadata


def test_a_symbol_that_cannot_be_reverified_fails_the_job_and_not_the_others(
    instance: dg.DagsterInstance, make_world: MakeWorld
) -> None:
    vendor = ChangingSource(open_source(None))
    world = make_world(NOW, source=vendor)
    world.refresh("AAPL", "MSFT", timeframes=(Timeframe.M5,), history_days=15)
    day = NOW - timedelta(days=5)
    vendor.hidden.append(("AAPL", NOW - timedelta(days=400), NOW + timedelta(days=400)))  # the vendor lost the ticker
    vendor.volumes["MSFT", day.replace(hour=15)] = 1.0
    world.now += timedelta(days=1)

    result = run_job(instance, world)

    assert not result.success
    (failed,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "AAPL|5m" in str(failed.step_failure_data.user_failure_data.description)
    assert "MSFT" not in str(failed.step_failure_data.user_failure_data.description)
    assert len(world.query("select * from market_data.bar_revisions where symbol = 'MSFT' and timeframe = '5m'")) == 1
