"""Alerts on failed runs, with each failed series and its reason, and on jobs that work again.

A job that fails again for the same reasons is not alerted again. The sensor is a run failure sensor
(https://docs.dagster.io/guides/automate/sensors/run-status-sensors). Keep out: judging series (the run has recorded
what failed) and conditions that are not about runs (thresholds).
"""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import TYPE_CHECKING, Final

import dagster as dg

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone, alert_once
from market_data_pipeline.orchestration.jobs.refresh import TIER_TAG
from market_data_pipeline.orchestration.metadata import WORST_SHOWN
from market_data_pipeline.orchestration.partitions import RANGE_END, RANGE_START
from market_data_pipeline.orchestration.provenance import SHARD_TAG
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.runs import NARROW_TAG
from market_data_pipeline.store.alerts import close_alert, open_alert, open_alerts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.reports.completeness import FailedSeries
    from market_data_pipeline.settings import Settings

_INTERVAL_SECONDS: Final = 15  # people read alerts within minutes; each tick is one indexed query
# On runs that failed because the database was lost, until their alert is sent: the database cannot record that. The UI
# hides tags that begin with a dot.
_HELD_TAG, _HELD, _SENT = ".dagster/market_data_alert", "held", "told"
_RUNS_CHECKED: Final = 20  # newest successful runs of a job that failed: a tier has fewer shards

_RESTARTED: Final = "select pg_postmaster_start_time() > to_timestamp(:since)"


@dg.run_failure_sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends an alert for each failed run with the reason of each failed series, unless it was sent before.",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, pipeline: PipelineResource) -> None:
    """Alert on a failed run, unless Dagster is about to retry it."""
    run = context.dagster_run
    if run.tags.get("dagster/will_retry") == "true":
        # No SkipReason: in 1.13, one in the tick of another run's alert fails the tick, and with it every later alert.
        context.log.info(f"Run {run.run_id} will be retried.")
        return
    settings = pipeline.settings()
    message = (context.failure_event.message or "").strip() or "No reason was given."
    try:
        with pipeline.tick_database() as engine:
            if not (cut_off := _cut_off(context, engine)):
                alert_failed_run(engine, settings, run, message)
    except DatabaseUnavailableError:
        cut_off = True
    if cut_off:
        context.log.info(f"Run {run.run_id} was cut off by a lost database; one alert will name all such runs.")
        context.instance.add_run_tags(run.run_id, {_HELD_TAG: _HELD})


def _cut_off(context: dg.RunFailureSensorContext, engine: Engine) -> bool:
    """Return whether the run failed because the database was lost: it says so, or the server was restarted since."""
    import sqlalchemy as sa

    if any(
        DatabaseUnavailableError.__name__ in str(event.step_failure_data) for event in context.get_step_failure_events()
    ):
        return True
    record = context.instance.get_run_record_by_id(context.dagster_run.run_id)
    if record is None or record.start_time is None:
        return False
    with engine.connect() as connection:
        return bool(connection.execute(sa.text(_RESTARTED), {"since": record.start_time}).scalar_one())


def alert_failed_run(engine: Engine, settings: Settings, run: dg.DagsterRun, message: str) -> None:
    """Alert on a failed run, unless the last one like it failed for the same reasons.

    An alert that is not delivered stays in `open_alerts` as `untold`, and `alert_runs` retries it.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    from market_data_pipeline.reports.completeness import failed_series

    failed = failed_series(engine, [run.run_id])
    reasons = sorted((f"{one.symbol}|{one.timeframe}", one.error_class) for one in failed) or message.partition(":")[0]
    digest = hashlib.sha256(str(reasons).encode()).hexdigest()[:16]

    def change(connection: Connection) -> Alert | None:
        close_alert(connection, "untold", run.run_id)
        is_new = open_alert(connection, "run", _subject(run), digest)
        return _alert(settings, run, _lines(failed) or message.splitlines()[:WORST_SHOWN]) if is_new else None

    if not alert_once(engine, settings.alert_urls, change):
        with engine.begin() as connection:
            open_alert(connection, "untold", run.run_id, message)


def alert_runs(instance: dg.DagsterInstance, engine: Engine, settings: Settings) -> None:
    """Alert on jobs that work again and on runs that a lost database cut off; retry undelivered alerts.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    with engine.connect() as connection:
        failed, undelivered = open_alerts(connection, "run"), open_alerts(connection, "untold")
    _alert_cut_off(instance, engine, settings)
    for one in undelivered:
        if run := instance.get_run_by_id(one.subject):
            alert_failed_run(engine, settings, run, one.detail)
    recovered: dict[str, dg.DagsterRun] = {}
    for one in failed:
        job, _, which = one.subject.partition(" ")
        good = dg.RunsFilter(
            job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=one.opened_at.astimezone(UTC)
        )
        for record in instance.get_run_records(good, limit=_RUNS_CHECKED):
            run = record.dagster_run
            # A run for all series also makes up for a failed run for some of them: it leaves nothing missing.
            if _subject(run) == one.subject or (which.startswith("(") and NARROW_TAG not in run.tags):
                recovered[one.subject] = run
                break

    def change(connection: Connection) -> Alert | None:
        closed = [subject for subject in recovered if close_alert(connection, "run", subject)]
        if not closed:
            return None
        last = recovered[closed[-1]]
        return Alert(f"{', '.join(closed)}: works again", tone=Tone.RECOVERY, link=_link(settings, last.run_id))

    if recovered:
        alert_once(engine, settings.alert_urls, change)


def _alert_cut_off(instance: dg.DagsterInstance, engine: Engine, settings: Settings) -> None:
    """Send one alert on all runs that failed because the database was lost."""
    held = instance.get_runs(dg.RunsFilter(tags={_HELD_TAG: _HELD}))
    if not held:
        return
    alike: dict[str, list[dg.DagsterRun]] = {}
    for run in held:  # the newest first
        alike.setdefault(_subject(run), []).append(run)
    lines = [
        f"{subject}{f', {len(runs)} times' if len(runs) > 1 else ''}: {_link(settings, runs[0].run_id)}"
        for subject, runs in alike.items()
    ]
    alert = Alert(
        f"{len(held)} run{'' if len(held) == 1 else 's'} failed because the database was lost",
        (*lines[:WORST_SHOWN], *([f"… and {len(lines) - WORST_SHOWN} more"] if len(lines) > WORST_SHOWN else [])),
        link=f"{settings.ui_url}/runs",
    )

    def change(connection: Connection) -> Alert:
        for subject in alike:  # so that their recovery is alerted too
            open_alert(connection, "run", subject, "cut off")
        return alert

    if alert_once(engine, settings.alert_urls, change):
        for run in held:
            instance.add_run_tags(run.run_id, {_HELD_TAG: _SENT})


def _subject(run: dg.DagsterRun) -> str:
    """Return what makes runs alike: the job, and its shard or what it is narrowed to."""
    tags: Mapping[str, str] = run.tags
    if NARROW_TAG in tags:
        return f"{run.job_name} ({tags[NARROW_TAG]})"
    if SHARD_TAG in tags:
        return f"{run.job_name} {tags[SHARD_TAG]}"
    if RANGE_START in tags:
        return f"{run.job_name} {tags[RANGE_START].partition('|')[0]} to {tags[RANGE_END].partition('|')[0]}"
    return run.job_name


def _alert(settings: Settings, run: dg.DagsterRun, lines: Sequence[str]) -> Alert:
    tier = run.tags.get(TIER_TAG)
    title = f"{run.job_name} failed" + (f" ({tier} tier)" if tier else "")
    return Alert(title, tuple(lines), link=_link(settings, run.run_id))


def _lines(failed: Sequence[FailedSeries]) -> list[str]:
    """Return a line for each reason with its symbols, at most `WORST_SHOWN`, and then how many more."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for one in failed:
        symbols = by_reason.setdefault(f"{one.error_class}: {one.error}", {})
        symbols.setdefault(one.symbol, []).append(one.timeframe)
    lines = []
    for reason, symbols in list(by_reason.items())[:WORST_SHOWN]:
        named = [f"{symbol} {', '.join(timeframes)}" for symbol, timeframes in list(symbols.items())[:WORST_SHOWN]]
        more = f" and {len(symbols) - WORST_SHOWN} more symbols" if len(symbols) > WORST_SHOWN else ""
        lines.append(f"{'; '.join(named)}{more}: {reason}")
    if len(by_reason) > WORST_SHOWN:
        lines.append(f"… and {len(by_reason) - WORST_SHOWN} more reasons")
    return lines


def _link(settings: Settings, run_id: str) -> str:
    return f"{settings.ui_url}/runs/{run_id}"
