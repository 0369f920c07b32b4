"""Which processes get the processors first: those that answer a user, then those that work in bulk.

A refresh of all series keeps two processors busy as long as it runs, and an answer of the read API waits for a
processor several times on its way. So a refresh gives way to answers; while nothing else runs, it gets everything.

Linux divides the processors twice (sched(7)): first among process sessions, where it groups them ("autogroup"), then
among the processes of each session by their nice values. So both are set. Where the system refuses, as for another
user's process, or lacks the feature, nothing happens. Which processes give way is up to runtime and ingest.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# A third of a share: each step is a factor of about 1.25. It puts bulk work behind a process that wakes up, and even on
# a machine that is busy for hours a refresh takes at most three times as long.
BULK: Final = 5


def give_way(pid: int | None = None) -> None:
    """Put a single-threaded process (this one by default) and all that it starts later behind others of its session."""
    number = os.getpid() if pid is None else pid
    with suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, number) < BULK:  # only root can undo it
            os.setpriority(os.PRIO_PROCESS, number, BULK)


def runs_give_way() -> None:
    """Put this process and all that it forks behind others, in a process session of their own.

    Under a terminal they stay in its session, because Ctrl-C is meant for the runs too and reaches only that session.
    """
    give_way()
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return
    with suppress(OSError):
        os.setsid()
        session_gives_way(os.getpid())


def session_gives_way(leader: int, attempts: int = 5) -> None:
    """Put the process session that `leader` leads behind other sessions.

    Linux lets those who are not root do so ten times a second, all of them together, and refuses the others.
    """
    for _ in range(attempts):
        with suppress(OSError):
            try:
                Path(f"/proc/{leader}/autogroup").write_text(str(BULK), encoding="ascii")
            except BlockingIOError:
                time.sleep(0.1)
                continue
        return


def server_gives_way(pid: int) -> None:
    """Put a PostgreSQL server process behind others; do nothing if `pid` is another program, as across containers."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: "):
            give_way(pid)
            session_gives_way(pid, attempts=1)  # each process of the server leads its own; a connection does not wait
