"""Dagster's storage keeps one connection for all statements of an instance, and replaces one that was lost."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import psycopg

from market_data_pipeline.store.connection import libpq_url


def backends(dagster_url: str, do: str = "pid") -> list[int]:
    """Return the server's processes for the storage's clients, each after `do`."""
    with psycopg.connect(libpq_url(dagster_url), autocommit=True) as connection:
        found = connection.execute(
            f"select pid, {do} from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )
        return [pid for pid, *_ in found]


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
        kept = backends(dagster_url)
        assert len(kept) == 1
        use(instance)
        assert backends(dagster_url, "pg_terminate_backend(pid, 10000)") == kept
        use(instance)
        assert len(backends(dagster_url)) == 1
    assert backends(dagster_url) == []
