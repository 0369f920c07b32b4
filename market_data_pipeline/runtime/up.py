"""The order in which a project's parts are started.

`up` takes a machine from nothing to fresh features, and `backfill` only loads; `runtime.down` stops what either left.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.runtime.connection_budget import too_few_connections
from market_data_pipeline.runtime.console import command_name, print_error
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.daemon import CHECK_SECONDS, Daemon
from market_data_pipeline.runtime.daemon_watch import DaemonWatch
from market_data_pipeline.runtime.database_watch import DatabaseWatch
from market_data_pipeline.runtime.evaluation_watch import EvaluationWatch
from market_data_pipeline.runtime.load import (
    Load,
    dagster_instance,
    expected_series,
    load,
    nothing_is_missing,
    summarise,
    with_source,
)
from market_data_pipeline.runtime.log_files import bound_logs
from market_data_pipeline.runtime.processes import (
    Processes,
    answers,
    check_port,
    commands,
    other_commands,
    wait_for_answer,
)
from market_data_pipeline.runtime.supervision import Background, Service
from market_data_pipeline.settings import process_environment
from market_data_pipeline.settings.addresses import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg
    import sqlalchemy as sa
    from rich.console import Console

    from market_data_pipeline.settings import Settings


def run_up(settings: Settings, once: bool) -> int:
    """Start everything, load what is missing, and stay until Ctrl-C; with `once` exit when the load is done.

    Returns:
        0 when every series is complete, else 1.

    Raises:
        UsageError: another `up` is running, or a port is taken.
        PipelineError: a part does not start; what had been started is ended.
    """
    began = time.monotonic()
    console = screen()
    processes = Processes(settings.state_dir, "up")
    with _only_one(settings), until_terminated(), processes.recorded(), ExitStack() as stack:
        if not once:
            check_port(settings.ui_host, settings.ui_port, "the Dagster UI", "MARKET_DATA_UI_PORT")
            check_port(settings.api_host, settings.api_port, "the read API", "MARKET_DATA_API_PORT")
        engine = prepare(settings, console, stack)
        instance = stack.enter_context(dagster_instance(settings, engine))
        daemon = stack.enter_context(Daemon(settings, console, processes, instance, stays=not once))
        code = 0
        if complete := nothing_is_missing(settings, engine, instance):
            summarise(engine, console, expected_series(engine, Load()), (), None)
        if once and not complete:
            _check_vendor(settings)
        if complete and once:
            daemon.clean_up()
        else:
            daemon.own()
        if not once:
            if warning := too_few_connections(settings):
                print_error(warning)
            _start_servers(daemon, settings)
        if not complete:
            code = load(engine, instance, console, Load(), daemon.check)
        if once:
            console.print(f"Done after {time.monotonic() - began:.1f} s.")
            console.print(
                f"Next: make run opens the Dagster UI and the read API; {command_name()} staleness shows every series."
            )
            return code
        _announce(settings, daemon, console, time.monotonic() - began)
        _start_first_quality_job(settings, instance, console)
        logs = settings.state_dir / "logs"
        watches = (
            DatabaseWatch(settings, console.print).check,
            EvaluationWatch(settings, daemon.state, daemon.restart, console.print).check,
            DaemonWatch(settings, daemon.state, daemon.pid, console.print).check,
            lambda: bound_logs(logs),
        )
        background = [Background(watch) for watch in watches]
        while True:
            daemon.check()
            for each in background:
                each.check()
            time.sleep(CHECK_SECONDS)


def run_backfill(settings: Settings, request: Load) -> int:
    """Load what is missing through Dagster, with a daemon of its own unless one is running.

    Returns:
        0 when every requested series is complete, else 1.
    """
    console = screen()
    processes = Processes(settings.state_dir, "backfill")
    with until_terminated(), processes.recorded(), ExitStack() as stack:
        engine = prepare(settings, console, stack)
        request = with_source(settings, engine, console, request)
        instance = stack.enter_context(dagster_instance(settings, engine))
        daemon = stack.enter_context(Daemon(settings, console, processes, instance))
        _check_vendor(settings)
        code = load(engine, instance, console, request, daemon.share)
        daemon.wait_for_guests()
        return code


def prepare(settings: Settings, console: Console, stack: ExitStack) -> sa.Engine:
    """Bring up what a load needs: database, schema, universe and vendor; return an engine that `stack` disposes of."""
    from market_data_pipeline.runtime.database import migrate_database
    from market_data_pipeline.runtime.sandbox import running_sandbox, stop_sandbox, vendor_access
    from market_data_pipeline.store.connection import engine
    from market_data_pipeline.store.universe import ensure_universe

    applied = migrate_database(settings)
    made = engine(settings.database_url, as_of=settings.as_of, pool_size=2)
    stack.callback(made.dispose)
    ensure_universe(settings, made)
    where = "embedded PostgreSQL" if settings.embedded_database else "PostgreSQL of DATABASE_URL"
    console.print(f"Database  {where}" + (f", {len(applied)} migrations applied" if applied else ""))
    if settings.uses_sandbox and running_sandbox(settings) is None:
        stack.callback(lambda: other_commands(settings.state_dir) or stop_sandbox(settings))
    base_url = vendor_access(settings).base_url
    if settings.uses_sandbox:
        source = "recorded bars" if settings.sandbox_replay else "synthetic bars"
        console.print(f"Vendor    sandbox with {source} at {base_url} (no POLYGON_API_KEY is set)")
    else:
        console.print(f"Vendor    {base_url}, plan {settings.plan}")
    return made


def _check_vendor(settings: Settings) -> None:
    """Connect to the vendor, so that a wrong address is reported before anything is started.

    Raises:
        VendorUnreachableError: no connection can be made.
    """
    from market_data_pipeline.polygon.transport import Transport
    from market_data_pipeline.runtime.sandbox import vendor_access

    vendor = vendor_access(settings)
    Transport(vendor.base_url, vendor.key).connect("Nothing was started")


def _start_servers(daemon: Daemon, settings: Settings) -> None:
    ui = [sys.executable, "-m", "market_data_pipeline.runtime.webserver", "--workspace", str(daemon.write_workspace())]
    api = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
    root, variables = settings.project_root, process_environment(settings, vendor_key=False)
    started = daemon.processes.start("dagster-webserver", ui, cwd=root, environment=variables)
    serving = daemon.processes.start("read-api", api, cwd=root, environment=variables)
    url = f"{settings.local_ui_url}/server_info"
    no_ui = "Dagster's UI does not answer"
    daemon.supervisor.keep(Service(started, no_ui, lambda: answers(url), daemon.write_workspace))
    docs = f"{settings.local_api_url}/docs"
    daemon.supervisor.keep(Service(serving, "The read API and its pages do not answer", lambda: answers(docs)))


def _announce(settings: Settings, daemon: Daemon, console: Console, seconds: float) -> None:
    ui, api = settings.local_ui_url, settings.local_api_url
    wait_for_answer(f"{ui}/server_info", daemon.check)
    wait_for_answer(f"{api}/docs", daemon.check)
    console.print()
    console.print(f"Ready after {seconds:.1f} s.")
    console.print(f"Dagster UI  {ui}/assets")
    console.print(f"Read API    {api}/docs")
    console.print(f"Status      {api}/ or {command_name()} staleness")
    if not is_loopback(settings.ui_host):
        console.print("The Dagster UI has no users, and other machines can reach it: see docs/proxies.md.")
    console.print("Ctrl-C stops everything but PostgreSQL; make down stops that too.")


def _start_first_quality_job(settings: Settings, instance: dg.DagsterInstance, console: Console) -> None:
    """Start the first quality job, so that the checks of the stored tables have results before its nightly run."""
    from market_data_pipeline.orchestration.runs import submit_first_quality

    if run_id := submit_first_quality(instance):
        console.print(f"Quality     first check of the stored tables: {settings.local_ui_url}/runs/{run_id}")


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the project's lock, so that there is one `up` at a time.

    Raises:
        UsageError: another `up` holds it.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.state_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            which = "".join(f" (process {other.pid})" for other in commands(settings.state_dir, "up"))
            raise UsageError(
                f"market-data up is already running in this project{which}; the Dagster UI is at "
                f"{settings.local_ui_url}. Stop it with: {command_name()} down"
            ) from None
        yield


@contextmanager
def until_terminated() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does; a second signal does not disturb the clean-up.

    SIGINT is handled too, because a shell makes background commands ignore it.
    """

    def interrupt(number: int, _: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGHUP:  # there is no reader any more, and writing to a closed terminal fails
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in (1, 2):
                os.dup2(nowhere, output)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
