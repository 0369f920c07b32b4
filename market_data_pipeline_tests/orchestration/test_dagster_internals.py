"""Dagster's private names still exist, and its storage is read over kept connections, which may be ended."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent
from dagster._grpc.server import DagsterApiServer

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.orchestration import dagster_internals
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.server_clients import clients, end_clients
from market_data_pipeline_tests.serving.conftest import evaluate
from market_data_pipeline_tests.waiting import until

STORAGE = """
storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}
telemetry: {enabled: false}
"""


@pytest.fixture
def state(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredDagsterState]:
    url = Settings(
        database_url=database_url, dagster_postgres_url=database_url, project_root=tmp_path
    ).dagster_postgres_url
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    (tmp_path / "dagster.yaml").write_text(STORAGE)
    reader = StoredDagsterState(tmp_path, url)
    yield reader
    reader.close()


def test_many_queries_share_few_connections_which_may_be_ended(state: StoredDagsterState, database_url: str) -> None:
    assert state.runs(1) == ()
    state.schedules()
    opened = clients(database_url)
    for _ in range(3):
        state.runs(5)
        state.schedules()
    # At most one of each of Dagster's three storages; what only asked whether the server answers ends by itself.
    until(lambda: len(clients(database_url)) <= 3 and clients(database_url) <= opened)

    assert set() < end_clients(database_url) <= opened

    assert state.runs(1) == ()
    assert [schedule.running for schedule in state.schedules()] == [False, False, False]


def test_a_schedule_that_was_evaluated_on_time_is_due_at_its_next_time_and_not_at_the_one_it_had(
    state: StoredDagsterState, tmp_path: Path
) -> None:
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        evaluate(instance, datetime(2026, 11, 30, 5, 30, tzinfo=UTC))
    due = {one.name: one.due_at for one in state.evaluations()}
    assert due["critical_schedule"] == datetime(2026, 11, 30, 5, 45, tzinfo=UTC)
    assert due["low_priority_schedule"] == datetime(2026, 12, 1, 5, 30, tzinfo=UTC)  # 00:30 New York
    assert due["reconcile_schedule"] == datetime(2026, 11, 30, 16, 20, tzinfo=UTC)


def test_a_storage_that_cannot_be_reached_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(STORAGE)
    state = StoredDagsterState(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError, match=r"^Dagster's storage cannot be reached\.$"):
        state.runs(1)


def private_names(file: Path) -> set[tuple[str, str]]:
    """Return the private names of Dagster that a module imports, also inside functions."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dagster._")
        for alias in node.names
    }


def test_every_private_name_of_dagster_still_exists() -> None:
    names = private_names(Path(dagster_internals.__file__))
    assert len(names) >= 10
    missing = [(module, name) for module, name in names if not hasattr(importlib.import_module(module), name)]
    assert missing == []


def test_the_code_server_still_starts_runs_by_the_attribute_that_is_replaced() -> None:
    assert "self._mp_ctx" in inspect.getsource(DagsterApiServer)


def test_dagster_still_writes_events_in_batches_of_the_size_in_the_environment() -> None:
    assert "DAGSTER_EVENT_BATCH_SIZE" in inspect.getsource(importlib.import_module("dagster._core.instance.utils"))
    parameters = inspect.signature(DagsterEvent.asset_materialization).parameters
    assert list(parameters)[:3] == ["step_context", "materialization", "batch_metadata"]
