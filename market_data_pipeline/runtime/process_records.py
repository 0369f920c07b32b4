"""Which commands run in this project, and what they have started: a file for each in `.market-data/running`.

A file may outlive its command, when that is killed. Add here: what tells a record that holds from one that does not.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FOLDER: Final = "running"


def record_file(state: Path, command: str) -> Path:
    """Return where this process records itself, being the command called `command`."""
    return state / _FOLDER / f"{command}-{os.getpid()}.json"


def write_record(file: Path, state: Path, command: str, processes: Iterable[psutil.Process]) -> None:
    """Write which processes belong together, the command first; a start time beside each id tells a reused id apart."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    entries = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            entries.append({"pid": process.pid, "started": process.create_time()})
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps({"command": command, "folder": _identity(state), "processes": entries}))
    scratch.replace(file)


@dataclass(frozen=True)
class Family:
    """A command of this project and what it started, as far as they still run; `pid` is the command's."""

    file: Path
    name: str
    pid: int
    processes: list[psutil.Process]

    @property
    def command_runs(self) -> bool:
        """False when the command was killed and has left processes behind."""
        return any(process.pid == self.pid for process in self.processes)


def families(state: Path, name: str | None = None) -> list[Family]:
    """Return the recorded commands, only those called `name` if given, killed ones included.

    A file that is not a record, or was written for another folder and came here in a copy of it, names nobody.
    """
    found = []
    for file in sorted((state / _FOLDER).glob("*.json")):
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
            record = json.loads(file.read_text())
            if record["folder"] == _identity(state) and name in (None, record["command"]):
                pids = {entry["pid"]: entry["started"] for entry in record["processes"]}
                running = [process for pid, began in pids.items() if (process := _running(pid, began))]
                found.append(Family(file, str(record["command"]), next(iter(pids)), running))
    return found


def others(state: Path) -> list[Family]:
    """Return the other commands that run in this project now."""
    return [family for family in families(state) if family.command_runs and family.pid != os.getpid()]


def _running(pid: int, began: float) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - began) < 1.0 and is_alive(process):
            return process
    return None


def _identity(folder: Path) -> list[int]:
    """Return what stays the same when a folder is renamed, and does not when it is copied."""
    found = folder.stat()
    return [found.st_dev, found.st_ino]


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; one that has ended and waits to be collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
