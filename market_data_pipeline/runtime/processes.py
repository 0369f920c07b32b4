"""The processes that one command starts, and ends with everything they started in turn.

Add here: starting, watching and ending. Keep out: which processes there are (up, daemon).
"""

from __future__ import annotations

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

from market_data_pipeline.domain.errors import PipelineError, UsageError
from market_data_pipeline.runtime.process_records import record_file, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

# Dagster's daemon finishes its loops and its code server's threads within about three seconds of a SIGTERM.
STOP_SECONDS: Final = 15.0
_ORPHAN_SECONDS: Final = 5.0  # for what a root left behind, such as a run that waits for the vendor
START_SECONDS: Final = 60.0  # a webserver starts in 3 s here; a cold disk and a busy machine take their time


@dataclass
class Child:
    """A started process and where its output goes."""

    name: str
    process: psutil.Popen
    log: Path


@dataclass
class Processes:
    """Started processes, recorded (records) so that another command can end them if this one cannot.

    Args:
        state: the project's state folder; the record goes to `running/`, the output of each process to `logs/`.
        name: of the command that starts them.
    """

    state: Path
    name: str
    children: list[Child] = field(default_factory=list)
    _folder: Path | None = None

    @property
    def file(self) -> Path:
        """The record; it exists for as long as the command runs."""
        return record_file(self.state, self.name)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the record for the length of the block."""
        self.record()
        try:
            yield
        finally:
            self.file.unlink(missing_ok=True)

    def record(self) -> None:
        """Write down this command and what it has started."""
        write_record(self.file, self.state, self.name, [psutil.Process(), *(child.process for child in self.children)])

    def start(self, name: str, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> Child:
        """Start a process in a session of its own, so that the terminal's Ctrl-C reaches only this command."""
        log = self.state / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = psutil.Popen(
                list(command),
                cwd=cwd,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        self.record()
        return child

    def private_folder(self) -> Path:
        """Return a folder that only this user may enter, for sockets: its path is short enough for the kernel.

        It goes with the processes.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="market-data-"))
        return self._folder

    def wait_for(self, path: Path) -> None:
        """Wait until a process has made `path`.

        Raises:
            PipelineError: a process ended first, or it takes longer than `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            self.check()
            if time.monotonic() > deadline:
                raise PipelineError(f"{self.children[-1].name} was not ready within {START_SECONDS:.0f} s.")
            time.sleep(0.05)

    def check(self) -> None:
        """Raise when a process ended by itself.

        Raises:
            PipelineError: names the process, its exit code, the last line it wrote and the file with the rest.
        """
        for child in self.children:
            code = child.process.poll()
            if code is not None:
                raise PipelineError(
                    f"{child.name} ended with code {code}: {_last_line(child.log)} The rest is in {child.log}."
                )

    def stop(self, last: str = "", *, is_idle: Callable[[], bool] = lambda: False) -> None:
        """End all processes and everything they started.

        Args:
            last: the one that ends after the others.
            is_idle: whether it can then be killed, because there is nothing that it could still bring to an end.
        """
        final = [child.process for child in self.children if child.name == last]
        end_trees(child.process for child in self.children if child.name != last)
        if is_idle():
            kill_trees(final)
        end_trees(final)
        self.children.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def end_trees(roots: Iterable[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """End processes and their descendants: the roots are asked first, what is left after `seconds` is forced."""
    family: dict[int, psutil.Process] = {}
    asked = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            family |= {process.pid: process for process in root.children(recursive=True)}
            family[root.pid] = root
            asked.append(root)
    for root in asked:
        with suppress(psutil.NoSuchProcess):
            root.terminate()
    _, left = psutil.wait_procs(asked, timeout=seconds)
    orphans = [process for process in family.values() if process not in asked]
    for process in [*orphans, *left]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs([*orphans, *left], timeout=_ORPHAN_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def kill_trees(roots: Iterable[psutil.Process]) -> None:
    """End processes and their descendants at once, without asking them."""
    family: list[psutil.Process] = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            family += [root, *root.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=STOP_SECONDS)


def wait_for_page(url: str, check: Callable[[], None]) -> None:
    """Wait until a page of this machine answers; `check` is called between two tries and may raise.

    Raises:
        PipelineError: it does not answer within `START_SECONDS`.
    """
    import requests

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        check()
        with suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.2)
    raise PipelineError(f"{url} did not answer within {START_SECONDS:.0f} s; its log is in .market-data/logs.")


def check_port(port: int, what: str, variable: str) -> None:
    """Raise when something already listens on a port of this machine.

    Raises:
        UsageError: names the port, what it is wanted for, and the variable that chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UsageError(
                f"Port {port}, wanted for {what}, is taken by another program; "
                f"free it, or choose another with {variable}={port + 1}."
            ) from None


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it wrote nothing."
