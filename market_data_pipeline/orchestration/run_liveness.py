"""Lost runs: every run is known to be alive, or it is failed; run retries then start it again.

Dagster's code server reports a run process that dies, unless it dies too: after a power cut, or when the whole service
is killed, such a run stays `STARTED`, and its tier's schedule would wait for it indefinitely. Run monitoring
(https://docs.dagster.io/deployment/execution/run-monitoring) cannot help, because the default launcher cannot report a
run's health. So the executor of all jobs (`run_executor`) notes the run's process on the run, and keeps a lock of
PostgreSQL until the process ends, after the run's last event. No crash leaves the lock behind, and a statement every
ten seconds shows that the process is not merely there but running.

Add here: how a run shows that it is alive, and who says that it is not. Keep out: a time limit for runs that work,
which is Dagster's (`dagster/max_runtime`, `max_runtime_seconds`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import weakref
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg

from market_data_pipeline.process_identity import is_alive, pid_namespace, process_started, start_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psutil

    from market_data_pipeline.store.held_lock import Holder

# The UI hides tags that begin with a dot.
_PROCESS_TAG: Final = ".dagster/market_data_process"
# Which run looks lost and since when, ISO 8601; a retry inherits the tags of the run that it repeats.
_SUSPECT_TAG: Final = ".dagster/market_data_suspect"

# The lock's holder sends a statement every ten seconds: a process that did not for so long is stopped, not slow.
_SILENT_SECONDS: Final = 60.0
# Looks lost at two looks this far apart: after a suspended machine wakes up, its processes have had time for a pulse,
# and after a restart of the database, for taking their lock again.
_SUSPECT_FOR: Final = timedelta(seconds=40)
_REGISTERED_WITHIN: Final = timedelta(seconds=60)  # milliseconds after its start a run has noted its process
_QUEUED_WITHIN: Final = timedelta(minutes=5)  # a run is queued milliseconds after it is created
ENDED_SINCE: Final = timedelta(seconds=30)  # a run's process ends within a second of the run
_LOOKED_AT: Final = 100  # runs of one status at one look

_SPACE: Final = "market_data.run"  # of the locks


class RunProcess(NamedTuple):
    """The process of a run, as its tag says.

    Attributes:
        run_id: of the run, for a retry inherits tags.
        host: its host name.
        namespace: `pid_namespace` there.
        pid: there.
        started: its `start_time`.
        own: whether it exists only for this run, and not for a notebook or a test that executes it.
    """

    run_id: str
    host: str
    namespace: str
    pid: int
    started: str
    own: bool

    @classmethod
    def of_this(cls, run_id: str) -> RunProcess:
        """Return this process as that of a run."""
        own = multiprocessing.parent_process() is not None or "execute_run" in sys.argv[:4]
        pid = os.getpid()
        return cls(run_id, socket.gethostname(), pid_namespace(), pid, start_time(pid) or "", own)

    @classmethod
    def of_run(cls, run: dg.DagsterRun) -> RunProcess | None:
        """Return the process of a run; None when it has not noted one."""
        with suppress(KeyError, ValueError, TypeError):
            found = cls(*json.loads(run.tags[_PROCESS_TAG]))
            return found if found.run_id == run.run_id else None
        return None

    @property
    def is_here(self) -> bool:
        """Return whether this process can see it."""
        return bool(self.namespace) and self.namespace == pid_namespace()

    def find(self) -> psutil.Process | None:
        """Return the process if it runs here."""
        found = process_started(self.pid, self.started) if self.is_here else None
        return found if found is not None and is_alive(found) else None


class _Registered(dg.Executor):
    """An executor that notes the run's process and holds the run's lock from its first step on."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> Any:
        """Return what the inner executor says."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """Return what the inner executor says."""
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the plan; the lock outlives it, because the run's last event is stored afterwards."""
        held = weakref.finalize(self, register(plan_context.instance, plan_context.run_id).close)
        held.atexit = False  # the end of the process frees it
        yield from self._inner.execute(plan_context, execution_plan)
        # A run that was given up while its host could not be reached has been retried: it must not report success now.
        # Dagster takes the interrupt of a run that has ended for no news.
        run = plan_context.instance.get_run_by_id(plan_context.run_id)
        if run is not None and run.is_finished:
            raise KeyboardInterrupt


@dg.executor(name="in_process", config_schema=dg.in_process_executor.config_schema)  # type: ignore[call-overload,untyped-decorator]
def run_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Execute all steps in the run's process, which is known to be alive meanwhile."""
    return _Registered(dg.in_process_executor.executor_creation_fn(context))  # type: ignore[misc]


def register(instance: dg.DagsterInstance, run_id: str) -> ExitStack:
    """Note this process on a run and hold the run's lock until the returned stack is closed, or the process ends.

    Where Dagster's storage is not PostgreSQL, there is no lock.

    Raises:
        DatabaseUnavailableError, DatabaseBusyError: there is no connection to PostgreSQL.
    """
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.held_lock import held_lock

    stack = ExitStack()
    if url := storage_url(instance):
        lent = engine(url, application_name="market-data-run", pool_size=1)
        stack.callback(lent.dispose)
        stack.enter_context(held_lock(lent, _SPACE, run_id))
    instance.add_run_tags(run_id, {_PROCESS_TAG: json.dumps(RunProcess.of_this(run_id))})
    return stack


def fail_lost_runs(instance: dg.DagsterInstance, *, starting: bool = False) -> list[str]:
    """Mark as failed the runs whose process is gone or stopped, or that never began; return their ids.

    Their slots in the pools are freed, and processes that outlived their run are ended.

    Args:
        instance: Dagster's storage.
        starting: whether no daemon and no code server runs in this project yet: what one left is lost without a second
            look.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached, so nothing is known about any run.
    """
    now = datetime.now(UTC)
    never_queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], created_before=now - _QUEUED_WITHIN)
    lost = [
        (record.dagster_run, "It was created but never queued: the process that created it is gone.")
        for record in instance.get_run_records(never_queued, limit=_LOOKED_AT)
    ]
    if starting and isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        begun = _records(instance, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING)
        lost += [(record.dagster_run, "It was interrupted before it began or ended.") for record in begun]
    started = _records(instance, dg.DagsterRunStatus.STARTED)
    locks = _locks(instance, [record.dagster_run.run_id for record in started])
    for record in started:
        if reason := _why_lost(instance, record, locks, now, starting):
            lost.append((record.dagster_run, reason))
    failed = [run.run_id for run, message in lost if _end(instance, run, message)]
    end_leftovers(instance, ENDED_SINCE)
    return failed


def fail_if_lost(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Mark one started run as failed if `fail_lost_runs` would; return whether it was lost.

    Raises:
        DatabaseUnavailableError: PostgreSQL cannot be reached, so nothing is known about any run.
    """
    record = instance.get_run_record_by_id(run_id)
    if record is None or record.dagster_run.status is not dg.DagsterRunStatus.STARTED:
        return False
    reason = _why_lost(instance, record, _locks(instance, [run_id]), datetime.now(UTC), starting=False)
    return reason is not None and _end(instance, record.dagster_run, reason)


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> bool:
    """Mark a lost run as failed, or as cancelled if that was requested; return False if it has moved on meanwhile."""
    current = instance.get_run_by_id(run.run_id)
    if current is None or current.status != run.status:
        return False
    if current.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(current, message)
    else:
        instance.report_run_failed(current, message)
    # Run monitoring would free them within a minute; until then three lost runs would block the whole pool.
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    _kill(current)
    return True


def _why_lost(
    instance: dg.DagsterInstance,
    record: dg.RunRecord,
    locks: Mapping[str, Holder] | None,
    now: datetime,
    starting: bool,
) -> str | None:
    """Return why a started run is lost; None when it is alive, or has to be looked at once more.

    `locks` are those of the runs that are held; None where there are none.
    """
    run = record.dagster_run
    process = RunProcess.of_run(run)
    if process is None:
        began = datetime.fromtimestamp(record.start_time or 0.0, UTC)
        late = starting or began < now - _REGISTERED_WITHIN
        return "Its process is gone: it ended before its first step." if late else None
    suspicion = None
    holder = (locks or {}).get(run.run_id)
    is_silent = holder is not None and (holder.silent_for or 0.0) > _SILENT_SECONDS
    if process.own and process.is_here:
        if process.find() is None:
            return f"Its process {process.pid} is gone."
        if is_silent and holder:
            suspicion = f"Its process {process.pid} is not running: no sign of life for {holder.silent_for:.0f} s."
    elif process.own and is_silent and holder:  # the server notices later that its host is gone
        suspicion = f"Nothing has been heard from its process on {process.host} for {holder.silent_for:.0f} s."
    elif locks is not None and run.run_id not in locks:
        suspicion = f"Its process on {process.host} is gone: it no longer holds its lock in the database."
        if starting and process.host == socket.gethostname():  # the machine was restarted
            return suspicion
    return _confirmed(instance, run, suspicion, now)


def _confirmed(instance: dg.DagsterInstance, run: dg.DagsterRun, suspicion: str | None, now: datetime) -> str | None:
    """Return a suspicion that an earlier look had too; note or forget it otherwise."""
    whose, _, since = run.tags.get(_SUSPECT_TAG, "").partition(" ")
    if whose != run.run_id:
        if suspicion:
            instance.add_run_tags(run.run_id, {_SUSPECT_TAG: f"{run.run_id} {now.isoformat()}"})
        return None
    if suspicion is None:
        instance.add_run_tags(run.run_id, {_SUSPECT_TAG: ""})
        return None
    return suspicion if datetime.fromisoformat(since) < now - _SUSPECT_FOR else None


def _locks(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> dict[str, Holder] | None:
    """Return the runs' locks that are held; None where Dagster's storage is not PostgreSQL, and there are none."""
    from market_data_pipeline.store.connection import open_connection
    from market_data_pipeline.store.held_lock import holders

    if (url := storage_url(instance)) is None:
        return None
    if not run_ids:
        return {}
    with open_connection(url, autocommit=True) as connection:
        return holders(connection, _SPACE, run_ids)


def interrupt_cancelled(instance: dg.DagsterInstance, before: set[str]) -> None:
    """Let the runs of this machine stop that a user terminates: they end as cancelled after their next commit.

    `before` holds the ids of those that were interrupted by an earlier call, and gets the new ones.
    """
    for record in _records(instance, dg.DagsterRunStatus.CANCELING):
        run = record.dagster_run
        if run.run_id not in before and interrupt(run):
            before.add(run.run_id)


def interrupt(run: dg.DagsterRun) -> bool:
    """Send SIGINT to a run's process; return False if it does not run here or does not exist only for the run."""
    import psutil

    process = RunProcess.of_run(run)
    if process is None or not process.own or (found := process.find()) is None:
        return False
    with suppress(psutil.NoSuchProcess):
        found.send_signal(signal.SIGINT)
    return True


def end_leftovers(instance: dg.DagsterInstance, patience: timedelta) -> None:
    """End the processes of runs that were failed or cancelled, for example after their largest runtime.

    Args:
        instance: Dagster's storage.
        patience: how long a run's process may take to end by itself.
    """
    now = datetime.now(UTC)
    ended = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED], updated_after=now - timedelta(hours=1)
    )
    for record in instance.get_run_records(ended, limit=_LOOKED_AT):
        if datetime.fromtimestamp(record.end_time or 0.0, UTC) <= now - patience:
            _kill(record.dagster_run)


def _kill(run: dg.DagsterRun) -> None:
    """Kill a run's process, if it runs here and exists only for the run."""
    import psutil

    process = RunProcess.of_run(run)
    if process is not None and process.own and (found := process.find()) is not None:
        with suppress(psutil.NoSuchProcess):
            found.kill()


def storage_url(instance: dg.DagsterInstance) -> str | None:
    """Return the URL of Dagster's storage; None where that is not PostgreSQL."""
    return getattr(instance.run_storage, "postgres_url", None)


def _records(instance: dg.DagsterInstance, *statuses: dg.DagsterRunStatus) -> Sequence[dg.RunRecord]:
    return instance.get_run_records(dg.RunsFilter(statuses=list(statuses)), limit=_LOOKED_AT)
