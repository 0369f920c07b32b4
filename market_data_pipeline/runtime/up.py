"""Start everything, load the universe through Dagster, and end it again.

`up` brings a machine from nothing to fresh features; `backfill` does only the loading; `down` ends what either left.

Add here: the order in which parts are started. Keep out: how a part works (its own room), and the runs (loading).
"""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.runtime.console import command
from market_data_pipeline.runtime.console import console as screen
from market_data_pipeline.runtime.daemon import LOOK_SECONDS, Daemon, program
from market_data_pipeline.runtime.database_watch import DatabaseWatch
from market_data_pipeline.runtime.env_file import write_env
from market_data_pipeline.runtime.load import (
    Load,
    dagster_instance,
    environment,
    expected_series,
    load,
    nothing_is_missing,
    summarise,
)
from market_data_pipeline.runtime.process_records import families, is_alive, others
from market_data_pipeline.runtime.processes import Processes, check_port, end_trees, wait_for_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import dagster as dg
    import sqlalchemy as sa
    from rich.console import Console

    from market_data_pipeline.domain.series import Timeframe
    from market_data_pipeline.settings import Settings

# A command has to cancel its runs (twice 10 s at most), and to end its processes (15 s and 5 s).
_DOWN_SECONDS: Final = 45.0


def run_up(settings: Settings, once: bool) -> int:
    """Start everything, load what is missing, and stay until Ctrl-C; with `once` end when the loading is done.

    Returns:
        0 when every series is complete, 1 when one failed.

    Raises:
        UsageError: another `up` runs, or a port is taken.
        PipelineError: a part does not start; what had been started is ended.
    """
    began = time.monotonic()
    console = screen()
    processes = Processes(settings.state_dir, "up")
    with _only_one(settings), until_terminated(), processes.recorded(), ExitStack() as stack:
        if not once:
            check_port(settings.ui_port, "the Dagster UI", "MARKET_DATA_UI_PORT")
            check_port(settings.api_port, "the read API", "MARKET_DATA_API_PORT")
        engine = prepare(settings, console, stack)
        instance = stack.enter_context(dagster_instance(settings, engine))
        daemon = stack.enter_context(Daemon(settings, console, processes, instance, reloads=not once))
        code = 0
        if whole := nothing_is_missing(settings, engine, instance):
            summarise(engine, console, expected_series(engine, Load()), (), 0.0)
        if once and not whole:
            _check_vendor(settings)
        write_env()  # what is only in the environment works
        if whole and once:
            daemon.mend()
        else:
            daemon.own()
        if not once:
            _start_servers(daemon, settings)
        if not whole:
            code = load(engine, instance, console, Load(), daemon.check)
        if once:
            console.print(f"Done after {time.monotonic() - began:.1f} s.")
            console.print(
                f"Next: make run opens the Dagster UI and the read API; {command()} staleness shows every series."
            )
            return code
        _announce(settings, daemon, console, time.monotonic() - began)
        _check_what_is_held(settings, instance, console)
        watch = DatabaseWatch(settings, console.print)
        while True:
            daemon.check()
            watch.look()
            time.sleep(LOOK_SECONDS)


def run_backfill(
    settings: Settings,
    symbols: Sequence[str] = (),
    timeframes: Sequence[Timeframe] = (),
    days: int | None = None,
    full: bool = False,
) -> int:
    """Load what is missing through Dagster, with a daemon of its own unless one is running.

    Args:
        settings: of the project.
        symbols: tracked symbols, all when empty.
        timeframes: all when empty; a resampled one brings `5m` along.
        days: calendar days of history, instead of the settings'.
        full: fetch again what is held.

    Returns:
        0 when every series asked for is complete, 1 when one failed.
    """
    console = screen()
    processes = Processes(settings.state_dir, "backfill")
    with until_terminated(), processes.recorded(), ExitStack() as stack:
        engine = prepare(settings, console, stack)
        instance = stack.enter_context(dagster_instance(settings, engine))
        daemon = stack.enter_context(Daemon(settings, console, processes, instance))
        _check_vendor(settings)
        write_env()
        code = load(engine, instance, console, Load(symbols, timeframes, days, full), daemon.share)
        daemon.wait_for_guests()
        return code


def run_down(settings: Settings) -> int:
    """End every `up` and `backfill` with all they started, the sandbox, and the embedded PostgreSQL; say what ended."""
    console = screen()
    found = [family for family in families(settings.state_dir) if family.processes]
    # The commands themselves end their children in good order; what outlived a killed one is ended here.
    end_trees((process for family in found for process in family.processes if process.pid == family.pid), _DOWN_SECONDS)
    end_trees(process for family in found for process in family.processes if is_alive(process))
    ended = [f"market-data {family.name}" for family in found]
    for family in families(settings.state_dir):
        family.file.unlink(missing_ok=True)
    from market_data_pipeline.runtime.sandbox import stop_sandbox

    if stop_sandbox(settings):
        ended.append("sandbox")
    if settings.embedded_database:
        from market_data_pipeline.runtime.postgres import EmbeddedPostgres

        server = EmbeddedPostgres.of(settings)
        if server.is_running():
            server.stop()
            ended.append("PostgreSQL")
    console.print(f"Stopped: {', '.join(ended)}." if ended else "Nothing was running.")
    return 0


def prepare(settings: Settings, console: Console, stack: ExitStack) -> sa.Engine:
    """Bring up what the work stands on: database, schema, universe, vendor."""
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
        stack.callback(lambda: others(settings.state_dir) or stop_sandbox(settings))
    base_url = vendor_access(settings).base_url
    if settings.uses_sandbox:
        source = "recorded bars" if settings.sandbox_replay else "made-up bars"
        console.print(f"Vendor    sandbox with {source} at {base_url} (no POLYGON_API_KEY is set)")
    else:
        console.print(f"Vendor    {base_url}, plan {settings.plan}")
    return made


def _check_vendor(settings: Settings) -> None:
    """Make a connection to the vendor, so that a wrong address is known before anything is started.

    Raises:
        VendorUnreachableError: it cannot be made.
    """
    from market_data_pipeline.polygon.transport import Transport
    from market_data_pipeline.runtime.sandbox import vendor_access

    vendor = vendor_access(settings)
    Transport(vendor.base_url, vendor.key).connect("Nothing was begun")


def _start_servers(daemon: Daemon, settings: Settings) -> None:
    ui = [program("dagster-webserver"), "--host", "127.0.0.1", "--port", str(settings.ui_port)]
    ui += ["--workspace", str(daemon.workspace)]
    api = [sys.executable, "-m", "market_data_pipeline.runtime.api"]
    root, variables = settings.project_root, environment(settings)
    daemon.processes.start("dagster-webserver", ui, cwd=root, environment=variables)
    daemon.processes.start("read-api", api, cwd=root, environment=variables)


def _announce(settings: Settings, daemon: Daemon, console: Console, seconds: float) -> None:
    ui, api = f"http://127.0.0.1:{settings.ui_port}", f"http://127.0.0.1:{settings.api_port}"
    wait_for_page(f"{ui}/server_info", daemon.check)
    wait_for_page(f"{api}/docs", daemon.check)
    console.print()
    console.print(f"Ready after {seconds:.1f} s.")
    console.print(f"Dagster UI  {ui}/assets")
    console.print(f"Read API    {api}/docs")
    console.print(f"Status      {api}/ or {command()} staleness")
    console.print("Ctrl-C stops everything but PostgreSQL; make down stops that too.")


def _check_what_is_held(settings: Settings, instance: dg.DagsterInstance, console: Console) -> None:
    """Have the stored tables checked once, so that their rules do not stand there unanswered until the night."""
    from market_data_pipeline.orchestration.runs import submit_first_quality

    if run_id := submit_first_quality(instance):
        console.print(
            f"Quality     being checked for the first time: http://127.0.0.1:{settings.ui_port}/runs/{run_id}"
        )


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the project's lock, so that there is one `up` at a time.

    Raises:
        UsageError: another one holds it.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.state_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            which = "".join(f" (process {family.pid})" for family in families(settings.state_dir, "up"))
            raise UsageError(
                f"market-data up is already running in this project{which}; the Dagster UI is at "
                f"http://127.0.0.1:{settings.ui_port}. Stop it with: {command()} down"
            ) from None
        yield


@contextmanager
def until_terminated() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does; a second one does not disturb the ending.

    Ctrl-C itself is set as well: a shell starts what runs in its background with SIGINT ignored.
    """

    def interrupt(*_: object) -> NoReturn:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
