"""The project of a drill: `market-data up` as a real process in a scratch project, and a vendor that can be broken.

Add here: what an outage does to the project, or what an operator does to repair it. Keep out: the outages (drill).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import psutil
import requests
import sqlalchemy as sa

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.measure.scratch import free_ports, scratch_project
from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
from market_data_pipeline.process_identity import is_alive
from market_data_pipeline.runtime.load import dagster_instance
from market_data_pipeline.runtime.postgres import EmbeddedPostgres
from market_data_pipeline.runtime.processes import Child, Processes, end_trees
from market_data_pipeline.settings.sandbox import HOST, SANDBOX_KEY, STATUS_PATH
from market_data_pipeline.store.connection import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from market_data_pipeline.reports.dagster_state import Evaluation
    from market_data_pipeline.settings import Settings

UNIVERSE: Final = {Tier.CRITICAL: ("AAPL", "MSFT"), Tier.STANDARD: (), Tier.LOW_PRIORITY: ("X:BTCUSD",)}
OWN_FEATURES: Final = "drill_features.py"
NO_FEATURES: Final = "FEATURES = ()\n"

_DAGSTER: Final = {"dagster-daemon", "grpc"}  # words in the command lines of the daemon and the code server
_HISTORY_DAYS: Final = 5  # a longer history makes the drill longer, but not the outages
_POLL_SECONDS: Final = 0.5
_UP: Final = "from market_data_pipeline.cli.main import main; main()"


class OverdueError(PipelineError):
    """A condition did not hold in time; the text completes "timed out waiting for"."""


class DrillProject:
    """A running project; methods that need its database raise `DatabaseUnavailableError` while it is down."""

    def __init__(self, settings: Settings, processes: Processes, vendor_port: int) -> None:
        self.settings = settings
        self.vendor_port = vendor_port
        self.api = settings.local_api_url
        self.on_restart: Callable[[str], None] = lambda _: None
        self._processes = processes
        self._up: Child | None = None
        self._vendor: Child | None = None
        self.engine = engine(settings.database_url, pool_size=1)
        self._dagster = StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)

    def close(self) -> None:
        """Close the connections to the databases."""
        self._dagster.close()
        self.engine.dispose()

    def start_vendor(self, calls_per_minute: int = 0) -> None:
        """Start the vendor, or restart it with another limit, of which the pipeline does not know."""
        if self._vendor is not None:
            end_trees([self._vendor.process])
            self._processes.children.remove(self._vendor)
        command = [sys.executable, "-m", "market_data_pipeline.sandbox.server", "--port", str(self.vendor_port)]
        command += ["--plan", "advanced", "--calls-per-minute", str(calls_per_minute)]
        self._vendor = self._processes.start("vendor", command, cwd=self.settings.project_root, environment={})
        self.wait_for("the vendor to start", lambda: self._status() is not None, 60.0)

    def refusals(self) -> int:
        """Return how many requests the vendor has refused by its rate limit since it was started."""
        return int((self._status() or {}).get("answered", {}).get("429", 0))

    def _status(self) -> dict[str, Any] | None:
        with suppress(requests.RequestException):
            found: dict[str, Any] = requests.get(f"http://{HOST}:{self.vendor_port}{STATUS_PATH}", timeout=5).json()
            return found
        return None

    def start_up(self) -> None:
        """Start `market-data up`."""
        if self._up is not None:
            self._processes.children.remove(self._up)
        command = [sys.executable, "-c", _UP, "up"]
        self._up = self._processes.start("market-data-up", command, cwd=self.settings.project_root, environment={})

    def up_has_ended(self) -> bool:
        """Return whether `market-data up` has ended on its own."""
        return self._up is not None and self._up.process.poll() is not None

    def keep_up(self) -> None:
        """Start `market-data up` again if it has ended, as an operator or a supervisor would."""
        if self.up_has_ended():
            self.start_up()
            self.on_restart("`market-data up` had ended and was started again")

    def family(self) -> list[psutil.Process]:
        """Return `market-data up` and all that it started and that still runs."""
        with suppress(psutil.NoSuchProcess):
            return self._up.process.children(recursive=True) if self._up is not None else []
        return []

    def database_process(self) -> psutil.Process | None:
        """Return PostgreSQL's main process; None while it does not run."""
        return EmbeddedPostgres.of(self.settings).process()

    def vendor_process(self) -> psutil.Process | None:
        """Return the vendor's process."""
        return self._vendor.process if self._vendor is not None else None

    def keep_vendor(self) -> None:
        """Start the vendor again if it has ended."""
        if self._vendor is not None and self._vendor.process.poll() is not None:
            self.start_vendor()

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return when each schedule and sensor was evaluated."""
        return self._dagster.evaluations()

    def unfinished_since(self, instant: datetime) -> list[str]:
        """Return the runs that were created before `instant` and have no end."""
        from market_data_pipeline.orchestration.runs import UNFINISHED

        names = {status.value for status in UNFINISHED}
        return [run.run_id for run in self._dagster.runs(1000) if run.status in names and run.created_at < instant]

    def kill_dagster(self) -> int:
        """Kill Dagster's daemon, its code server and their runs; return how many processes were killed."""
        killed = 0
        roots = self._dagster_roots()
        for process in [*roots, *(child for root in roots for child in root.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        return killed

    def dagster_runs(self) -> bool:
        """Return whether both Dagster's daemon and its code server run."""
        return len([process for process in self._dagster_roots() if is_alive(process)]) == len(_DAGSTER)

    def _dagster_roots(self) -> list[psutil.Process]:
        found = []
        for process in self._up.process.children() if self._up is not None else []:
            with suppress(psutil.NoSuchProcess):
                if _DAGSTER & {_word(argument) for argument in process.cmdline()[:6]}:
                    found.append(process)
        return found

    def kill_database(self) -> None:
        """Kill PostgreSQL's main process, which ends all connections."""
        pid = (self.settings.state_dir / "postgres" / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0]
        process = psutil.Process(int(pid))
        process.kill()
        self.wait_for("PostgreSQL to die", lambda: not is_alive(process), 60.0)

    def lose_server(self) -> None:
        """Kill everything but the vendor, and remove the database: only what lies elsewhere is left."""
        for process in self.family() + ([self._up.process] if self._up is not None else []):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait_for("`market-data up` to die", self.up_has_ended, 60.0)
        self.kill_database()
        data = self.settings.state_dir / "postgres"
        lost = data.rename(data.with_name("postgres.lost"))  # children of the killed server may still write
        shutil.rmtree(lost, ignore_errors=True)

    def start_database(self) -> None:
        """Start PostgreSQL again, which recovers what was committed."""
        EmbeddedPostgres.of(self.settings).ensure_running()

    def health(self) -> int | None:
        """Return the status code of `/health`; None when the API does not answer."""
        with suppress(requests.RequestException):
            return requests.get(f"{self.api}/health", timeout=30).status_code
        return None

    def daemons_live_since(self, instant: float) -> bool:
        """Return whether every daemon has sent a heartbeat after `instant`, in seconds since 1970."""
        beats = [daemon.last_heartbeat for daemon in self._dagster.daemons()]
        return bool(beats) and all(beat is not None and beat.timestamp() > instant for beat in beats)

    def refresh(self, symbols: Sequence[str] = (), *, full: bool = False) -> list[str]:
        """Queue a refresh in Dagster and return the ids of its runs."""
        from market_data_pipeline.orchestration.runs import submit_refresh

        with self._instance() as instance:
            return submit_refresh(instance, symbols=symbols, full=full, trigger="drill")

    def statuses(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Return the status of each run, as Dagster names it, by run id."""
        return {run.run_id: run.status for run in self._dagster.runs(100) if run.run_id in run_ids}

    def unfinished(self) -> list[str]:
        """Return the ids of the runs that are queued or under way."""
        from market_data_pipeline.orchestration.runs import UNFINISHED

        names = {status.value for status in UNFINISHED}
        return [run.run_id for run in self._dagster.runs(100) if run.status in names]

    @contextmanager
    def _instance(self) -> Iterator[Any]:
        with dagster_instance(self.settings, self.engine) as instance:
            yield instance

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Wait until a condition holds; while the database is down it counts as not holding.

        Raises:
            OverdueError: `seconds` have passed.
        """
        from dagster_postgres.utils import DagsterPostgresException

        deadline = time.monotonic() + seconds
        while True:
            with suppress(DatabaseUnavailableError, DagsterPostgresException, sa.exc.DBAPIError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise OverdueError(what)
            time.sleep(_POLL_SECONDS)


@contextmanager
def running_project(
    settings: Settings,
    *,
    universe: Mapping[Tier, tuple[str, ...]] = UNIVERSE,
    files: Mapping[str, str] = MappingProxyType({}),
    **variables: object,
) -> Iterator[DrillProject]:
    """Yield a scratch project with its own database server, in which everything has been started.

    Args:
        settings: of the user's project.
        universe: the symbols to follow.
        files: further files in its folder, by name; Python finds modules among them.
        variables: further ones of its environment.
    """
    vendor_port, api_port, ui_port = free_ports(3)
    with (
        scratch_project(
            settings,
            "drill",
            universe=universe,
            own_server=True,
            files={OWN_FEATURES: NO_FEATURES, **files},
            POLYGON_API_KEY=SANDBOX_KEY,
            POLYGON_BASE_URL=f"http://{HOST}:{vendor_port}",
            POLYGON_PLAN="advanced",
            POLYGON_CALLS_PER_MINUTE=0,
            MARKET_DATA_FEATURES_MODULE=OWN_FEATURES,
            MARKET_DATA_HISTORY_DAYS=_HISTORY_DAYS,
            MARKET_DATA_API_PORT=api_port,
            MARKET_DATA_UI_PORT=ui_port,
            **variables,
        ) as scratch,
        ExitStack() as stack,
    ):
        if files:
            stack.enter_context(_found_by_python(scratch.project_root))
        processes = Processes(scratch.state_dir, "drill")
        stack.callback(processes.stop)
        stack.enter_context(processes.recorded())
        project = DrillProject(scratch, processes, vendor_port)
        stack.callback(project.close)
        project.start_vendor()
        project.start_up()
        yield project


@contextmanager
def _found_by_python(folder: Path) -> Iterator[None]:
    """Let the processes that are started meanwhile find modules in a folder first."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def _word(argument: str) -> str:
    return argument.rpartition("/")[2]
