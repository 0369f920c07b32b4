"""What Dagster's own storage knows: runs, daemons, schedules.

Dagster is used by its public face elsewhere; here it is not, and that is why this is a module of its own. Only
`get_run_records` is documented as public; daemon heartbeats, schedule states and a run's failure event have no public
reading except GraphQL from the webserver, which may be down just when they are asked for. Reading the tables by SQL
would be cheaper still (no import of 0.7 s), but their rows are Dagster's serialised objects. Checked with 1.13.27.

Keep out: anything about series; `reports` joins the two.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.failures import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.project import STORAGE_ZONE
from market_data_pipeline.store.database import libpq_url, open_connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeVar

    import dagster as dg

    T = TypeVar("T")

# A daemon writes a heartbeat every 30 s. Dagster itself forgives half an hour of silence, which is six times the
# objective for restoring a crashed scheduler (5 minutes); three missed beats are a daemon that is down.
HEARTBEAT_TOLERANCE_SECONDS: Final = 100.0
_CONNECT_SECONDS: Final = 3  # a server that is up answers in milliseconds; whoever asks for health gives up soon
_REACHED_SECONDS: Final = 1.0  # the questions behind one answer do not all try whether there is a server
_STATEMENT_TIMEOUT_MS: Final = 5_000  # as the API's own statements
_RECYCLE_SECONDS: Final = 300  # of a kept connection, of which each of the three storages has one
_MORE_CONNECTIONS: Final = 4  # while several ask at once
_RUN_ID_LENGTH: Final = 36
_LOOKED_THROUGH: Final = 1000  # runs, for one whose id is not written out: some eight days of schedules
_LONGEST_MESSAGE: Final = 300  # characters of a run's failure; the rest is in Dagster's UI


@dataclass(frozen=True, slots=True)
class Run:
    """One run; instants are aware UTC, None where it has not got there yet."""

    run_id: str
    job: str
    trigger: str  # this and the next three as orchestration.provenance says
    requested_by: str
    reason: str
    series: str
    status: str  # Dagster's name for it: QUEUED, STARTED, SUCCESS, FAILURE, CANCELED, …
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of the daemons that this instance needs."""

    name: str
    alive: bool
    last_heartbeat: datetime | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule and its last tick."""

    name: str
    cron: str
    timezone: str
    running: bool
    last_tick_at: datetime | None
    last_tick_status: str | None


class DagsterState:
    """Reads the instance whose `dagster.yaml` lies in `home`; opened at first use, and shared by threads.

    `dagster.yaml` takes the storage's URL from the environment: `postgres_url` is put there unless it has one.
    """

    def __init__(self, home: Path, postgres_url: str) -> None:
        self._home = home
        self._postgres_url = postgres_url
        self._instance: dg.DagsterInstance | None = None
        self._lock = threading.Lock()
        self._reached = -math.inf

    def open(self) -> None:
        """Open the instance now, which takes a second, rather than at the first question; raises as `runs` does."""
        self._read(lambda _instance: None)

    def runs(self, limit: int, jobs: tuple[str, ...] = ()) -> tuple[Run, ...]:
        """Return the newest `limit` runs, of `jobs` only if any are named; newest first.

        Raises:
            DatabaseUnavailableError: the storage cannot be read.
        """
        return self._read(lambda instance: _runs(instance, limit, jobs))

    def run(self, beginning: str) -> Run | None:
        """Return the newest run whose id begins so; None when there is none. Raises as `runs` does."""
        return self._read(lambda instance: _run_called(instance, beginning))

    def daemons(self) -> tuple[Daemon, ...]:
        """Return the daemons that the instance needs; raises as `runs` does."""
        return self._read(_daemons)

    def schedules(self) -> tuple[Schedule, ...]:
        """Return the tiers' schedules; raises as `runs` does."""
        return self._read(_schedules)

    def close(self) -> None:
        """Let go of the instance."""
        with self._lock:
            self._reached = -math.inf
            if self._instance is not None:
                self._instance.dispose()
                self._instance = None

    def _read(self, question: Callable[[dg.DagsterInstance], T]) -> T:
        kept = self._instance
        try:
            self._refuse_at_once()
            return question(kept or self._open())
        except DatabaseUnavailableError:
            raise
        except Exception as error:  # whatever its storage plug-in raises, the state cannot be told
            if kept is None:
                raise DatabaseUnavailableError(f"Dagster's storage cannot be read: {type(error).__name__}.") from error
        # The server may have been started anew, and ended the connections that were kept.
        self.close()
        return self._read(question)

    def _refuse_at_once(self) -> None:
        """Raise when the storage's server cannot be reached: dagster-postgres tries for 11 s, and somebody waits."""
        if time.monotonic() - self._reached < _REACHED_SECONDS:
            return
        if self._instance is not None:
            url = getattr(self._instance.run_storage, "postgres_url", None)
        else:
            file = self._home / "dagster.yaml"
            named = file.is_file() and "DAGSTER_POSTGRES_URL" in file.read_text(encoding="utf-8")
            url = (os.environ.get("DAGSTER_POSTGRES_URL") or self._postgres_url) if named else None
        if url:
            try:
                open_connection(libpq_url(url), connect_timeout=_CONNECT_SECONDS).close()
            except DatabaseUnavailableError:  # whose sentence names the server, which is nobody's business here
                raise DatabaseUnavailableError("Dagster's storage cannot be reached.") from None
        self._reached = time.monotonic()

    def _open(self) -> dg.DagsterInstance:
        with self._lock:
            if self._instance is None:
                if not (self._home / "dagster.yaml").is_file():
                    # Dagster would quietly make an empty SQLite instance there.
                    raise DatabaseUnavailableError("There is no dagster.yaml in DAGSTER_HOME.")
                if not os.environ.get("DAGSTER_POSTGRES_URL"):  # an empty value counts as none, as in the settings
                    os.environ["DAGSTER_POSTGRES_URL"] = self._postgres_url
                os.environ.update(STORAGE_ZONE)
                import dagster as dg

                self._instance = dg.DagsterInstance.from_config(str(self._home))
                # Else each of a dozen statements behind one answer would connect anew.
                self._instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _RECYCLE_SECONDS, _MORE_CONNECTIONS)
            return self._instance


def _runs(instance: dg.DagsterInstance, limit: int, jobs: tuple[str, ...]) -> tuple[Run, ...]:
    import dagster as dg

    if not jobs:
        records = list(instance.get_run_records(limit=limit))
    else:
        found = (instance.get_run_records(dg.RunsFilter(job_name=job), limit=limit) for job in jobs)
        records = sorted((r for of_job in found for r in of_job), key=lambda r: r.create_timestamp, reverse=True)[
            :limit
        ]
    return tuple(_run(instance, record) for record in records)


def _run_called(instance: dg.DagsterInstance, beginning: str) -> Run | None:
    import dagster as dg

    if len(beginning) == _RUN_ID_LENGTH:
        found = instance.get_run_records(dg.RunsFilter(run_ids=[beginning]))
    else:
        recent = instance.get_run_records(limit=_LOOKED_THROUGH)
        found = [record for record in recent if record.dagster_run.run_id.startswith(beginning)]
    return _run(instance, found[0]) if found else None


def _run(instance: dg.DagsterInstance, record: dg.RunRecord) -> Run:
    import dagster as dg

    from market_data_pipeline.orchestration.provenance import of_run

    run = record.dagster_run
    origin = of_run(run)
    failed = run.status is dg.DagsterRunStatus.FAILURE
    return Run(
        run_id=run.run_id,
        job="asset materialization" if run.job_name.startswith("__ASSET_JOB") else run.job_name,
        trigger=origin.trigger,
        requested_by=origin.requested_by,
        reason=origin.reason,
        series=origin.series,
        status=run.status.value,
        created_at=_aware(record.create_timestamp),
        started_at=_from_epoch(record.start_time),
        completed_at=_from_epoch(record.end_time),
        failure=failure_of(instance, run.run_id) if failed else None,
    )


def failure_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Return the first line of what a failed run said, without the stack that follows; None when it did not fail."""
    import dagster as dg

    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    page = instance.get_records_for_run(run_id, of_type=kinds, limit=1)
    for record in page.records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        if event.is_step_failure:
            failure = event.step_failure_data
            message = failure.user_failure_data.description if failure.user_failure_data else None
            message = message or (failure.error.message if failure.error else None)
        else:
            message = event.message
        if message:
            return message.strip().splitlines()[0][:_LONGEST_MESSAGE]
    return None


def _daemons(instance: dg.DagsterInstance) -> tuple[Daemon, ...]:
    # Heartbeats carry the real time, also in a replay.
    now = datetime.now(UTC).timestamp()
    found = []
    for name, status in instance.get_daemon_statuses().items():
        if not status.required:
            continue
        beat = status.last_heartbeat.timestamp if status.last_heartbeat else None
        alive = beat is not None and now - beat <= HEARTBEAT_TOLERANCE_SECONDS
        found.append(Daemon(name.lower(), alive, _from_epoch(beat)))
    return tuple(sorted(found, key=lambda daemon: daemon.name))


def _schedules(instance: dg.DagsterInstance) -> tuple[Schedule, ...]:
    from dagster._core.definitions.run_request import InstigatorType

    states = {state.name: state for state in instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)}
    found = []
    for tier, objective in TIER_OBJECTIVES.items():
        name = f"{tier}_schedule"
        state = states.get(name)
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1) if state else ()
        found.append(
            Schedule(
                name=name,
                cron=objective.cron,
                timezone=objective.cron_timezone,
                running=state is not None and state.is_running,
                last_tick_at=_from_epoch(ticks[0].timestamp) if ticks else None,
                last_tick_status=ticks[0].status.value if ticks else None,
            )
        )
    return tuple(found)


def _from_epoch(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
