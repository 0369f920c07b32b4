"""A market database that goes and comes back, while Dagster's storage stays: two messages through a real webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from market_data_pipeline.definitions import build_defs
from market_data_pipeline_tests.orchestration.conftest import StandIn
from market_data_pipeline_tests.orchestration.webhook import Webhook, webhook


class Watch:
    """The staleness sensor's ticks, each with the cursor of the one before, and a gate before its database."""

    def __init__(self, instance: dg.DagsterInstance, url: str, postgres_url: str, hook: Webhook) -> None:
        self.instance = instance
        self.postgres_url = postgres_url
        self.name = urlsplit(url).path[1:]
        self.pipeline = StandIn(url=url, alert_urls=[hook.address()])
        self.definitions = build_defs(resource_overrides={"pipeline": self.pipeline})
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            self.instance, cursor=self.cursor, definitions=self.definitions, resources={"pipeline": self.pipeline}
        )
        result: Any = self.definitions.get_repository_def().get_sensor_def("staleness_sensor")(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result

    def gate(self, *, is_open: bool) -> None:
        """Let nobody in any more and put out who is in, or open again."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("alter database {} allow_connections {}").format(sql.Identifier(self.name), is_open)
            )
            if not is_open:
                connection.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", (self.name,)
                )


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as made:
        yield made


@pytest.fixture
def watch(
    registered: dg.DagsterInstance, database: sa.Engine, database_url: str, postgres_url: str, hook: Webhook
) -> Watch:
    made = Watch(registered, database_url, postgres_url, hook)
    made.tick()
    hook.titles()
    return made


def test_a_lost_database_and_its_return_are_told_once_each_for_all_tiers_together(watch: Watch, hook: Webhook) -> None:
    watch.gate(is_open=False)
    for _ in range(3):
        assert "not currently accepting connections" in str(watch.tick().skip_reason)
    (message,) = hook.received
    assert message["title"] == "The market database cannot be reached"
    assert watch.name in message["message"]
    assert "`market-data up` starts the project's own" in message["message"]
    hook.titles()

    watch.gate(is_open=True)
    for _ in range(2):
        assert watch.tick().skip_reason is None
    (title,) = hook.titles()
    assert title.startswith("The market database answers again after ")


def test_what_reached_nobody_is_told_at_the_next_look(watch: Watch, hook: Webhook) -> None:
    watch.gate(is_open=False)
    hook.status = 503
    watch.tick()
    hook.status = 200
    watch.tick()
    assert hook.titles() == ["The market database cannot be reached"]
    watch.gate(is_open=True)
    hook.status = 503
    watch.tick()
    hook.status = 200
    watch.tick()
    watch.tick()
    (title,) = hook.titles()
    assert title.startswith("The market database answers again after ")


def test_a_cursor_of_another_make_is_logged_and_the_sensor_starts_anew(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    for cursor in ("{", "[]", "17", '{"attempts": {"AAPL|5m": 3}}', '{"absence": "long"}'):
        watch.cursor = cursor
        caplog.clear()
        assert len(watch.tick().asset_events) == 3, cursor
        assert "cannot be read; it starts anew" in caplog.text, cursor
    caplog.clear()
    assert not watch.tick().asset_events  # and remembers from here on
    assert "cannot be read" not in caplog.text
