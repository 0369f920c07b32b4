"""This project's Dagster daemon: at most one, however many commands run side by side.

Two daemons on one storage would both take runs from the queue. So the command that starts the daemon holds a lock for
that storage for as long as it runs; other commands use that daemon, and start their own when it is gone. A daemon that
others started, with Dagster's own commands or on another machine, is known by the lock in the storage that it holds
(orchestration.run_queue), or, where its instance file is not this project's, by its heartbeats.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from market_data_pipeline.domain.errors import DatabaseFullError, DatabaseUnavailableError, UsageError
from market_data_pipeline.orchestration.dagster_internals import (
    HEARTBEAT_TOLERANCE_SECONDS,
    StoredDagsterState,
    code_server_answers,
)
from market_data_pipeline.orchestration.serving_daemon import second_daemon, serving_daemon
from market_data_pipeline.runtime.load import cancel_begun, end_runs, forget_heartbeats, has_begun
from market_data_pipeline.runtime.processes import Processes, commands, other_commands
from market_data_pipeline.runtime.supervision import Service, Supervisor
from market_data_pipeline.settings import process_environment
from market_data_pipeline.settings.project import LOCATION, is_local

if TYPE_CHECKING:
    import dagster as dg
    import psutil
    from rich.console import Console

    from market_data_pipeline.settings import Settings

_CODE_SERVER: Final = "dagster-code-server"
_DAEMON: Final = "dagster-daemon"
_NEXT_HEARTBEAT_SECONDS: Final = 45.0  # Dagster's daemons send one every 30 s
_MOST_RESTARTS: Final = 3  # of a process during a load; why it dies again and again, a person must see
CHECK_SECONDS: Final = 0.5  # between two checks of the processes
# The embedded PostgreSQL needs room for one more WAL segment. Without it Dagster cannot even store that a run failed,
# and a command that waits for the run would wait forever.
_LOG_SEGMENT: Final = 16 << 20


class Daemon:
    """The daemon as one command sees it: started by this command, or shared with the one that started it.

    At the end of the block, a daemon of ours is stopped and the runs that it has begun are cancelled.

    Args:
        settings: of the project.
        console: prints what the command waits for.
        processes: of this command.
        instance: Dagster's.
        stays: whether the command goes on for good, as `up` does, and alerts about what it had to restart; one that
            ends gives up after some restarts.
    """

    def __init__(
        self,
        settings: Settings,
        console: Console,
        processes: Processes,
        instance: dg.DagsterInstance,
        *,
        stays: bool = False,
    ) -> None:
        self.settings = settings
        self.console = console
        self.processes = processes
        self.instance = instance
        self.supervisor = _supervisor(settings, processes, console, stays=stays)
        self.ours = False
        self._said = ""
        self._ended_ours = False  # whether the last daemon was of a command of this project that was killed
        self._first_heartbeat: float | None = None
        self._heartbeat_by = 0.0
        self.state = StoredDagsterState(settings.dagster_home, settings.dagster_postgres_url)

    def __enter__(self) -> Self:
        self._lock = daemon_lock(self.settings).open("a")
        return self

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        had_children, lost = bool(self.processes.children), isinstance(failure, DatabaseUnavailableError)
        try:
            if had_children:
                names = ", ".join(child.name for child in self.processes.children)
                self.console.print(f"Stopping {names} ...")
                if not lost:
                    cancel_begun(self.instance)
                    end_runs(self.instance)
        finally:
            if lost:
                # Nothing more can be stored, and on SIGTERM each would first try for its whole time.
                self.processes.kill()
            else:
                # The code server takes 2 s to end on SIGTERM; without a run it has nothing to finish and is killed.
                succeeded = failure is None
                self.processes.stop(_CODE_SERVER, is_idle=lambda: succeeded and not has_begun(self.instance))
                if had_children:
                    forget_heartbeats(self.instance)
            self.state.close()
            self._lock.close()

    def own(self) -> None:
        """Start the daemon as ours, once the command that runs it now, if any, has ended.

        Raises:
            UsageError: a daemon that no command of this project runs serves this storage.
            PipelineError: a process ended on its own.
        """
        if not self._take():
            self.console.print(f"Waiting for {self._others()} to end ...")
            while not self._take():
                time.sleep(CHECK_SECONDS)
        while (served := self._served_by_others()) is None:
            time.sleep(CHECK_SECONDS)
        if served:
            raise UsageError(second_daemon(served))
        self._start()

    def clean_up(self) -> None:
        """End the processes and runs that a killed command left behind, unless a running daemon already does so."""
        if self._take() and self._newest_heartbeat() < time.time() - HEARTBEAT_TOLERANCE_SECONDS:
            self._fail_lost_runs()

    def share(self) -> None:
        """Make sure that there is a daemon, ours or another's; call this repeatedly while waiting for runs.

        Raises:
            PipelineError: a process of ours ended on its own.
        """
        if self.processes.children or not self._take():
            if not self.ours:
                self._say_once(f"Daemon    using the one of {self._others()}")
            self.check()
        elif (served := self._served_by_others()) == "":
            self._start()
        elif served:
            self._say_once(f"Daemon    using another one that serves this Dagster storage: {served}")

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.console.print(text)

    def _served_by_others(self) -> str | None:
        """Return which other daemon serves this storage, empty for none; None while that is not known yet.

        The heartbeats of a daemon that has ended look alive for a while: only a new one shows that it is. None is
        waited for when the daemon would have to be a process of this machine and no process can be it.
        """
        if self._ended_ours:  # its lock may be seen for a moment yet; a daemon that starts waits for it
            return ""
        if found := serving_daemon(self.settings.dagster_postgres_url):
            return str(found)
        newest = self._newest_heartbeat()
        if newest < time.time() - HEARTBEAT_TOLERANCE_SECONDS:
            return ""
        if not _daemon_can_live(self.settings):
            return ""
        if self._first_heartbeat is None:
            self._first_heartbeat = newest
            self._heartbeat_by = time.monotonic() + _NEXT_HEARTBEAT_SECONDS
            self._say_once("Checking whether another Dagster daemon serves this storage ...")
        if newest > self._first_heartbeat:
            return "known by its heartbeats"
        return None if time.monotonic() < self._heartbeat_by else ""

    def _newest_heartbeat(self) -> float:
        return max((beat.timestamp for beat in self.instance.get_daemon_heartbeats().values()), default=0.0)

    def check(self) -> None:
        """Look after the processes of ours.

        Raises:
            PipelineError: one ended again and again, or the embedded database's disk is full.
        """
        self.supervisor.check()
        if self.settings.embedded_database and shutil.disk_usage(self.settings.state_dir).free < _LOG_SEGMENT:
            raise DatabaseFullError(
                f"The disk of {self.settings.state_dir} is full; what was committed is kept. Free some space on it."
            )

    def wait_for_guests(self) -> None:
        """If the daemon is ours, wait until the other commands that use it have ended."""
        if self.processes.children and other_commands(self.settings.state_dir):
            self.console.print(f"Waiting for {self._others()}, which uses the same Dagster daemon ...")
            while other_commands(self.settings.state_dir):
                self.check()
                time.sleep(CHECK_SECONDS)

    def write_workspace(self) -> Path:
        """Write the file that names the code server, which loads the definitions once for daemon and UI."""
        entry = {"location_name": LOCATION, "socket": str(self._socket), "host": "localhost"}
        file = self.processes.private_folder() / "workspace.yaml"
        file.write_text(json.dumps({"load_from": [{"grpc_server": entry}]}))  # JSON is also YAML
        return file

    @property
    def _socket(self) -> Path:
        return self.processes.private_folder() / "code.sock"

    def _take(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.ours = True
        for command in commands(self.settings.state_dir):
            if not command.is_running:
                command.end()  # it was killed
                self._ended_ours = True
        return True

    def _start(self) -> None:
        self._fail_lost_runs()
        socket = self._socket
        # Not `code-server start`: it hides this process behind another, which goes on without it.
        server = [program("dagster"), "api", "grpc", "--lazy-load-user-code", "--socket", str(socket)]
        server += ["--module-name", LOCATION, "--location-name", LOCATION, "--use-python-environment-entry-point"]
        daemon = [program("dagster-daemon"), "run", "--workspace", str(self.write_workspace())]
        root, variables = self.settings.project_root, process_environment(self.settings)
        code_server = self.processes.start(_CODE_SERVER, server, cwd=root, environment=variables)
        self.processes.wait_for(socket)
        started = self.processes.start(_DAEMON, daemon, cwd=root, environment=variables)
        nothing_runs = "No schedule or sensor is evaluated, and no run starts"
        no_socket = partial(socket.unlink, missing_ok=True)
        self.supervisor.keep(Service(code_server, nothing_runs, lambda: code_server_answers(socket), no_socket))
        self.supervisor.keep(Service(started, nothing_runs, self._beats, self.write_workspace))

    def restart(self, reason: str) -> None:
        """Restart what evaluates schedules and sensors."""
        self.supervisor.restart(_CODE_SERVER, reason)
        self.supervisor.restart(_DAEMON, reason)

    def pid(self) -> int:
        """Return the process of our daemon; 0 when it is another command's."""
        return next((child.process.pid for child in self.processes.children if child.name == _DAEMON), 0)

    def _beats(self) -> bool:
        """Return whether the daemon's process has sent a heartbeat lately, as far as that can be known."""
        try:
            return any(daemon.alive for daemon in self.state.daemons())
        except DatabaseUnavailableError:
            return True

    def _fail_lost_runs(self) -> None:
        """Mark the runs of a killed command as failed; otherwise new runs would wait for them."""
        from market_data_pipeline.orchestration.run_liveness import fail_lost_runs

        fail_lost_runs(self.instance, starting=True)

    def _others(self) -> str:
        running = other_commands(self.settings.state_dir)
        return ", ".join(f"market-data {other.name} (process {other.pid})" for other in running) or "another command"


def _supervisor(settings: Settings, processes: Processes, console: Console, *, stays: bool) -> Supervisor:
    """Return what keeps the command's processes running, and continues those of the database and the sandbox.

    A command that does not stay gives up after some restarts, and says on the screen alone what it did.
    """
    from market_data_pipeline.runtime.postgres import EmbeddedPostgres
    from market_data_pipeline.runtime.sandbox import sandbox_process

    def others() -> list[psutil.Process]:
        server = EmbeddedPostgres.of(settings).process() if settings.embedded_database else None
        return [process for process in (server, sandbox_process(settings)) if process is not None]

    alerting = settings if stays else settings.model_copy(update={"alert_urls": []})
    most = None if stays else _MOST_RESTARTS
    return Supervisor(alerting, processes, lambda text: console.print(text, markup=False), others, most)


def _daemon_can_live(settings: Settings) -> bool:
    """Return whether a process may be the Dagster daemon that has sent the heartbeats in this storage.

    Who uses the embedded server is a process of its machine, whose command line has the words Dagster and daemon, also
    when `dagster dev` has started it. The daemon of another server, or of one in another container, may be anywhere.
    """
    if not is_local(settings.dagster_postgres_url, settings.state_dir):
        return True
    from market_data_pipeline.runtime.postgres import EmbeddedPostgres

    return EmbeddedPostgres.of(settings).process() is None or any(
        _may_serve(process, settings.dagster_postgres_url) for process in psutil.process_iter(["cmdline", "environ"])
    )


def _may_serve(process: psutil.Process, storage: str) -> bool:
    """Return whether a process looks like a Dagster daemon, unless its environment names another storage."""
    words: list[str] = process.info["cmdline"] or []
    environment: dict[str, str] = process.info["environ"] or {}
    named = any("dagster" in word and "daemon" in word for word in words[:4])
    return named and environment.get("DAGSTER_POSTGRES_URL", storage) == storage


def daemon_lock(settings: Settings) -> Path:
    """Return the file that the command which runs the daemon of this Dagster storage keeps locked."""
    storage = hashlib.blake2b(settings.dagster_postgres_url.encode(), digest_size=6).hexdigest()
    return settings.state_dir / f"dagster-{storage}.lock"


def program(name: str) -> str:
    """Return the path of a program installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
