"""Telling people that the market database is lost, and that it is back: once each, for all tiers together.

What was told cannot stand in the database that is away, so it stands in the staleness sensor's cursor, in Dagster's
storage. Where both are on one lost server no tick begins, and there is nothing here to tell it. Keep out: everything
that needs the database to be told (crossings, alerts).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.operations.alerting import Alert, Tone, deliver
from market_data_pipeline.operations.objectives import span
from market_data_pipeline.orchestration.healing import Absence

if TYPE_CHECKING:
    from market_data_pipeline.domain.failures import DatabaseUnavailableError
    from market_data_pipeline.orchestration.healing import Memory
    from market_data_pipeline.settings import Settings

_WHAT_TO_DO = (
    "Nothing is refreshed or served meanwhile, and nothing that was stored is lost by that. Look whether the server "
    "runs and DATABASE_URL is still right; `market-data up` starts the project's own. What was missed is then fetched "
    "by itself."
)


def tell_lost(memory: Memory, settings: Settings, error: DatabaseUnavailableError, now: datetime) -> None:
    """Tell people that the database does not answer, unless they know; what reaches nobody is tried again."""
    absence = memory.absence or Absence(now.timestamp(), told=False)
    if not absence.told:
        alert = Alert("The market database cannot be reached", (str(error), _WHAT_TO_DO), link=settings.ui_url)
        absence = absence._replace(told=deliver(settings.alert_urls, alert))
    memory.absence = absence


def tell_back(memory: Memory, settings: Settings, now: datetime) -> None:
    """Tell people that the database answers again, if they were told that it did not."""
    absence = memory.absence
    if absence is None:
        return
    since = datetime.fromtimestamp(absence.since, UTC)
    away = span(max(now - since, timedelta(seconds=1)).total_seconds())
    alert = Alert(
        f"The market database answers again after {away}",
        (f"It was first missed at {since:%Y-%m-%d %H:%M:%S} UTC.",),
        Tone.RECOVERY,
        settings.ui_url,
    )
    if not absence.told or deliver(settings.alert_urls, alert):
        memory.absence = None
