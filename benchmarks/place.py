"""A vendor, a database and a pipeline that exist only while a measurement runs.

The vendor is the sandbox in its own process, the database an embedded server with its usual settings in a folder that
is removed at the end; the user's own are not touched. A measurement that is stopped by Ctrl-C, SIGTERM (which
`timeout` sends) or a closed terminal leaves nothing behind; what a killed one left is removed by the next one.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psycopg
import requests

from market_data_pipeline.domain.series import Tier, asset_class_of
from market_data_pipeline.measure.scratch import free_ports
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.settings.sandbox import HOST, SANDBOX_KEY, STATUS_PATH
from market_data_pipeline.store.connection import drop_database
from market_data_pipeline.store.migrations import migrate_database
from market_data_pipeline.store.universe import load_universe_file

if TYPE_CHECKING:
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.pipeline import Pipeline

REPOSITORY: Final = Path(__file__).resolve().parent.parent
# A Saturday, when every day of the week has settled, so that every run has the same bars.
NOW: Final = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
POSTGRES_URL: Final = "MARKET_DATA_BENCHMARK_URL"  # in the environment of a measured process
_START_SECONDS: Final = 60.0
_FOLDER: Final = "market-data-bench-server-"


def now() -> datetime:
    """Return the instant at which all measurements are made."""
    return NOW


def universe() -> tuple[str, ...]:
    """Return the 25 symbols of the packaged universe."""
    tiers = load_universe_file(REPOSITORY / "market_data_pipeline" / "universe.yaml")
    return tuple(symbol for symbols in tiers.values() for symbol in symbols)


def symbol_requests(symbols: tuple[str, ...]) -> list[SymbolRequest]:
    """Return what a run requests: all timeframes of the symbols."""
    from market_data_pipeline.ingest.outcome import SymbolRequest

    return [SymbolRequest(symbol, Tier.CRITICAL) for symbol in symbols]


@dataclass(frozen=True)
class Place:
    """A vendor and a database server."""

    vendor_url: str
    postgres_url: str

    def new_database(self, name: str, symbols: tuple[str, ...]) -> str:
        """Return the URL of a new database that follows `symbols`."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        url = urlsplit(self.postgres_url)._replace(path=f"/{name}").geturl()
        migrate_database(url, REPOSITORY / "sql")
        with psycopg.connect(url, autocommit=True) as connection:
            for symbol in symbols:
                connection.execute(
                    "insert into market_data.symbols values (%s, 'critical', %s, true, %s)",
                    (symbol, asset_class_of(symbol), NOW),
                )
        return url

    def drop(self, database_url: str) -> None:
        """Remove a database after use: else autovacuum would work on it a minute later, in another measurement."""
        name = urlsplit(database_url).path[1:]
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            drop_database(connection, name)

    @staticmethod
    def measured(command: list[str], database_url: str) -> dict[str, Any]:
        """Return what a measured process prints; its environment contains the database's URL with the password."""
        environment = {**os.environ, POSTGRES_URL: database_url}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=REPOSITORY, env=environment)  # noqa: S603
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pipeline(self, database_url: str, *, history_days: int, threads: int) -> Pipeline:
        """Return the pipeline of a run on an unlimited plan."""
        from market_data_pipeline.ingest.pipeline import Pipeline, shared_limiter
        from market_data_pipeline.polygon.client import PolygonClient
        from market_data_pipeline.polygon.plans import plan_named
        from market_data_pipeline.store.source import Source

        plan, source = plan_named("advanced"), Source("sandbox", None, "advanced")
        limiter = shared_limiter(database_url, plan.calls_per_minute)
        client = PolygonClient(self.vendor_url, SANDBOX_KEY, limiter=limiter, plan=plan, clock=now)
        return Pipeline(client, database_url, now, plan, history_days, threads, NOW, source=source)


@contextmanager
def running_server(vendor_url: str = "") -> Iterator[Place]:
    """Start a database server, and stop it at the end; `running_place` also starts the vendor."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that everything is closed as on Ctrl-C
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder, (Path(folder) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            server.ensure_running()
            yield Place(vendor_url, server.owner_url)
        finally:
            server.stop()


def _remove_leftovers() -> None:
    """Stop the servers of measurements that were killed and remove their folders."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError), (folder / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its measurement runs
            EmbeddedPostgres(folder / "postgres").stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_place(latency_ms: float = 0.0) -> Iterator[Place]:
    """Start both servers, the vendor waiting `latency_ms` before every answer, and stop them at the end."""
    with _vendor(latency_ms) as vendor_url, running_server(vendor_url) as place:
        yield place


def _end_with_parent() -> None:
    """Let Linux end this process when its parent ends, for whatever reason."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@contextmanager
def _vendor(latency_ms: float) -> Iterator[str]:
    [port] = free_ports(1)
    module = "market_data_pipeline.sandbox.server"
    options = ["--port", str(port), "--latency-ms", str(latency_ms), "--as-of", NOW.isoformat()]
    command = [sys.executable, "-m", module, *options]
    process = subprocess.Popen(  # noqa: S603 - our own module
        command,
        stdout=subprocess.DEVNULL,
        cwd=REPOSITORY,
        preexec_fn=_end_with_parent,
    )
    url = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                requests.get(url + STATUS_PATH, timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()
