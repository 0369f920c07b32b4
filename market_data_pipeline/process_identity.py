"""Which process is meant: a pid is used again by another process, so it is remembered with when the process began."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def start_time(pid: int) -> str | None:
    """Return when a process began, in clock ticks since boot with the boot's id; None when it has ended.

    Together with the pid it identifies one process, even after the pid was reused or the machine's clock was set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # state is field 3, the start time field 22 (proc_pid_stat(5))
    return None if after_name[0] in {"Z", "X"} else f"{boot}:{after_name[19]}"


def process_started(pid: int, began: str) -> psutil.Process | None:
    """Return the process with this id if it began at this `start_time` and still runs."""
    import psutil  # here, because readers remember processes without having it

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid) if start_time(pid) == began else None
    return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie, which an orphan's new parent may never reap, does not."""
    return start_time(process.pid) is not None and process.is_running()


def pid_namespace() -> str:
    """Return what two processes have in common if they see the same processes under the same ids.

    A container has its own ids, also beside others on one machine; after a reboot all ids mean other processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
