"""Who has the processors when there are too few: whoever waits for an answer comes before what is done in bulk.

A refresh of all series keeps two processors busy for as long as it takes, and an answer of the read API waits for its
turn several times on its way. So a refresh gives way: to answers, not to idleness, since alone it gets everything all
the same.

Linux shares the processors out twice (sched(7)): among sessions first, where it groups them ("autogroup"), and then
among the processes of each by their nice values. So both have to be told. Where the system does not let us, as with
another user's process, or knows no such thing, nothing happens.

Add here: how a process gives way. Keep out: which ones do.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

# A third of a share: each step is about 1.25 times. Enough to stand behind whoever wakes up, and on a machine that
# others keep busy for hours a refresh still takes no more than three times as long.
BULK: Final = 5


def give_way(pid: int | None = None) -> None:
    """Put a process of one thread, this one by default, and what it starts from now on behind its session's others."""
    number = os.getpid() if pid is None else pid
    with suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, number) < BULK:  # only root may take it back
            os.setpriority(os.PRIO_PROCESS, number, BULK)


def runs_give_way() -> None:
    """Put this process and all that it forks behind others, in a session of their own, unless a terminal has this one.

    There Ctrl-C is for the runs as well, and it reaches only its own session.
    """
    give_way()
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return
    with suppress(OSError):
        os.setsid()
        session_gives_way(os.getpid())


def session_gives_way(leader: int) -> None:
    """Put the session of a process that leads one behind other sessions."""
    with suppress(OSError):
        Path(f"/proc/{leader}/autogroup").write_text(str(BULK), encoding="ascii")


def server_gives_way(pid: int) -> None:
    """Put the process of a PostgreSQL server behind its others, where `pid` is one: in a container numbers differ."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: "):
            give_way(pid)
            session_gives_way(pid)  # the server makes each of its processes the leader of one
