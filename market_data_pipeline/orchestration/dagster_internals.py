"""Every private name of Dagster that this project uses, each with its reason; no other module has one.

Checked with Dagster 1.13.27; `test_dagster_internals` fails when Dagster drops or renames one. Seven things need them:

- Events in batches: `context.log_event` writes each event in two transactions on two new connections, 11 ms each, 2.7 s
  for a shard of 125 series. The storage writes a batch in 0.6 ms an event, but only assets that return one result for
  many partitions reach it by public names. Without these names `context.log_event` does the same, slowly.
- Which partitions show as materialized today, in one query: by public names, a shard of 125 symbols takes 625.
- Runs put into the queue from any process: 0.8 s for a tier of 25 symbols. `dagster job launch` takes 5 s, because it
  first starts a code server of its own; GraphQL needs a running webserver.
- Runs that start warm: the code server starts each run's process from scratch ("spawn") and offers no other method.
  A run of 9 symbols with nothing to do takes 1.0 s of processor time instead of 3.8 s when it is forked from a process
  that has imported what a run needs and has no connections; such runs also share memory.
- A connection that is kept (`orchestration.storage`): dagster-postgres opens one for each statement, 68 in a run with
  nothing to do, whose own processor time falls from 0.56 to 0.28 s without them.
- The state of Dagster (`reports.dagster_state`): the only public way to read heartbeats, schedule states and a run's
  failure is GraphQL, whose webserver may be down just when they are needed.
- Runs on other hosts (`orchestration.worker_launcher`, `runtime.worker`): what executes a run in a process of our own,
  and what a launcher answers to run monitoring, have no public names.
- A guard around the UI: `dagster-webserver` has no place for a middleware, and obeys any web page.
"""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import sys
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.errors import DatabaseUnavailableError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.orchestration.cadences import SCHEDULES, SENSORS
from market_data_pipeline.reports.dagster_state import Daemon, Evaluation, Run, Schedule
from market_data_pipeline.settings.project import LOCATION, STORAGE_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any, TypeAlias, TypeVar

    import dagster as dg
    import sqlalchemy as sa
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
    from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
    from dagster._core.origin import JobPythonOrigin
    from dagster._core.remote_origin import RemoteJobOrigin
    from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig as RunQueueConfig
    from dagster._core.scheduler.instigation import InstigatorState
    from starlette.types import ASGIApp

    T = TypeVar("T")

    # What `dg.define_asset_job` returns; Dagster exports no public name for it.
    AssetJob: TypeAlias = UnresolvedAssetJobDefinition

_LARGEST_BATCH: Final = "1000"  # events of one INSERT: 1000 rows of about 2 kB
_ATTRIBUTE: Final = "defs"  # of the location's module
DAEMON_PROGRAMS: Final = ("dagster-daemon", "dagster._daemon")  # the script, and the module that `dagster dev` runs
_CODE_SERVER: Final = ["api", "grpc"]  # `python -m dagster api grpc …`, whatever started it


def log_materializations(
    context: dg.AssetExecutionContext, materializations: Iterable[dg.AssetMaterialization]
) -> None:
    """Write materializations of the running step to the event log, one batch per asset.

    They are stored when this returns.
    """
    from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata

    # Dagster reads this at each event; without it, batches are split again.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", _LARGEST_BATCH)
    step = context.op_execution_context.get_step_execution_context()
    by_asset = attrgetter("asset_key")
    for _, group in groupby(sorted(materializations, key=by_asset), key=by_asset):
        batch, batch_id = list(group), str(uuid.uuid4())
        for position, materialization in enumerate(batch, 1):
            end = DagsterEventBatchMetadata(batch_id, position == len(batch))
            DagsterEvent.asset_materialization(step, materialization, end)


def log_planned(context: dg.AssetExecutionContext, asset_keys: Iterable[dg.AssetKey], partition: str) -> None:
    """Log that the run planned to materialize a partition, which shows as failed unless the run then does so.

    A run with partition tags has such events from its launch; a run for a whole tier has none.
    """
    from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

    step_key = context.op_execution_context.get_step_execution_context().step.key
    for asset_key in asset_keys:
        planned = AssetMaterializationPlannedData(asset_key, partition=partition, partitions_subset=None)
        event = DagsterEvent.build_asset_materialization_planned_event(context.job_name, step_key, planned)
        context.instance.report_dagster_event(event, context.run.run_id, logging.DEBUG)


def query_events(instance: dg.DagsterInstance, statement: str, values: Mapping[str, Any]) -> Sequence[sa.Row[Any]]:
    """Return the rows of a query of Dagster's event log in PostgreSQL, over its kept connection; [] of other storages.

    Dagster reads one partition's newest event per call, or all events of an asset.
    """
    import sqlalchemy as sa
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or not hasattr(storage, "postgres_url"):
        return []
    with storage.index_connection() as connection:
        return connection.execute(sa.text(statement), dict(values)).all()


def load_location() -> dg.Definitions:
    """Return the definitions under the name by which every Dagster process loads them."""
    definitions: dg.Definitions = getattr(importlib.import_module(LOCATION), _ATTRIBUTE)
    return definitions


def enqueue(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    request: dg.RunRequest,
    more_tags: Mapping[str, str] | None = None,
) -> str:
    """Put a run into the queue and return its id."""
    import dagster as dg

    job = str(request.job_name)
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        run = instance.create_run_for_job(
            repository.get_job(job),
            run_config=request.run_config,
            tags={**request.tags, **(more_tags or {})},
            remote_job_origin=_remote_origin(repository.name, job),
            job_code_origin=_python_origin(job),
        )
    # The queue does not look at the workspace; the daemon has its own.
    instance.submit_run(run.run_id, workspace=None)  # type: ignore[arg-type]
    return run.run_id


def _remote_origin(repository: str, job: str) -> RemoteJobOrigin:
    """Return what the daemon reads: the location by its name in the workspace, and the job in it."""
    from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

    return RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), repository).get_job_origin(job)


def _python_origin(job: str) -> JobPythonOrigin:
    """Return what launchers on other machines read (Kubernetes, Celery): the module to import."""
    from dagster._core.code_pointer import ModuleCodePointer
    from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin

    pointer = ModuleCodePointer(LOCATION, _ATTRIBUTE)
    code = RepositoryPythonOrigin(sys.executable, pointer, entry_point=DEFAULT_DAGSTER_ENTRY_POINT)
    return JobPythonOrigin(job, code)


_PRELOADED: Final = "market_data_pipeline.runtime.preloaded"


def start_runs_warm() -> None:
    """Make this process fork its runs if it is a code server; do nothing in any other."""
    if sys.argv[1:3] != _CODE_SERVER:
        return
    from dagster._grpc.server import DagsterApiServer

    context = warm_runs()
    # The server was created before it loaded this module: a property takes precedence over the attribute it has set.
    DagsterApiServer._mp_ctx = property(lambda _: context, lambda *_: None)  # type: ignore[assignment]


def warm_runs() -> multiprocessing.context.ForkServerContext:
    """Return what starts processes that have imported what a run needs; it is ready when this returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    multiprocessing.forkserver.ensure_running()
    return context


def launched_run(packed: Mapping[str, Any]) -> str:
    """Return the id of the run that dagster-celery's message is about."""
    from dagster._grpc.types import ExecuteRunArgs
    from dagster._serdes import unpack_value

    return str(unpack_value(dict(packed), as_type=ExecuteRunArgs).run_id)


def execute_run(run_id: str) -> None:
    """Execute a run that has been launched, in this process, whose main thread this is; SIGINT interrupts the run.

    The instance is the one of the environment. What goes wrong is in the event log.
    """
    import dagster as dg
    from dagster._cli.api import _execute_run_command_body
    from dagster._utils.interrupts import capture_interrupts

    with capture_interrupts(), dg.DagsterInstance.get() as instance:
        _execute_run_command_body(run_id, instance, lambda _event: None, set_exit_code_on_failure=False)


def worker_health(*, is_lost: bool) -> CheckRunHealthResult:
    """Return what a launcher answers when run monitoring asks for the process of a run."""
    from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

    return CheckRunHealthResult(WorkerStatus.FAILED if is_lost else WorkerStatus.RUNNING)


def cannot_launch_yet(reason: str) -> Exception:
    """Return the error with which a launcher has a run put back into the queue, to be launched again later."""
    from dagster._core.errors import DagsterUserCodeUnreachableError

    return DagsterUserCodeUnreachableError(reason)


def use_engine(engine: sa.Engine, *storages: Any) -> None:
    """Let parts of an instance's PostgreSQL storage ask by `engine`, which is closed with the instance."""
    for storage in storages:
        storage._engine = engine
        storage.dispose = partial(_dispose, storage.dispose, engine)


def _dispose(part: Callable[[], None], engine: sa.Engine) -> None:
    part()
    engine.dispose()


def run_webserver(arguments: Sequence[str], guard: Callable[[ASGIApp], ASGIApp]) -> None:
    """Run `dagster-webserver` with `arguments` until it is ended, with its app inside `guard`."""
    from dagster_webserver import cli

    make = cli.create_app_from_workspace_process_context  # type: ignore[attr-defined]

    def guarded(*given: Any, **named: Any) -> ASGIApp:
        return guard(make(*given, **named))

    # The command looks the function up in its own module, and hands uvicorn whatever it returns.
    cli.create_app_from_workspace_process_context = guarded  # type: ignore[attr-defined, assignment]
    cli.cli(list(arguments), prog_name="dagster-webserver", auto_envvar_prefix="DAGSTER_WEBSERVER")


def code_server_answers(socket: Path, seconds: int = 5) -> bool:
    """Return whether the code server that listens on a socket answers within `seconds`."""
    from dagster._grpc.client import DagsterGrpcClient

    try:
        return bool(DagsterGrpcClient(socket=str(socket)).get_server_id(timeout=seconds))
    except Exception:  # noqa: BLE001 - whatever the reason is, it does not answer
        return False


# A daemon writes a heartbeat every 30 s. Dagster itself tolerates half an hour of silence, six times the objective for
# restoring a crashed scheduler (5 minutes); here a daemon that misses three is down.
HEARTBEAT_TOLERANCE_SECONDS: Final = 100.0

_CONNECT_SECONDS: Final = 3  # a server that is up answers in milliseconds; health checks give up soon
_REACHED_SECONDS: Final = 1.0  # the queries behind one answer check the server only once
_STATEMENT_TIMEOUT_MS: Final = 5_000  # like the API's own statements
_RECYCLE_SECONDS: Final = 300  # of a pooled connection; each of the three storages keeps one
_MORE_CONNECTIONS: Final = 4  # for concurrent queries
_RUN_ID_LENGTH: Final = 36
_SEARCHED: Final = 1000  # newest runs, for the beginning of an id: about eight days of schedules
_SENSOR_SECONDS: Final = 30  # between two ticks of a sensor that does not say, Dagster's default
_SECOND_DAEMON: Final = "market_data/second_daemon"  # of Dagster's store of cursors
_NOTED_SECONDS: Final = 120.0  # what was noted is repeated every 15 s as long as it is so
_LONGEST_MESSAGE: Final = 300  # characters of a run's failure; the rest is in Dagster's UI


class StoredDagsterState:
    """The state of the instance whose `dagster.yaml` is in `home`; opened at first use, and shared by threads.

    `reports.dagster_state.DagsterState` documents the methods. `dagster.yaml` takes the storage's URL from the
    environment, where `postgres_url` is set if there is none.
    """

    def __init__(self, home: Path, postgres_url: str) -> None:
        self._home = home
        self._postgres_url = postgres_url
        self._instance: dg.DagsterInstance | None = None
        self._lock = threading.Lock()
        self._reached = -math.inf

    def open(self) -> None:
        """Connect now, which takes a second, rather than at the first query."""
        self._read(lambda _instance: None)

    def runs(self, limit: int, jobs: tuple[str, ...] = ()) -> tuple[Run, ...]:
        """Return the newest `limit` runs, newest first; only those of `jobs` if any are named."""
        return self._read(lambda instance: _runs(instance, limit, jobs))

    def run(self, beginning: str) -> Run | None:
        """Return the newest run whose id begins with `beginning`; None when there is none."""
        return self._read(lambda instance: _run_called(instance, beginning))

    def daemons(self) -> tuple[Daemon, ...]:
        """Return the daemons that the instance needs."""
        return self._read(_daemons)

    def schedules(self) -> tuple[Schedule, ...]:
        """Return the tiers' schedules."""
        return self._read(_schedules)

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Return when each schedule and sensor was evaluated."""
        return self._read(_evaluations)

    def beats(self) -> dict[str, tuple[str, float]]:
        """Return the last heartbeat of each kind of daemon: the process that sent it, by Dagster's id, and when."""
        return self._read(
            lambda instance: {
                kind: (str(beat.daemon_id), beat.timestamp) for kind, beat in instance.get_daemon_heartbeats().items()
            }
        )

    def second_daemon(self) -> str | None:
        """Return which other daemon serves the storage, as `note_second_daemon` said lately; None for none."""
        noted = self._read(lambda instance: instance.run_storage.get_cursor_values({_SECOND_DAEMON}))
        at, _, which = noted.get(_SECOND_DAEMON, "").partition(" ")
        return which if which and time.time() - float(at) < _NOTED_SECONDS else None

    def note_second_daemon(self, which: str) -> None:
        """Note that another daemon serves the storage too, or with an empty text that none does any more."""
        noted = f"{time.time():.0f} {which}"
        self._read(lambda instance: instance.run_storage.set_cursor_values({_SECOND_DAEMON: noted}))

    def close(self) -> None:
        """Close the connections."""
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
        except Exception as error:  # whatever its storage plug-in raises, the state cannot be read
            if kept is None:
                raise DatabaseUnavailableError(f"Dagster's storage cannot be read: {type(error).__name__}.") from error
        # The server may have been restarted and have ended the kept connections.
        self.close()
        return self._read(question)

    def _refuse_at_once(self) -> None:
        """Raise when the storage's server cannot be reached: dagster-postgres would retry for 11 s."""
        from market_data_pipeline.store.connection import open_connection

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
                open_connection(url, connect_timeout=_CONNECT_SECONDS).close()
            except DatabaseUnavailableError:  # its message names the server, which does not belong in an answer
                raise DatabaseUnavailableError("Dagster's storage cannot be reached.") from None
        self._reached = time.monotonic()

    def _open(self) -> dg.DagsterInstance:
        with self._lock:
            if self._instance is None:
                if not (self._home / "dagster.yaml").is_file():
                    # Dagster would silently create an empty SQLite instance there.
                    raise DatabaseUnavailableError("There is no dagster.yaml in DAGSTER_HOME.")
                if not os.environ.get("DAGSTER_POSTGRES_URL"):  # an empty value counts as unset, as in the settings
                    os.environ["DAGSTER_POSTGRES_URL"] = self._postgres_url
                os.environ.update(STORAGE_ENVIRONMENT)
                import dagster as dg

                self._instance = dg.DagsterInstance.from_config(str(self._home))
                # Otherwise each of a dozen statements behind one answer would open a connection.
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
        recent = instance.get_run_records(limit=_SEARCHED)
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
    """Return the first line of a failed run's error, without the stack trace; None when it did not fail."""
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


def _evaluations(instance: dg.DagsterInstance) -> tuple[Evaluation, ...]:
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._utils.schedules import get_next_cron_tick

    states = {
        (state.instigator_type, state.name): state
        for state in instance.all_instigator_state()
        if state.origin.repository_origin.code_location_origin.location_name == LOCATION
    }
    found = []
    for name in SENSORS:
        state = states.get((InstigatorType.SENSOR, name))
        evaluated, attempted = _last_ticks(instance, state) if state else (None, None)
        seconds = getattr(state and state.instigator_data, "min_interval", None) or _SENSOR_SECONDS
        due = evaluated + timedelta(seconds=seconds) if evaluated else None
        running = state is None or state.is_running
        found.append(Evaluation(name, f"every {seconds} s", running, evaluated, attempted, due))
    for name, (cron, zone) in SCHEDULES.items():
        state = states.get((InstigatorType.SCHEDULE, name))
        evaluated, attempted = _last_ticks(instance, state) if state else (None, None)
        # Without a tick yet, the first one is due after the daemon began to evaluate the schedule.
        since = evaluated or _from_epoch(getattr(state and state.instigator_data, "start_timestamp", None))
        # A tick bears its scheduled minute, which Dagster would take for the next one.
        due = get_next_cron_tick(cron, since + timedelta(seconds=1), zone).astimezone(UTC) if since else None
        running = state is None or state.is_running
        found.append(Evaluation(name, f"{cron} {zone}", running, evaluated, attempted, due))
    return tuple(found)


def _last_ticks(instance: dg.DagsterInstance, state: InstigatorState) -> tuple[datetime | None, datetime | None]:
    """Return the instants of the last tick that was evaluated and of the last one, which may be under way or failed."""
    from dagster._core.scheduler.instigation import TickStatus

    origin, selector, good = state.instigator_origin_id, state.selector_id, [TickStatus.SUCCESS, TickStatus.SKIPPED]
    last = instance.get_ticks(origin, selector, limit=1)
    evaluated = (
        last if last and last[0].status in good else instance.get_ticks(origin, selector, limit=1, statuses=good)
    )
    return _from_epoch(evaluated[0].timestamp if evaluated else None), _from_epoch(last[0].timestamp if last else None)


def _from_epoch(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
