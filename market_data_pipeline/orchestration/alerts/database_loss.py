"""Alerts that the market database is lost and that it is back: once each, for all tiers together.

The database cannot record its own loss, so the staleness sensor's cursor does (`sensors.memory`), in Dagster's storage.
Where both are on one server, no tick starts while it is lost: `market-data up` then alerts the loss
(`runtime.database_watch`), and the first tick after its return finds a server that was started since the last tick.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, deliver
from market_data_pipeline.orchestration.sensors.memory import Loss, Server
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from market_data_pipeline.domain.errors import DatabaseUnavailableError
    from market_data_pipeline.orchestration.sensors.memory import Memory
    from market_data_pipeline.settings import Settings

# Recovering from a crash, PostgreSQL discards its statistics and records when it did; an orderly stop keeps them.
_SERVER: Final = """
select
    cast(extract(epoch from pg_postmaster_start_time()) as double precision) as started,
    cast(coalesce(extract(epoch from stats_reset), 0) as double precision) as recovered
from pg_stat_archiver
"""

_WHAT_TO_DO: Final = (
    "Until it is back, nothing is refreshed or served; what was stored is not lost. Check that the server runs and "
    "that DATABASE_URL is right; `market-data up` starts the project's own, and restarts it when it dies. What was "
    "missed is then fetched automatically."
)


def lost_alert(settings: Settings, error: DatabaseUnavailableError) -> Alert:
    """Return the alert on a database that does not answer."""
    return Alert("The market database cannot be reached", (str(error), _WHAT_TO_DO), link=settings.ui_url)


def returned_alert(settings: Settings, away: timedelta, *lines: str) -> Alert:
    """Return the alert on a database that answers again after `away`."""
    title = f"The market database answers again after {span(away.total_seconds())}"
    return Alert(title, lines, Tone.RECOVERY, settings.ui_url)


def alert_loss(memory: Memory, settings: Settings, error: DatabaseUnavailableError, now: datetime) -> None:
    """Alert that the database does not answer, unless that alert was delivered before."""
    loss = memory.loss or Loss(now.timestamp(), alerted=False)
    if not loss.alerted:
        loss = loss._replace(alerted=deliver(settings.alert_urls, lost_alert(settings, error)))
    memory.loss = loss


def detect_restart(memory: Memory, engine: Engine, now: datetime) -> None:
    """Record an outage between two ticks, and the server for the next tick.

    A server that was started since the last tick means an outage if it had crashed, or if this process was running
    before. An orderly stop and start of everything, as `market-data down` and `up` do, is not one.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached.
    """
    import psutil
    import sqlalchemy as sa

    with engine.connect() as connection:
        server = connection.execute(sa.text(_SERVER)).one()
    before, memory.server = memory.server, Server(now.timestamp(), server.started, server.recovered)
    if before is None or memory.loss is not None or server.started == before.started:
        return
    crashed = server.recovered != before.recovered
    if crashed or psutil.Process().create_time() < before.at:
        memory.loss = Loss(before.at, alerted=True)


def alert_return(memory: Memory, settings: Settings, now: datetime) -> None:
    """Alert that the database answers again, unless the alert on its loss never reached anyone.

    An outage that only `detect_restart` noticed counts as alerted.
    """
    loss = memory.loss
    if loss is None:
        return
    since = datetime.fromtimestamp(loss.since, UTC)
    seen = f"It was last seen, or first missed, at {since:%Y-%m-%d %H:%M:%S} UTC."
    alert = returned_alert(settings, max(now - since, timedelta(seconds=1)), seen)
    if not loss.alerted or deliver(settings.alert_urls, alert):
        memory.loss = None
