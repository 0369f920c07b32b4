"""Dagster as this project runs it, while a measurement runs: its storage, its daemon and the usual location.

The storage is a separate database beside the measured one, the home a folder that is removed at the end. Everything
else is the project's: `dagster.yaml`, `workspace.yaml`, schedules and sensors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg

from benchmarks.place import NOW, REPOSITORY, Place
from market_data_pipeline.settings.sandbox import SANDBOX_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import dagster as dg

_START_SECONDS: Final = 120.0


@contextmanager
def running_dagster(
    place: Place, database_url: str, *, history_days: int, as_of: datetime = NOW
) -> Iterator[dg.DagsterInstance]:
    """Start a daemon for the market data in `database_url` and yield its instance, with partitions registered.

    It finds what the daemons before it wrote for the same database; the pipeline's clock stands at `as_of`.
    """
    import dagster as dg

    from market_data_pipeline.orchestration.partitions import sync_partitions
    from market_data_pipeline.store.connection import engine

    name = "dagster_" + urlsplit(database_url).path.strip("/")
    with (
        psycopg.connect(place.postgres_url, autocommit=True) as connection,
        suppress(psycopg.errors.DuplicateDatabase),
    ):
        connection.execute(f"create database {name}")
    storage = urlsplit(place.postgres_url)._replace(scheme="postgresql+psycopg2", path=f"/{name}").geturl()
    with tempfile.TemporaryDirectory(prefix="market-data-bench-") as folder:
        home = Path(folder)
        for file in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(REPOSITORY / file, home)
        environment = dict(os.environ)
        os.environ.update(
            DAGSTER_HOME=folder,
            DAGSTER_POSTGRES_URL=storage,
            DATABASE_URL=database_url,
            MARKET_DATA_AS_OF=as_of.isoformat(),
            MARKET_DATA_HISTORY_DAYS=str(history_days),
            MARKET_DATA_PROJECT_ROOT=folder,
            POLYGON_API_KEY=SANDBOX_KEY,
            POLYGON_BASE_URL=place.vendor_url,
            POLYGON_PLAN="advanced",
        )
        try:
            with dg.DagsterInstance.get() as instance:
                market = engine(database_url)
                sync_partitions(instance, market)
                market.dispose()
                with _daemon(home, instance):
                    yield instance
        finally:
            os.environ.clear()
            os.environ.update(environment)


@contextmanager
def _daemon(home: Path, instance: dg.DagsterInstance) -> Iterator[None]:
    command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-w", str(home / "workspace.yaml")]
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)  # noqa: S603 - Dagster's own
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not instance.get_daemon_heartbeats():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("Dagster's daemon did not start.")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait()
