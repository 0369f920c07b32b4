"""Start everything, load the universe through Dagster, and end it again.

`up` brings a machine from nothing to fresh features; `backfill` does only the loading; `down` ends what either left.

Add here: the order in which parts are started. Keep out: how a part works (its own room), and the runs (loading).
"""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from market_data_pipeline.domain.failures import UsageError
from market_data_pipeline.operations.loading import (
    Load,
    dagster_instance,
    environment,
    expected_series,
    load,
    nothing_is_missing,
    summarise,
)
from market_data_pipeline.operations.processes import (
    Processes,
    check_port,
    end_trees,
    is_alive,
    read_record,
    wait_for_page,
)
from market_data_pipeline.operations.screen import console as screen
from market_data_pipeline.project import LOCATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy as sa
    from rich.console import Console

    from market_data_pipeline.domain.series import Timeframe
    from market_data_pipeline.settings import Settings

_LOOK_SECONDS: Final = 0.5  # between two looks at the children while nothing else is to be done


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
    with _only_one(settings), _until_terminated(), ExitStack() as stack:
        if not once:
            check_port(settings.ui_port, "the Dagster UI", "MARKET_DATA_UI_PORT")
            check_port(settings.api_port, "the read API", "MARKET_DATA_API_PORT")
        engine = _prepare(settings, console, stack)
        instance = stack.enter_context(dagster_instance(settings, engine))
        processes = _processes(settings)
        stack.callback(_stop, processes, console)
        code = 0
        if whole := nothing_is_missing(settings, engine, instance):
            summarise(engine, console, expected_series(engine, Load()), (), 0.0)
        if not (whole and once):
            _start_dagster(processes, settings)
        if not once:
            _start_servers(processes, settings)
        if not whole:
            code = load(engine, instance, console, Load(), processes.check)
        if once:
            console.print(f"Done after {time.monotonic() - began:.1f} s.")
            console.print("Next: make run opens the UI and the read API; market-data staleness shows every series.")
            return code
        _announce(settings, processes, console, time.monotonic() - began)
        while True:
            processes.check()
            time.sleep(_LOOK_SECONDS)


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
    with _until_terminated(), ExitStack() as stack:
        engine = _prepare(settings, console, stack)
        instance = stack.enter_context(dagster_instance(settings, engine))
        processes = _processes(settings, "backfill")
        if not is_running(settings):
            stack.callback(_stop, processes, console)
            _start_dagster(processes, settings)
        return load(engine, instance, console, Load(symbols, timeframes, days, full), processes.check)


def run_down(settings: Settings) -> int:
    """End a running `up` with all it started, the sandbox, and the embedded PostgreSQL; say what was ended."""
    console = screen()
    ended = []
    for name in ("up", "backfill"):
        family = read_record(_record(settings, name))
        if family:
            # The command itself ends its children in good order; what outlived a killed command is ended here.
            end_trees(family[:1])
            end_trees(process for process in family if is_alive(process))
            _record(settings, name).unlink(missing_ok=True)
            ended.append(f"market-data {name}")
    from market_data_pipeline.sandbox.process import stop_sandbox

    if stop_sandbox(settings):
        ended.append("sandbox")
    if settings.embedded_database:
        from market_data_pipeline.sandbox.postgres import EmbeddedPostgres

        server = EmbeddedPostgres.of(settings)
        if server.is_running():
            server.stop()
            ended.append("PostgreSQL")
    console.print(f"Stopped: {', '.join(ended)}." if ended else "Nothing was running.")
    return 0


def is_running(settings: Settings) -> bool:
    """Return whether an `up` of this project, and so a Dagster daemon, is running."""
    return bool(read_record(_record(settings, "up")))


def _prepare(settings: Settings, console: Console, stack: ExitStack) -> sa.Engine:
    """Bring up what the work stands on: database, schema, universe, vendor."""
    from market_data_pipeline.operations.database import migrate_database
    from market_data_pipeline.store.database import engine
    from market_data_pipeline.store.universe import ensure_universe

    applied = migrate_database(settings)
    made = engine(settings.database_url, as_of=settings.as_of, pool_size=2)
    stack.callback(made.dispose)
    ensure_universe(settings, made)
    where = "embedded PostgreSQL" if settings.embedded_database else "PostgreSQL of DATABASE_URL"
    console.print(f"Database  {where}" + (f", {len(applied)} migrations applied" if applied else ""))
    if settings.uses_sandbox:
        from market_data_pipeline.sandbox.process import ensure_sandbox, running_sandbox, stop_sandbox

        if running_sandbox(settings) is None:
            stack.callback(stop_sandbox, settings)
        source = "recorded bars" if settings.sandbox_replay else "made-up bars"
        console.print(f"Vendor    sandbox with {source} at {ensure_sandbox(settings)} (no POLYGON_API_KEY is set)")
    else:
        console.print(f"Vendor    {settings.base_url}, plan {settings.plan}")
    return made


def _processes(settings: Settings, name: str = "up") -> Processes:
    return Processes(_record(settings, name), settings.state_dir / "logs")


def _record(settings: Settings, name: str) -> Path:
    return settings.state_dir / f"{name}.json"


def _start_dagster(processes: Processes, settings: Settings) -> None:
    """Start the code server, which loads the definitions once for all, and the daemon, which starts runs."""
    socket = processes.private_folder() / "code.sock"
    server = [_program("dagster"), "code-server", "start", "--socket", str(socket)]
    server += ["--module-name", LOCATION, "--location-name", LOCATION, "--use-python-environment-entry-point"]
    workspace = _workspace(settings)
    entry = {"location_name": LOCATION, "socket": str(socket), "host": "localhost"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": entry}]}))  # JSON is YAML, too
    daemon = [_program("dagster-daemon"), "run", "--workspace", str(workspace)]
    processes.start("dagster-code-server", server, cwd=settings.project_root, environment=environment(settings))
    processes.wait_for(socket)
    processes.start("dagster-daemon", daemon, cwd=settings.project_root, environment=environment(settings))


def _start_servers(processes: Processes, settings: Settings) -> None:
    ui = [_program("dagster-webserver"), "--host", "127.0.0.1", "--port", str(settings.ui_port)]
    ui += ["--workspace", str(_workspace(settings))]
    api = [sys.executable, "-m", "market_data_pipeline.serving"]
    processes.start("dagster-webserver", ui, cwd=settings.project_root, environment=environment(settings))
    processes.start("read-api", api, cwd=settings.project_root, environment=environment(settings))


def _workspace(settings: Settings) -> Path:
    """Return where this start's workspace is written: the project's own, served by one code server for all."""
    return settings.state_dir / "workspace.yaml"


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _announce(settings: Settings, processes: Processes, console: Console, seconds: float) -> None:
    ui, api = f"http://127.0.0.1:{settings.ui_port}", f"http://127.0.0.1:{settings.api_port}"
    wait_for_page(f"{ui}/server_info", processes.check)
    wait_for_page(f"{api}/docs", processes.check)
    console.print()
    console.print(f"Ready after {seconds:.1f} s.")
    console.print(f"Dagster UI  {ui}/asset-groups")
    console.print(f"Read API    {api}/docs")
    console.print("Status      market-data staleness")
    console.print("Ctrl-C stops everything but PostgreSQL; market-data down stops that too.")


def _stop(processes: Processes, console: Console) -> None:
    if processes.children:
        console.print(f"Stopping {', '.join(child.name for child in processes.children)} ...")
        processes.stop()


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
            running = read_record(_record(settings, "up"))
            which = f" (process {running[0].pid})" if running else ""
            raise UsageError(
                f"market-data up is already running in this project{which}; the Dagster UI is at "
                f"http://127.0.0.1:{settings.ui_port}. Stop it with: market-data down"
            ) from None
        leftovers = read_record(_record(settings, "up"))
        if leftovers:
            end_trees(leftovers)  # of an `up` that was killed
        yield


@contextmanager
def _until_terminated() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does.

    Ctrl-C itself is set as well: a shell starts what runs in its background with SIGINT ignored.
    """

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
