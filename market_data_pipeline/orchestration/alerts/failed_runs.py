"""Telling people of failed runs: which series, and why; and that a job works again.

A job that fails again for the same reasons says nothing new. Dagster itself alerts only in its paid edition. Keep out:
judging (the run has already said what failed), other things that people are told of (crossings), and how a message
reaches them (operations.alerting).
"""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import TYPE_CHECKING, Final, NamedTuple

import dagster as dg

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.orchestration.alerts.delivery import Alert, Tone
from market_data_pipeline.orchestration.alerts.thresholds import tell
from market_data_pipeline.orchestration.jobs.refresh import TIER_TAG
from market_data_pipeline.orchestration.partitions import RANGE_END, RANGE_START
from market_data_pipeline.orchestration.resources import PipelineResource
from market_data_pipeline.orchestration.results import WORST_SHOWN
from market_data_pipeline.orchestration.runs import NARROW_TAG
from market_data_pipeline.orchestration.sensors.deadline import bound
from market_data_pipeline.store.alerts import close_alert, open_alert, open_alerts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.settings import Settings

_INTERVAL_SECONDS: Final = 15  # a person reads it in minutes; each look is one indexed query
# On failed runs that nobody was told of yet because the database was away; it cannot note that itself. The UI hides it.
_HELD_TAG, _HELD, _TOLD = ".dagster/market_data_alert", "held", "told"
_LOOKED_AT: Final = 20  # newest good runs of a job that failed: a tier has fewer shards

_FAILED: Final = """
select symbol, timeframe, error_class, error
from market_data.ingest_log
where run_id = :run_id and status = 'failed'
order by symbol, timeframe
"""


_RESTARTED: Final = "select pg_postmaster_start_time() > to_timestamp(:since)"


class FailedSeries(NamedTuple):
    """A series that failed in a run, and why."""

    key: str
    error_class: str
    error: str


@dg.run_failure_sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells people of each failed run, with the reason of each failed series, unless they know already.",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, pipeline: PipelineResource) -> None:
    """Alert about a failed run, unless Dagster is about to try it again."""
    run = context.dagster_run
    if run.tags.get("dagster/will_retry") == "true":
        # Not by a SkipReason: in 1.13 one beside another run's alert fails the tick, and with it every later alert.
        context.log.info(f"Run {run.run_id} is tried again.")
        return
    settings = pipeline.settings()
    message = (context.failure_event.message or "").strip() or "No reason was given."
    try:
        with pipeline.database() as engine:
            bound(engine)
            if not (cut_off := _cut_off(context, engine)):
                tell_failed_run(engine, settings, run, message)
    except DatabaseUnavailableError:
        cut_off = True
    if cut_off:
        context.log.info(f"Run {run.run_id} is told of together with others that a lost database cut off.")
        context.instance.add_run_tags(run.run_id, {_HELD_TAG: _HELD})


def _cut_off(context: dg.RunFailureSensorContext, engine: Engine) -> bool:
    """Return whether the run failed because the database was lost: it says so, or the server was started meanwhile."""
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


def tell_failed_run(engine: Engine, settings: Settings, run: dg.DagsterRun, message: str) -> None:
    """Tell people of a failed run, unless the same was told of the last one like it.

    An alert that reaches nobody stands as `untold` in `open_alerts`, and `tell_runs` tries it again.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """

    def change(connection: Connection) -> Alert | None:
        failed = failed_series(connection, run.run_id)
        reasons = sorted((one.key, one.error_class) for one in failed) or message.partition(":")[0]
        digest = hashlib.sha256(str(reasons).encode()).hexdigest()[:16]
        close_alert(connection, "untold", run.run_id)
        told = not open_alert(connection, "run", _subject(run), digest)
        return None if told else _alert(settings, run, _lines(failed) or message.splitlines()[:WORST_SHOWN])

    if not tell(engine, settings.alert_urls, change):
        with engine.begin() as connection:
            open_alert(connection, "untold", run.run_id, message)


def tell_runs(instance: dg.DagsterInstance, engine: Engine, settings: Settings) -> None:
    """Tell people of jobs that work again after a failed run, and again what did not reach them.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    with engine.connect() as connection:
        failed, untold = open_alerts(connection, "run"), open_alerts(connection, "untold")
    _tell_cut_off(instance, engine, settings)
    for one in untold:
        if run := instance.get_run_by_id(one.subject):
            tell_failed_run(engine, settings, run, one.detail)
    over: dict[str, dg.DagsterRun] = {}
    for one in failed:
        job, _, which = one.subject.partition(" ")
        good = dg.RunsFilter(
            job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=one.opened_at.astimezone(UTC)
        )
        for record in instance.get_run_records(good, limit=_LOOKED_AT):
            run = record.dagster_run
            # A run for some series is also made good by one for all of them, which leaves nothing missing.
            if _subject(run) == one.subject or (which.startswith("(") and NARROW_TAG not in run.tags):
                over[one.subject] = run
                break

    def change(connection: Connection) -> Alert | None:
        closed = [subject for subject in over if close_alert(connection, "run", subject)]
        if not closed:
            return None
        last = over[closed[-1]]
        return Alert(f"{', '.join(closed)}: works again", tone=Tone.RECOVERY, link=_link(settings, last.run_id))

    if over:
        tell(engine, settings.alert_urls, change)


def _tell_cut_off(instance: dg.DagsterInstance, engine: Engine, settings: Settings) -> None:
    """Tell people in one message of all runs that failed while the database was away."""
    held = instance.get_runs(dg.RunsFilter(tags={_HELD_TAG: _HELD}))
    if not held:
        return
    met: dict[str, list[dg.DagsterRun]] = {}
    for run in held:  # the newest first
        met.setdefault(_subject(run), []).append(run)
    lines = [
        f"{subject}{f', {len(runs)} times' if len(runs) > 1 else ''}: {_link(settings, runs[0].run_id)}"
        for subject, runs in met.items()
    ]
    count = f"{len(held)} run{'' if len(held) == 1 else 's'}"
    alert = Alert(
        f"{count} failed because the database was lost",
        (*lines[:WORST_SHOWN], *([f"… and {len(lines) - WORST_SHOWN} more"] if len(lines) > WORST_SHOWN else [])),
        link=f"{settings.ui_url}/runs",
    )

    def change(connection: Connection) -> Alert:
        for subject in met:  # so that it is told when they work again
            open_alert(connection, "run", subject, "cut off")
        return alert

    if tell(engine, settings.alert_urls, change):
        for run in held:
            instance.add_run_tags(run.run_id, {_HELD_TAG: _TOLD})


def failed_series(connection: Connection, run_id: str) -> list[FailedSeries]:
    """Return the series that failed in a run."""
    import sqlalchemy as sa

    rows = connection.execute(sa.text(_FAILED), {"run_id": run_id})
    return [FailedSeries(f"{row.symbol}|{row.timeframe}", row.error_class, row.error) for row in rows]


def _subject(run: dg.DagsterRun) -> str:
    """Return which runs are alike: the job, and its shard or what it is narrowed to."""
    tags: Mapping[str, str] = run.tags
    if NARROW_TAG in tags:
        return f"{run.job_name} ({tags[NARROW_TAG]})"
    if RANGE_START in tags:
        return f"{run.job_name} {tags[RANGE_START].partition('|')[0]} to {tags[RANGE_END].partition('|')[0]}"
    return run.job_name


def _alert(settings: Settings, run: dg.DagsterRun, lines: Sequence[str]) -> Alert:
    tier = run.tags.get(TIER_TAG)
    title = f"{run.job_name} failed" + (f" ({tier} tier)" if tier else "")
    return Alert(title, tuple(lines), link=_link(settings, run.run_id))


def _lines(failed: Sequence[FailedSeries]) -> list[str]:
    """Return a line for each reason with the symbols that met it, at most `WORST_SHOWN`, and then how many more."""
    met: dict[str, dict[str, list[str]]] = {}
    for one in failed:
        symbol, _, timeframe = one.key.partition("|")
        met.setdefault(f"{one.error_class}: {one.error}", {}).setdefault(symbol, []).append(timeframe)
    lines = []
    for reason, symbols in list(met.items())[:WORST_SHOWN]:
        named = [f"{symbol} {', '.join(timeframes)}" for symbol, timeframes in list(symbols.items())[:WORST_SHOWN]]
        more = f" and {len(symbols) - WORST_SHOWN} more symbols" if len(symbols) > WORST_SHOWN else ""
        lines.append(f"{'; '.join(named)}{more}: {reason}")
    if len(met) > WORST_SHOWN:
        lines.append(f"… and {len(met) - WORST_SHOWN} more reasons")
    return lines


def _link(settings: Settings, run_id: str) -> str:
    return f"{settings.ui_url}/runs/{run_id}"
