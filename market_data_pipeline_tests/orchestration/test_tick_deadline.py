"""A tick on a database that answers slowly, or not at all, ends and says why."""

from __future__ import annotations

import psycopg
import pytest

from market_data_pipeline.orchestration import resources
from market_data_pipeline_tests.orchestration.conftest import NOW
from market_data_pipeline_tests.orchestration.test_sensors import Ticks, ticks

__all__ = ["ticks"]  # the fixture


def hasten(monkeypatch: pytest.MonkeyPatch, seconds: float, each: float) -> None:
    monkeypatch.setattr(resources.bound, "__defaults__", (seconds, each))


def test_a_tick_ends_when_all_of_its_statements_together_take_too_long(
    ticks: Ticks, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database_url) as connection:  # each statement is quick enough on its own
        connection.execute(
            f"""
            create or replace function market_data.clock() returns timestamptz language plpgsql stable as
            $$ begin perform pg_sleep(0.1); return '{NOW.isoformat()}'::timestamptz; end $$
            """
        )
    ticks.sensor("staleness_sensor")
    hasten(monkeypatch, seconds=0.3, each=60)
    with pytest.raises(resources.OverdueTickError):
        ticks.sensor("staleness_sensor")


@pytest.mark.parametrize("name", ["staleness_sensor", "universe_sensor", "backfill_request_sensor"])
def test_a_tick_ends_when_a_statement_gets_no_answer(
    ticks: Ticks, database_url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch, seconds=60, each=0.3)
    with psycopg.connect(database_url) as holding:
        holding.execute("lock table market_data.symbols")
        with pytest.raises(resources.OverdueTickError, match="a statement was cancelled"):
            ticks.sensor(name)


def test_a_tick_has_ended_before_dagster_gives_up_on_it() -> None:
    """Sixty seconds by default: the last transaction may have three statements."""
    assert resources.TICK_SECONDS + 3 * resources.STATEMENT_SECONDS < 60
