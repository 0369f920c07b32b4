"""How `market-data up` notices a second Dagster daemon on its storage, which evaluates and starts everything twice.

A daemon with this project's `dagster.yaml` refuses to be the second one (orchestration.run_queue). This finds those
with another instance file, of another deployment for example: by the lock, if it is not held by our daemon, and by
heartbeats, which tell two daemons apart, but not where they run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psutil

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone
from market_data_pipeline.orchestration.dagster_internals import DAEMON_PROGRAMS
from market_data_pipeline.orchestration.serving_daemon import serving_daemon, this_machines
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.outage import Outage
from market_data_pipeline.store.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.orchestration.dagster_internals import StoredDagsterState
    from market_data_pipeline.settings import Settings

_LOOK_EVERY: Final = 15.0  # seconds; daemons send heartbeats every 30 s
_LOOKS: Final = 5  # over which heartbeats are compared: each daemon has sent two meanwhile

_ADDRESSES: Final = """
select distinct host(client_addr) from pg_stat_activity
where datname = current_database() and client_addr is not null and client_addr <> inet_client_addr()
order by 1
"""


class DaemonWatch:
    """Looks periodically at who serves Dagster's storage, tells health of a second daemon, and alerts once.

    Args:
        settings: of the project.
        dagster: Dagster's state, where health reads what is found.
        ours: returns the process of our own daemon.
        say: prints a line on the screen.
        every: seconds between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        dagster: StoredDagsterState,
        ours: Callable[[], int],
        say: Callable[[str], None],
        every: float = _LOOK_EVERY,
    ) -> None:
        self._settings = settings
        self._dagster = dagster
        self._ours = ours
        self._say = say
        self._every = every
        self._looked_at = -math.inf
        self._pid = 0
        self._beats: dict[str, tuple[str, float]] = {}
        self._senders: deque[set[str]] = deque(maxlen=_LOOKS)
        self._outage: Outage | None = None

    def check(self) -> None:
        """Look, if the last look was long enough ago."""
        if time.monotonic() - self._looked_at < self._every:
            return
        self._looked_at = time.monotonic()
        with suppress(DatabaseUnavailableError, DatabaseBusyError):
            self._judge(self._found())

    def _found(self) -> str:
        """Return which other daemon serves the storage; empty for none."""
        pid, beats = self._ours(), self._dagster.beats()
        if pid != self._pid:  # ours was restarted; heartbeats of the one before are still there
            self._pid, self._beats = pid, {}
            self._senders.clear()
        self._senders.append(
            {sender for kind, (sender, at) in beats.items() if at > self._beats.get(kind, ("", at))[1]}
        )
        self._beats = beats
        holder = serving_daemon(self._settings.dagster_postgres_url)
        if holder is not None and holder != this_machines(pid):
            return str(holder)
        return self._suspects(pid) if len(set().union(*self._senders)) > 1 else ""

    def _suspects(self, pid: int) -> str:
        """Return which daemon it may be that sends heartbeats beside ours."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()[:4]
                named = process.environ().get("DAGSTER_POSTGRES_URL", self._settings.dagster_postgres_url)
                if (
                    "run" in words
                    and any(program in word for program in DAEMON_PROGRAMS for word in words)
                    and pid not in (process.pid, process.ppid())
                    and named.partition("://")[2] == self._settings.dagster_postgres_url.partition("://")[2]
                ):
                    found.append(f"process {process.pid} on this machine, in {process.cwd()}")
        if not found:
            with open_connection(self._settings.dagster_postgres_url, autocommit=True) as connection:
                found = [f"on {address}" for (address,) in connection.execute(_ADDRESSES)]
        return f"probably {' or '.join(found)}" if found else "which runs elsewhere"

    def _judge(self, other: str) -> None:
        addresses, link = self._settings.alert_urls, f"{self._settings.ui_url}/deployment/daemons"
        if other:
            self._dagster.note_second_daemon(other)
            if self._outage is None:
                self._outage = Outage()
                self._say(f"Another Dagster daemon serves this project's storage: {other}")
            detail = (
                f"It is {other}. Schedules and sensors are evaluated twice, and runs may start twice: end it "
                "(`dagster dev`, `dg dev`, `dagster-daemon run`, or `market-data up` in another folder), or name "
                "another database in DAGSTER_POSTGRES_URL."
            )
            self._outage.tell(
                addresses, Alert("A second Dagster daemon serves this project's storage", (detail,), link=link)
            )
        elif self._outage is not None:
            self._dagster.note_second_daemon("")
            away = span(max(time.monotonic() - self._outage.began, 1.0))
            over = Alert(
                f"One Dagster daemon serves this project's storage again after {away}", tone=Tone.RECOVERY, link=link
            )
            if not self._outage.alerted or self._outage.send(addresses, over):
                self._say(over.title)
                self._outage = None
