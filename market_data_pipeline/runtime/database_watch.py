"""How `market-data up` notices that the database is lost, and restarts the embedded server.

When Dagster's storage is on the same server, no sensor can run, so the alert of the loss is sent from here. The alert
of the return is sent by the staleness sensor if the server was restarted (`orchestration.alerts.database_loss`), and
from here if only the connection was lost.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import DatabaseBusyError, DatabaseUnavailableError, PipelineError
from market_data_pipeline.orchestration.alerts.database_loss import lost_alert, returned_alert
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.settings import Settings

# A check is a connection, 5 ms. Only the second failure in a row is reported, so a restart within seconds is not.
CHECK_SECONDS: Final = 15.0
_MISSED: Final = 2


class DatabaseWatch:
    """Checks the database periodically, reports when it is lost, and restarts it if it is the embedded server.

    Args:
        settings: of the project.
        say: prints a line on the screen.
        every: seconds between two checks.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None], every: float = CHECK_SECONDS) -> None:
        from market_data_pipeline.store.connection import server_of

        self._settings = settings
        self._say = say
        self._every = every
        self._alone = server_of(settings.database_url) == server_of(settings.dagster_postgres_url)
        self._checked = time.monotonic()
        self._missed = 0
        self._lost = 0.0  # when the first of them failed
        self._outage = Outage()
        self._started: object = None

    def check(self) -> None:
        """Check the database, if the last check was long enough ago."""
        from market_data_pipeline.store.connection import open_connection

        if time.monotonic() - self._checked < self._every:
            return
        try:
            with open_connection(self._settings.database_url) as connection:
                [started] = connection.execute("select pg_postmaster_start_time()").fetchone() or [None]
        except DatabaseBusyError as error:  # it works, which is what is watched here
            self._say(f"The database is busy: {error}")
        except DatabaseUnavailableError as error:
            self._miss(error)
        else:
            self._find(started)
        self._checked = time.monotonic()

    def _miss(self, error: DatabaseUnavailableError) -> None:
        self._missed += 1
        if self._missed == 1:
            self._lost = time.monotonic()
        if self._missed == _MISSED:
            self._say(f"The database cannot be reached: {error}")
        if self._missed >= _MISSED and self._alone:
            self._outage.tell(self._settings.alert_urls, lost_alert(self._settings, error))
        if self._missed >= _MISSED and self._settings.embedded_database:
            self._start_again(error)

    def _start_again(self, error: DatabaseUnavailableError) -> None:
        from market_data_pipeline.runtime.postgres import EmbeddedPostgres

        server = EmbeddedPostgres.of(self._settings)
        try:
            if "shutting down" in str(error):  # after a SIGTERM it waits for clients to leave, and ours do not
                server.stop()
            server.ensure_running()
        except PipelineError as error:  # the next check tries again
            self._say(f"PostgreSQL could not be restarted: {error}")

    def _find(self, started: object) -> None:
        if self._missed >= _MISSED:
            away = time.monotonic() - self._lost
            self._say(f"The database answers again after {span(away)}.")
            if self._outage.alerted and started == self._started:
                self._outage.send(self._settings.alert_urls, returned_alert(self._settings, timedelta(seconds=away)))
        self._missed, self._outage, self._started = 0, Outage(), started
