"""How `market-data up` notices that schedules and sensors are not evaluated although every process answers.

The alerts of Dagster's sensors cannot tell that no sensor runs, so this one is sent from here. While Dagster's storage
does not answer, nothing is known, and `database_watch` reports that.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone
from market_data_pipeline.reports.health import TICK_TOLERANCE, not_evaluated
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.reports.dagster_state import DagsterState, Evaluation
    from market_data_pipeline.settings import Settings

_LOOK_EVERY: Final = 15.0  # seconds; a look is ten small queries
# A minute beyond the tolerance: after an outage of the database, or a restart of the daemon, ticks need that to resume.
# Together they are well within the objective for a crashed scheduler, five minutes.
_LOOKS: Final = 4


class EvaluationWatch:
    """Looks periodically at what was evaluated, restarts what should evaluate it, and alerts once.

    Args:
        settings: of the project.
        dagster: Dagster's state.
        restart: restarts what evaluates schedules and sensors; the argument says why.
        say: prints a line on the screen.
        every: seconds between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        dagster: DagsterState,
        restart: Callable[[str], None],
        say: Callable[[str], None],
        every: float = _LOOK_EVERY,
    ) -> None:
        self._settings = settings
        self._dagster = dagster
        self._restart = restart
        self._say = say
        self._every = every
        self._looked_at = time.monotonic()
        self._missed = 0
        self._restart_at = _LOOKS
        self._outage: Outage | None = None

    def check(self) -> None:
        """Look, if the last look was long enough ago."""
        if time.monotonic() - self._looked_at < self._every:
            return
        with suppress(DatabaseUnavailableError):
            self._judge(self._dagster.evaluations(), time.monotonic())
        self._looked_at = time.monotonic()

    def _judge(self, evaluations: Sequence[Evaluation], now: float) -> None:
        wall = datetime.now(UTC)
        late = not_evaluated(evaluations, wall)
        if not late:
            self._end(now)
            return
        self._missed += 1
        outage = self._outage = self._outage or Outage(now)
        if self._missed < _LOOKS:
            return
        if self._missed == _LOOKS:
            self._say(f"Schedules and sensors are not evaluated: {late[0]}")
        alert = Alert(
            "Schedules and sensors are not evaluated: nothing is refreshed on time",
            (*late, "`market-data up` restarts what evaluates them; Dagster's UI shows the ticks that failed."),
            link=f"{self._settings.ui_url}/automation",
        )
        outage.tell(self._settings.alert_urls, alert)
        if self._missed >= self._restart_at and _nothing_attempted(evaluations, wall):
            self._restart_at = 2 * self._missed  # each restart waits twice as long
            self._restart("it evaluated nothing")

    def _end(self, now: float) -> None:
        if self._outage is not None and self._outage.alerted:
            away = span(max(now - self._outage.began, 1.0))
            alert = Alert(
                f"Schedules and sensors are evaluated again after {away}",
                tone=Tone.RECOVERY,
                link=f"{self._settings.ui_url}/automation",
            )
            if not self._outage.send(self._settings.alert_urls, alert):
                return
            self._say(alert.title)
        self._missed, self._restart_at, self._outage = 0, _LOOKS, None


def _nothing_attempted(evaluations: Sequence[Evaluation], now: datetime) -> bool:
    """Return whether a late one has had no tick at all; one whose ticks fail needs no other process."""
    return any(
        not_evaluated([one], now) and (one.attempted_at is None or now - one.attempted_at > 2 * TICK_TOLERANCE)
        for one in evaluations
    )
