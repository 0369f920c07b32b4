"""Telling people that a run failed: which series, and why.

Goes to the Apprise addresses in MARKET_DATA_ALERT_URLS (Slack, e-mail, webhooks, …), else to the log. Dagster itself
alerts only in its paid edition. Keep out: judging (the run has already said what failed).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.orchestration.jobs import TIER_TAG
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import WORST_SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

log = logging.getLogger(__name__)

_INTERVAL_SECONDS: Final = 15  # a person reads it in minutes; each look is one indexed query

_FAILED: Final = """
select symbol, timeframe, error_class, error, count(*) over () as total
from market_data.ingest_log
where run_id = :run_id and status = 'failed'
order by symbol, timeframe
limit :limit
"""


@dg.run_failure_sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends one alert per failed run, with the reason of each failed series.",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, pipeline: PipelineResource) -> None:
    """Alert about a failed run, unless Dagster is about to try it again."""
    run = context.dagster_run
    if run.tags.get("dagster/will_retry") == "true":
        # Not by a SkipReason: in 1.13 one beside another run's alert fails the tick, and with it every later alert.
        context.log.info(f"Run {run.run_id} is tried again.")
        return
    with pipeline.database() as engine:
        reasons = failed_series(engine, run.run_id)
    tier = run.tags.get(TIER_TAG)
    title = f"{run.job_name} failed" + (f" ({tier} tier)" if tier else "")
    send(
        pipeline.settings().alert_urls,
        title,
        "\n".join([*(reasons or [context.failure_event.message or "No reason given."]), f"Run {run.run_id}"]),
    )


def failed_series(engine: Engine, run_id: str) -> list[str]:
    """Return a line for each series that failed in a run, at most `WORST_SHOWN` and then how many more."""
    import sqlalchemy as sa

    with engine.connect() as connection:
        rows = connection.execute(sa.text(_FAILED), {"run_id": run_id, "limit": WORST_SHOWN}).all()
    lines = [f"{row.symbol}|{row.timeframe}: {row.error_class}: {row.error}" for row in rows]
    if rows and rows[0].total > len(rows):
        lines.append(f"… and {rows[0].total - len(rows)} more")
    return lines


def send(urls: Sequence[str], title: str, body: str) -> None:
    """Send an alert to every address; what cannot be delivered is in the log, as every alert is."""
    log.error("%s\n%s", title, body)
    if not urls:
        return
    from apprise import Apprise, NotifyType

    service = Apprise()
    for number, url in enumerate(urls, 1):
        if not service.add(url):
            log.error("Address %d in MARKET_DATA_ALERT_URLS is not one that Apprise knows.", number)
    if len(service) and not service.notify(title=title, body=body, notify_type=NotifyType.FAILURE):
        log.error("An alert could not be delivered to every address in MARKET_DATA_ALERT_URLS.")
