"""Telling people that the market database is lost, and that it is back: once each, for all tiers together.

What was told cannot stand in the database that is away, so it stands in the staleness sensor's cursor, in Dagster's
storage. Where both are on one lost server no tick begins; the first one after its return finds a server that was
started since the last look, and tells it then (`market-data up` tells the loss itself: runtime.database_watch). Keep
out: everything that needs the database to be told (crossings, alerts).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, deliver
from market_data_pipeline.orchestration.sensors.memory import Absence, Sighting
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.domain.errors import DatabaseUnavailableError
    from market_data_pipeline.orchestration.sensors.memory import Memory
    from market_data_pipeline.settings import Settings

# Recovering from a crash, PostgreSQL throws its statistics away and notes when; a stop in good order keeps them.
_SERVER: Final = """
select
    cast(extract(epoch from pg_postmaster_start_time()) as double precision) as started,
    cast(coalesce(extract(epoch from stats_reset), 0) as double precision) as recovered
from pg_stat_archiver
"""


_WHAT_TO_DO: Final = (
    "Nothing is refreshed or served meanwhile, and nothing that was stored is lost by that. Look whether the server "
    "runs and DATABASE_URL is still right; `market-data up` starts the project's own, and starts it again. What was "
    "missed is then fetched by itself."
)


def lost_alert(settings: Settings, error: DatabaseUnavailableError) -> Alert:
    """Return what people are told of a database that does not answer."""
    return Alert("The market database cannot be reached", (str(error), _WHAT_TO_DO), link=settings.ui_url)


def tell_lost(memory: Memory, settings: Settings, error: DatabaseUnavailableError, now: datetime) -> None:
    """Tell people that the database does not answer, unless they know; what reaches nobody is tried again."""
    absence = memory.absence or Absence(now.timestamp(), told=False)
    if not absence.told:
        absence = absence._replace(told=deliver(settings.alert_urls, lost_alert(settings, error)))
    memory.absence = absence


def notice_return(memory: Memory, engine: Engine, now: datetime) -> None:
    """Take note of an outage that lies between two looks, and of the server for the next one.

    A server that was started anew means one if it had crashed, or if this process was running before: who stops
    everything in good order and starts it again, as `market-data down` and `up` do, is told nothing.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    import psutil
    import sqlalchemy as sa

    with engine.connect() as connection:
        server = connection.execute(sa.text(_SERVER)).one()
    before, memory.seen = memory.seen, Sighting(now.timestamp(), server.started, server.recovered)
    if before is None or memory.absence is not None or server.started == before.started:
        return
    crashed = server.recovered != before.recovered
    if crashed or psutil.Process().create_time() < before.at:
        memory.absence = Absence(before.at, told=True)


def tell_back(memory: Memory, settings: Settings, now: datetime) -> None:
    """Tell people that the database answers again, if it was away and they know, or could not be told."""
    absence = memory.absence
    if absence is None:
        return
    since = datetime.fromtimestamp(absence.since, UTC)
    away = span(max(now - since, timedelta(seconds=1)).total_seconds())
    missed = f"{since:%Y-%m-%d %H:%M:%S} UTC"
    alert = Alert(
        f"The market database answers again after {away}",
        (f"It was last seen, or first missed, at {missed}.",),
        Tone.RECOVERY,
        settings.ui_url,
    )
    if not absence.told or deliver(settings.alert_urls, alert):
        memory.absence = None
