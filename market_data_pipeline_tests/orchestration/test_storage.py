"""Dagster's storage keeps one connection for all statements of an instance, and replaces one that was lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.orchestration.storage import KeptConnectionStorage
from market_data_pipeline.store.connection import libpq_url
from market_data_pipeline_tests.server_clients import clients, end_clients
from market_data_pipeline_tests.waiting import until


def use(instance: dg.DagsterInstance) -> None:
    """Ask each part of the storage."""
    assert instance.get_runs() == []
    assert instance.all_instigator_state() == []
    assert instance.get_asset_keys() == []


def test_statements_share_a_connection_that_is_replaced_when_lost_and_closed_at_the_end(
    dagster_home: Path, dagster_url: str
) -> None:
    with dg.DagsterInstance.get() as instance:
        use(instance)
        until(lambda: len(clients(dagster_url)) == 1)
        kept = clients(dagster_url)
        use(instance)
        until(lambda: clients(dagster_url) == kept)
        assert end_clients(dagster_url) == kept
        use(instance)
        until(lambda: len(clients(dagster_url)) == 1)
    until(lambda: not clients(dagster_url))


def test_runs_that_start_and_end_together_each_have_a_slot_of_their_own(dagster_home: Path, dagster_url: str) -> None:
    """Each claims by its own storage, as in processes of their own; the fourth of a round waits until one is free."""
    together = threading.Barrier(4)

    def claimed(instance: dg.DagsterInstance, name: str) -> bool:
        together.wait()
        return instance.event_log_storage.claim_concurrency_slot("a pool", name, "a step").is_claimed

    def freed(instance: dg.DagsterInstance, name: str) -> None:
        together.wait()
        instance.event_log_storage.free_concurrency_slots_for_run(name)

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        instances = [stack.enter_context(dg.DagsterInstance.get()) for _ in range(4)]
        storage = instances[0].event_log_storage
        storage.set_concurrency_slots("a pool", 3)
        for number in range(10):
            names = [f"{number} {one}" for one in "abcd"]
            claims = list(pool.map(claimed, instances, names))
            info = storage.get_concurrency_info("a pool")
            assert (sum(claims), info.active_slot_count, info.pending_step_count) == (3, 3, 1)
            list(pool.map(freed, instances, names))
            assert storage.get_concurrency_info("a pool").active_slot_count == 0


def parameters(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Return what libpq was given for the connections of each part of the storage."""
    found = []
    for part in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        with part._engine.connect() as connection:
            found.append(connection.connection.driver_connection.get_dsn_parameters())
    return found


@pytest.mark.parametrize("scheme", [{}, {"scheme": "postgresql+psycopg2"}])
def test_it_takes_the_block_of_the_helm_chart_with_and_without_a_scheme(
    dagster_home: Path, dagster_url: str, scheme: dict[str, str]
) -> None:
    plain = conninfo_to_dict(libpq_url(dagster_url))
    block = {
        "username": plain["user"],
        "password": {"env": "DAGSTER_PG_PASSWORD"},
        "hostname": "",
        "db_name": plain["dbname"],
        "port": int(plain["port"]),
        "params": {"host": plain["host"]},
        **scheme,
    }
    file = dagster_home / "dagster.yaml"
    config = yaml.safe_load(file.read_text())
    config["storage"]["custom"]["config"] = {"postgres_db": block}
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_PG_PASSWORD", str(plain["password"]))
        patch.delenv("DAGSTER_POSTGRES_URL")
        with dg.DagsterInstance.get() as instance:
            use(instance)
            instance.report_runless_asset_event(dg.AssetMaterialization("an_asset"))  # with a NOTIFY
            assert instance.get_asset_keys() == [dg.AssetKey("an_asset")]


def test_no_connection_of_the_storage_waits_for_a_machine_that_is_gone(dagster_home: Path) -> None:
    wanted = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "6"}
    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.optimize_for_webserver(5000, -1, -1)  # it opens connections of its own
        for given in parameters(instance):
            assert given.items() >= {**wanted, "tcp_user_timeout": "90000", "connect_timeout": "10"}.items()


def test_a_url_that_no_one_can_use_is_named() -> None:
    with pytest.raises(ConfigurationError, match="The URL of Dagster's storage does not start with postgresql://"):
        KeptConnectionStorage("mysql://somewhere/dagster")
