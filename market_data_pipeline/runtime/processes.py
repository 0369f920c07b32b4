"""The processes that a command starts: started, recorded, watched, and ended with everything they started in turn.

A file in `.market-data/running` records each command and its processes, so that `down`, or the next command, can end
what a killed one left behind. `up` and `daemon` decide which processes those are.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import requests  # here, not in a thread: its import changes the filters of warnings, which threads share

from market_data_pipeline.domain.errors import PipelineError, UsageError
from market_data_pipeline.process_identity import is_alive, process_started, start_time
from market_data_pipeline.runtime.log_files import private_logs
from market_data_pipeline.settings.project import LONGEST_SOCKET_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

# Dagster's daemon finishes its loops and its code server's threads within about three seconds of a SIGTERM.
STOP_SECONDS: Final = 15.0
_ORPHAN_SECONDS: Final = 5.0  # for what an ended process left behind, such as a run that waits for the vendor
START_SECONDS: Final = 60.0  # a webserver starts in 3 s here; a cold disk or a busy machine takes longer
# When a command starts them, nothing else brings them up: it waits longer, and ends when one of them ends.
_FIRST_START_SECONDS: Final = 300.0
_RECORDS: Final = "running"
_PRIVATE: Final = "tmp"  # folders of running commands, in the state folder
_PRIVATE_PREFIX: Final = "market-data-"  # of such a folder elsewhere
_SOCKET_NAME: Final = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # of multiprocessing, the longest in such a folder


@dataclass
class Child:
    """A started process, how to start it again, and the file that receives its output."""

    name: str
    process: psutil.Popen
    log: Path
    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]


@dataclass
class Processes:
    """The processes of one command, recorded so that another command can end them if this one is killed.

    Args:
        state: the project's state folder; the record goes to `running/`, the output of each process to `logs/`.
        name: of the command that starts them.
    """

    state: Path
    name: str
    children: list[Child] = field(default_factory=list)
    _folder: Path | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the record while the block runs."""
        self._record()
        try:
            yield
        finally:
            self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.state / _RECORDS / f"{self.name}-{os.getpid()}.json"

    def _record(self) -> None:
        """Write the record: the command, then its processes."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        pids = (os.getpid(), *(child.process.pid for child in self.children))
        entries = [{"pid": pid, "started": began} for pid in pids if (began := start_time(pid))]
        draft = self._file.with_suffix(".new")
        private = str(self._folder) if self._folder else None
        record = {"command": self.name, "folder": _identity(self.state), "processes": entries, "private": private}
        draft.write_text(json.dumps(record))
        draft.replace(self._file)

    def start(self, name: str, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> Child:
        """Start a process in a session of its own, so that the terminal's Ctrl-C reaches only this command."""
        log = private_logs(self.state) / f"{name}.log"
        # What it creates for itself, such as the sockets by which it starts processes, lies where no one cleans up.
        variables = {**environment, "TMPDIR": str(self.private_folder())}
        child = Child(name, _popen(command, cwd, variables, log), log, command, cwd, variables)
        self.children.append(child)
        self._record()
        return child

    def restart(self, child: Child) -> None:
        """Kill a process if it still runs, without what it started in turn, and start it again."""
        with suppress(psutil.NoSuchProcess):
            child.process.kill()
            child.process.wait(STOP_SECONDS)
        self.private_folder()
        child.process = _popen(child.command, child.cwd, child.environment, child.log)
        self._record()

    def private_folder(self) -> Path:
        """Return a folder for sockets, removed by `stop`, or by the command that ends what a killed one left.

        Only this user may enter it. It is in the state folder, where no one cleans up, unless that path is too long
        for a socket. If it was removed, it is made again.

        Raises:
            OSError: it cannot be made, or another user has made it.
        """
        if self._folder is None:
            here = self.state / _PRIVATE / f"{self.name}-{os.getpid()}"
            if len(os.fsencode(here)) + _SOCKET_NAME <= LONGEST_SOCKET_PATH:
                here.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folder = here
            else:
                self._folder = Path(tempfile.mkdtemp(prefix=_PRIVATE_PREFIX))
        if not self._folder.exists():  # a cleaner removed it
            self._folder.mkdir(mode=0o700, parents=True)
        if self._folder.stat().st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "It belongs to another user", str(self._folder))
        return self._folder

    def keep_private_folder(self) -> None:
        """Let everything in the private folder look new: whatever cleans folders of temporary files goes by age."""
        if self._folder is not None:
            for path in (self._folder, *self._folder.rglob("*")):
                with suppress(OSError):
                    os.utime(path, follow_symlinks=False)

    def wait_for(self, path: Path) -> None:
        """Wait until a process has created `path`.

        Raises:
            PipelineError: a process ended, or five minutes have passed.
        """
        deadline = time.monotonic() + _FIRST_START_SECONDS
        while not path.exists():
            self.check()
            if time.monotonic() > deadline:
                raise PipelineError(f"{self.children[-1].name} was not ready within {_FIRST_START_SECONDS:.0f} s.")
            time.sleep(0.05)

    def check(self, kept: Collection[str] = ()) -> None:
        """Raise when a process has ended on its own, except those called `kept`, which are restarted.

        Raises:
            PipelineError: names the process, its exit code, the last line it wrote and its log file.
        """
        for child in self.children:
            code = child.process.poll()
            if code is not None and child.name not in kept:
                raise PipelineError(
                    f"{child.name} ended with code {code}: {_last_line(child.log)} The full log is {child.log}."
                )

    def stop(self, last: str = "", *, is_idle: Callable[[], bool] = lambda: False) -> None:
        """End all processes and everything they started.

        Args:
            last: the process to end after the others.
            is_idle: called once the others have ended; True when `last` has nothing to finish and can be killed.
        """
        final = [child.process for child in self.children if child.name == last]
        end_trees(child.process for child in self.children if child.name != last)
        if is_idle():
            _kill_trees(final)
        end_trees(final)
        self._forget()

    def kill(self) -> None:
        """Kill all processes and everything they started."""
        _kill_trees(child.process for child in self.children)
        self._forget()

    def _forget(self) -> None:
        self.children.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _popen(command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> psutil.Popen:
    with log.open("ab") as output:
        return psutil.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@dataclass(frozen=True)
class Command:
    """A recorded command of this project, and which of its processes still run, itself included."""

    file: Path
    name: str
    pid: int
    processes: list[psutil.Process]
    private: Path | None

    @property
    def is_running(self) -> bool:
        """False when the command was killed and left processes behind."""
        return any(process.pid == self.pid for process in self.processes)

    def end(self) -> None:
        """End what is left of a killed command: its processes, its sockets and its record."""
        end_trees(self.processes)
        if self.private is not None and (self.private.parent.name == _PRIVATE or _PRIVATE_PREFIX in self.private.name):
            shutil.rmtree(self.private, ignore_errors=True)
        self.file.unlink(missing_ok=True)


def commands(state: Path, name: str | None = None) -> list[Command]:
    """Return the recorded commands, killed ones included; only those called `name` if given.

    A file that is not a record, or that was copied here with another project's folder, is ignored.
    """
    found = []
    for file in sorted((state / _RECORDS).glob("*.json")):
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
            record = json.loads(file.read_text())
            if record["folder"] == _identity(state) and name in (None, record["command"]):
                pids = {entry["pid"]: entry["started"] for entry in record["processes"]}
                running = [process for pid, began in pids.items() if (process := process_started(pid, began))]
                private = Path(record["private"]) if record.get("private") else None
                found.append(Command(file, str(record["command"]), next(iter(pids)), running, private))
    return found


def other_commands(state: Path) -> list[Command]:
    """Return the other commands that run in this project now."""
    return [command for command in commands(state) if command.is_running and command.pid != os.getpid()]


def _identity(folder: Path) -> list[int]:
    """Return what stays the same when a folder is renamed and differs when it is copied."""
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def end_trees(roots: Iterable[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """End processes and their descendants: SIGTERM to the roots, after `seconds` to all that is left, then SIGKILL."""
    parents: dict[int, psutil.Process] = {}
    descendants: dict[int, psutil.Process] = {}
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            descendants |= {process.pid: process for process in root.children(recursive=True)}
            parents[root.pid] = root
    left = _send("terminate", parents.values(), seconds)
    orphans = [process for pid, process in descendants.items() if pid not in parents]
    _send("kill", _send("terminate", [*orphans, *left], _ORPHAN_SECONDS))


def _kill_trees(roots: Iterable[psutil.Process]) -> None:
    """Kill processes and their descendants."""
    found: list[psutil.Process] = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    _send("kill", found)


def _send(signal: str, processes: Iterable[psutil.Process], seconds: float = STOP_SECONDS) -> list[psutil.Process]:
    """Send a signal to processes; return those that still run after `seconds`."""
    sent = list(processes)
    for process in sent:
        with suppress(psutil.NoSuchProcess):
            getattr(process, signal)()
    deadline = time.monotonic() + seconds
    while (left := [process for process in sent if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    psutil.wait_procs([process for process in sent if process not in left], timeout=0)  # reaps our own
    return left


def wait_for_answer(url: str, check: Callable[[], None]) -> None:
    """Wait until a URL of this machine answers; `check` is called between attempts and may raise.

    Raises:
        PipelineError: it does not answer within five minutes.
    """
    deadline = time.monotonic() + _FIRST_START_SECONDS
    while time.monotonic() < deadline:
        check()
        if answers(url):
            return
        time.sleep(0.2)
    raise PipelineError(f"{url} did not answer within {_FIRST_START_SECONDS:.0f} s; its log is in .market-data/logs.")


def answers(url: str) -> bool:
    """Return whether a URL of this machine answers within seconds, with whatever status."""
    session = requests.Session()
    session.trust_env = False  # no proxy leads to this machine
    with session, suppress(requests.RequestException):
        return session.get(url, timeout=5).status_code > 0
    return False


def check_port(host: str, port: int, what: str, variable: str) -> None:
    """Raise when a port of this machine's address `host` cannot be listened on.

    Raises:
        UsageError: names the port, what needs it, and the variable that chooses another; or the address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(f"{host} for {what} is not an address of this machine.") from None
            raise UsageError(
                f"Port {port} for {what} is taken by another program; "
                f"free it, or choose another with {variable}={port + 1}."
            ) from None


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it wrote nothing."
