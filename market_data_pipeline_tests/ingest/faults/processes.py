"""Refreshes in processes of their own, which can be killed, and a wire that stops one inside its transaction."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.context import ForkServerProcess
from types import SimpleNamespace
from typing import Any, Final

from market_data_pipeline_tests.ingest.faults.world import FaultyWorld
from market_data_pipeline_tests.waiting import until

# A fork server imports pandas and the driver once, and has no threads that a fork would cut off in the middle.
_processes: Final = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__, "pandas", "psycopg"])

_WIRE: Final = 0x57
_OURS: Final = "market-data refresh"  # the application name of a refresh's connections


def start(world: FaultyWorld, *symbols: str, history_days: int) -> ForkServerProcess:
    """Start a refresh in another process, with the world's vendor, database and clock."""
    world.runs += 1
    world.track(*symbols)
    arguments = (world.database_url, world.vendor.url, world.now, world.threads, world.runs, symbols, history_days)
    process = _processes.Process(target=_run, args=arguments)
    process.start()
    return process


def _run(
    database_url: str, vendor: str, now: datetime, threads: int, run: int, symbols: tuple[str, ...], days: int
) -> None:
    there: Any = SimpleNamespace(url=vendor)
    world = FaultyWorld("http://127.0.0.1:9", database_url, now, threads=threads, vendor=there)
    world.runs = run - 1
    world.refresh(*symbols, history_days=days)


def kill(world: FaultyWorld, process: ForkServerProcess) -> None:
    """End a process with SIGKILL, and wait until the server has noticed."""
    process.kill()
    process.join()
    until(lambda: not sessions(world))


def sessions(world: FaultyWorld) -> list[dict[str, object]]:
    """Return the database sessions of refreshes."""
    return world.query(
        "select pid, state, query from pg_stat_activity where application_name = %s and datname = current_database()",
        _OURS,
    )


def advisory_locks(world: FaultyWorld) -> list[dict[str, object]]:
    """Return the advisory locks that are held or waited for."""
    return world.query(
        "select * from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())"
    )


@contextmanager
def wire(world: FaultyWorld, relation: str, *, at_commit: bool = False) -> Iterator[Callable[[], bool]]:
    """Suspend a process that writes to a relation, right after the statement or in its COMMIT, until the block ends.

    Yields a function that returns whether a process has been suspended.
    """
    kind, timing = (
        ("constraint trigger", "deferrable initially deferred for each row") if at_commit else ("trigger", "")
    )
    with world.connect() as holder:
        holder.execute("select pg_advisory_lock(%s)", (_WIRE,))
        holder.execute(
            "create or replace function public.wire() returns trigger language plpgsql as"
            f" $$ begin perform pg_advisory_xact_lock_shared({_WIRE}); return null; end $$"
        )
        holder.execute(
            f"create {kind} wire after insert on market_data.{relation} {timing or 'for each statement'}"
            " execute function public.wire()"
        )

        def stopped() -> bool:
            # pg_locks shows the whole server, on which another test may suspend a process at the same time.
            waiting = (
                "select 1 from pg_locks where locktype = 'advisory' and objid = %s and not granted"
                " and database = (select oid from pg_database where datname = current_database())"
            )
            return bool(holder.execute(waiting, (_WIRE,)).fetchall())

        yield stopped
        holder.execute("select pg_advisory_unlock(%s)", (_WIRE,))
        holder.execute(f"drop trigger wire on market_data.{relation}")
