"""Noticing that the database is lost where Dagster cannot: on the server that is away are its own tables, too.

`market-data up` looks by itself then. That the server is back is told by the staleness sensor if it had to be started
again (orchestration.absence), and from here if only the way to it was lost. Keep out: looking while Dagster's storage
is elsewhere, which its sensors do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, deliver
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Callable

    from market_data_pipeline.settings import Settings

# A look is a connection, 5 ms. Two that fail in a row are told: a server that is started again within seconds is not.
LOOK_SECONDS: Final = 15.0
_MISSED: Final = 2

_WHAT_TO_DO: Final = (
    "Nothing is refreshed or served meanwhile, and nothing that was stored is lost by that. Look whether the server "
    "runs and DATABASE_URL is still right; `market-data up` starts the project's own, and starts it again. What was "
    "missed is then fetched by itself."
)


def lost_alert(settings: Settings, error: DatabaseUnavailableError) -> Alert:
    """Return what people are told of a database that does not answer."""
    return Alert("The market database cannot be reached", (str(error), _WHAT_TO_DO), link=settings.ui_url)


class DatabaseWatch:
    """Looks at the database now and then, says when it is lost, and starts the project's own server again.

    Args:
        settings: of the project.
        say: writes a line for who looks at the screen.
        every: seconds between two looks.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None], every: float = LOOK_SECONDS) -> None:
        from market_data_pipeline.store.connection import server_of

        self._settings = settings
        self._say = say
        self._every = every
        self._alone = server_of(settings.database_url) == server_of(settings.dagster_postgres_url)
        self._looked = self._found = time.monotonic()
        self._missed = 0
        self._told = False
        self._started: object = None

    def look(self) -> None:
        """Look, if it is time to."""
        from market_data_pipeline.store.connection import open_connection

        if time.monotonic() - self._looked < self._every:
            return
        try:
            with open_connection(self._settings.database_url, connect_timeout=10) as connection:
                [started] = connection.execute("select pg_postmaster_start_time()").fetchone() or [None]
        except DatabaseUnavailableError as error:
            self._miss(error)
        else:
            self._find(started)
        self._looked = time.monotonic()

    def _miss(self, error: DatabaseUnavailableError) -> None:
        self._missed += 1
        if self._missed == _MISSED:
            self._say(f"The database cannot be reached: {error}")
        if self._missed >= _MISSED and self._alone and not self._told:
            self._told = deliver(self._settings.alert_urls, lost_alert(self._settings, error))
        if self._missed >= _MISSED and self._settings.embedded_database:
            self._start_again()

    def _start_again(self) -> None:
        from market_data_pipeline.runtime.postgres import EmbeddedPostgres

        try:
            EmbeddedPostgres.of(self._settings).ensure_running()
        except PipelineError as error:  # it is tried again at the next look
            self._say(f"It could not be started again: {error}")

    def _find(self, started: object) -> None:
        if self._missed >= _MISSED:
            away = span(time.monotonic() - self._found)
            self._say(f"The database answers again after {away}.")
            if self._told and started == self._started:
                back = Alert(
                    f"The market database answers again after {away}", tone=Tone.RECOVERY, link=self._settings.ui_url
                )
                deliver(self._settings.alert_urls, back)
        self._missed, self._told, self._started, self._found = 0, False, started, time.monotonic()
