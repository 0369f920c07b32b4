"""Dagster's daemon of this project: never two of them, whatever commands run side by side.

Two daemons on one storage would both take runs from the queue. So the command that starts the daemon holds
`dagster.lock` for as long as it runs; another one works with that daemon, and starts its own when that one is gone.

Add here: who starts Dagster's processes and when they end. Keep out: how processes are started (processes) and what
runs are submitted (loading).
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from market_data_pipeline.domain.errors import DatabaseFullError, DatabaseUnavailableError
from market_data_pipeline.runtime.load import cancel_begun, environment, has_begun
from market_data_pipeline.runtime.process_records import families, others
from market_data_pipeline.runtime.processes import Processes, end_trees
from market_data_pipeline.settings.project import LOCATION

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import Console

    from market_data_pipeline.settings import Settings

_CODE_SERVER: Final = "dagster-code-server"
LOOK_SECONDS: Final = 0.5  # between two looks at processes while nothing else is to be done
# The embedded PostgreSQL can go on only where it can add a segment of its log. Without that Dagster cannot even store
# that a run failed, and whoever waits for the run would wait for ever.
_LOG_SEGMENT: Final = 16 << 20


class Daemon:
    """The daemon as one command sees it: started by this one, or by another that it has to share with.

    At the end of the block it stops if it is ours, and the runs that it has begun are cancelled.

    Args:
        settings: of the project.
        console: where to say what is waited for.
        processes: of this command.
        instance: Dagster's.
        reloads: whether somebody may ask for the definitions to be loaded again: the UI's button does. The server that
            can is a process more, 1.5 s of processor time.
    """

    def __init__(
        self,
        settings: Settings,
        console: Console,
        processes: Processes,
        instance: dg.DagsterInstance,
        *,
        reloads: bool = False,
    ) -> None:
        self.settings = settings
        self.console = console
        self.processes = processes
        self.instance = instance
        self.reloads = reloads
        self.ours = False

    def __enter__(self) -> Self:
        self._lock = (self.settings.state_dir / "dagster.lock").open("a")
        return self

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        try:
            if self.processes.children:
                names = ", ".join(child.name for child in self.processes.children)
                self.console.print(f"Stopping {names} ...")
                if not isinstance(failure, DatabaseUnavailableError):
                    cancel_begun(self.instance)
        finally:
            # Asked to end, the code server takes 2 s for it; without a run there is nothing that it would do in them.
            succeeded = failure is None
            self.processes.stop(_CODE_SERVER, is_idle=lambda: succeeded and not has_begun(self.instance))
            self._lock.close()

    def own(self) -> None:
        """Start the daemon as ours, after the end of the command that has it now, if any.

        Raises:
            PipelineError: a process ended by itself.
        """
        if not self._take():
            self.console.print(f"Waiting for the end of {self._others()} ...")
            while not self._take():
                time.sleep(LOOK_SECONDS)
        self._start()

    def mend(self) -> None:
        """End what a killed command left, its processes and its runs; a daemon that runs does so by itself."""
        if self._take():
            self._fail_lost_runs()

    def share(self) -> None:
        """Make sure that there is a daemon, ours or another's; to be called again and again while runs are waited for.

        Raises:
            PipelineError: a process of ours ended by itself.
        """
        if self.ours or not self._take():
            self.check()
        else:
            self._start()

    def check(self) -> None:
        """Raise PipelineError when a process of ours ended by itself, or the embedded database's disk is full."""
        self.processes.check()
        if self.settings.embedded_database and shutil.disk_usage(self.settings.state_dir).free < _LOG_SEGMENT:
            raise DatabaseFullError(
                f"The disk of {self.settings.state_dir} is full; what was committed is kept. Make room on it."
            )

    def wait_for_guests(self) -> None:
        """Wait, if the daemon is ours, for the end of the other commands that use it."""
        if self.ours and others(self.settings.state_dir):
            self.console.print(f"Waiting for {self._others()}, which uses the same Dagster daemon ...")
            while others(self.settings.state_dir):
                self.check()
                time.sleep(LOOK_SECONDS)

    @property
    def workspace(self) -> Path:
        """The file that leads to the code server, which loads the definitions once for daemon and UI."""
        return self.settings.state_dir / "workspace.yaml"

    def _take(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.ours = True
        for family in families(self.settings.state_dir):
            if not family.command_runs:
                end_trees(family.processes)  # of a command that was killed
                family.file.unlink(missing_ok=True)
        return True

    def _start(self) -> None:
        self._fail_lost_runs()
        socket = self.processes.private_folder() / "code.sock"
        kind = ["code-server", "start"] if self.reloads else ["api", "grpc", "--lazy-load-user-code"]
        server = [program("dagster"), *kind, "--socket", str(socket)]
        server += ["--module-name", LOCATION, "--location-name", LOCATION, "--use-python-environment-entry-point"]
        entry = {"location_name": LOCATION, "socket": str(socket), "host": "localhost"}
        self.workspace.write_text(json.dumps({"load_from": [{"grpc_server": entry}]}))  # JSON is YAML, too
        daemon = [program("dagster-daemon"), "run", "--workspace", str(self.workspace)]
        root, variables = self.settings.project_root, environment(self.settings)
        self.processes.start(_CODE_SERVER, server, cwd=root, environment=variables)
        self.processes.wait_for(socket)
        self.processes.start("dagster-daemon", daemon, cwd=root, environment=variables)

    def _fail_lost_runs(self) -> None:
        """End the runs of a command that was killed: they would keep the new ones waiting."""
        from market_data_pipeline.orchestration.run_liveness import fail_lost_runs
        from market_data_pipeline.store.connection import engine

        made = engine(self.settings.database_url, pool_size=1)
        try:
            fail_lost_runs(self.instance, made)
        finally:
            made.dispose()

    def _others(self) -> str:
        running = others(self.settings.state_dir)
        return ", ".join(f"market-data {family.name} (process {family.pid})" for family in running) or "another command"


def program(name: str) -> str:
    """Return the path of a program that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
