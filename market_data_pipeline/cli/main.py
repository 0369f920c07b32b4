"""The `market-data` command: its root, and the commands that start, stop or change something.

Each command imports slow modules in its own body, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from market_data_pipeline import __version__
from market_data_pipeline.cli import backup as backups
from market_data_pipeline.cli import export, lake, measure, prune, reports, runs, spellings, universe
from market_data_pipeline.cli.console import HistoryDays, SymbolList, Symbols, Timeframes, names, settings, symbols_of
from market_data_pipeline.domain.errors import ConfigurationError, PipelineError, UsageError
from market_data_pipeline.domain.series import parse_timeframe
from market_data_pipeline.domain.ways_in import BackfillSource
from market_data_pipeline.runtime.console import console, print_error, print_notice

app = typer.Typer(
    name="market-data",
    help="Market data as Dagster assets: bars, freshness and features for every symbol and timeframe.",
    epilog="Start with: market-data up",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(requested: bool) -> None:
    if requested:
        console().print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure; allowed anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Parse the options that come before a command; `main` has already removed `--debug`."""


@app.command(epilog="Example: market-data up --once")
def up(
    once: Annotated[
        bool,
        typer.Option("--once", help="Exit when the backfill is done, with code 0 only if every series is complete."),
    ] = False,
    from_make: Annotated[
        bool, typer.Option("--from-make", hidden=True, help="Exit with 0 on Ctrl-C, which make would call an error.")
    ] = False,
) -> None:
    """Start the database, the sandbox if no key is set, Dagster and the read API, and backfill what is missing."""
    from market_data_pipeline.runtime.env_file import write_env

    write_env()  # before the settings are read: it corrects the paths of a project that was moved
    config = settings()
    from market_data_pipeline.runtime.up import run_up

    try:
        raise typer.Exit(run_up(config, once))
    except KeyboardInterrupt:
        if from_make:
            raise typer.Exit from None
        raise


@app.command(epilog="Example: MARKET_DATA_WORKER_RUNS=6 market-data worker")
def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 0 if the worker of this host is working; start none.")
    ] = False,
) -> None:
    """Carry runs on this host, as one of several, until Ctrl-C; the daemon is on another one.

    MARKET_DATA_BROKER_URL names the Redis server that they come from, MARKET_DATA_WORKER_RUNS how many at once.
    """
    from market_data_pipeline.runtime.worker import check_worker, run_worker

    if check:
        check_worker(settings())
        return
    raise typer.Exit(run_worker(settings(), console()))


@app.command(epilog="Example: market-data down")
def down() -> None:
    """Stop everything that `up` started, including the embedded database."""
    from market_data_pipeline.runtime.down import run_down

    raise typer.Exit(run_down(settings()))


@app.command(epilog="Example: market-data init")
def init() -> None:
    """Write the files that plain `dagster` commands need: .env, dagster.yaml and workspace.yaml.

    Only you can read .env, and your own lines in it are kept.
    """
    from market_data_pipeline.runtime.env_file import write_env

    file = write_env()
    console().print(f"{'Wrote' if file.changed else 'Nothing to change in'} {file.path} ({', '.join(file.written)})")
    if file.kept:
        console().print(f"Kept your own values of: {', '.join(file.kept)}")


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sandbox(context: typer.Context) -> None:
    """Run the Polygon-compatible sandbox server until Ctrl-C; it needs no key."""
    from market_data_pipeline.sandbox.main import main as serve

    serve(context.args, default_as_of=lambda: settings().as_of)


@app.command(epilog="Example: market-data migrate")
def migrate() -> None:
    """Apply the migrations in sql/ that the database does not have yet."""
    from market_data_pipeline.runtime.database import migrate_database
    from market_data_pipeline.store.privileges import missing_privileges

    config = settings()
    applied = migrate_database(config)
    for name in applied:
        console().print(f"applied {name}")
    if not applied:
        console().print("The schema is up to date.")
    if sql := missing_privileges(config):
        print_error(
            "The database does not protect the audit log from the pipeline yet; everything else works. Ask its "
            f"administrator to run `{sql};`, then run `market-data migrate` again."
        )


@app.command(epilog="Example: market-data backfill AAPL MSFT --timeframes 5m,1d --days 30")
def backfill(
    symbols: Symbols = None,
    symbol_list: SymbolList = "",
    timeframes: Timeframes = "",
    days: HistoryDays = None,
    full: Annotated[bool, typer.Option("--full", help="Fetch and compute again what is already held.")] = False,
    source: Annotated[
        BackfillSource,
        typer.Option(help="Where settled days come from: the REST API, flat files, or whichever costs less."),
    ] = BackfillSource.REST,
) -> None:
    """Fetch what is missing through Dagster, with progress bars.

    A flat file holds a day of the whole market: for many symbols, files
    need far fewer requests. They have no vwap. Days without a file, such
    as today, are requested all the same. `market-data plan` compares both.
    """
    chosen = symbols_of(symbols, symbol_list)
    chosen_timeframes = names(timeframes, parse_timeframe)
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.runtime.env_file import write_env
    from market_data_pipeline.store.universe import select_followed

    write_env()
    config = settings()
    if chosen:
        select_followed(open_universe(config), chosen)  # refuses other symbols before anything starts
    from market_data_pipeline.runtime.load import Load
    from market_data_pipeline.runtime.up import run_backfill

    raise typer.Exit(run_backfill(config, Load(chosen, chosen_timeframes, days, full, source)))


for part in (reports, runs, backups, prune, measure, export):
    app.add_typer(part.app)
app.add_typer(universe.app, name="universe")
app.add_typer(lake.app, name="lake")


def main() -> NoReturn:
    """Run the command line and exit with 0 (done), 1 (the work failed), 2 (bad usage or settings) or 130 (Ctrl-C)."""
    debug = "--debug" in sys.argv[1:]
    arguments, notices = spellings.present([argument for argument in sys.argv[1:] if argument != "--debug"])
    for notice in notices:
        print_notice(notice)
    try:
        app(arguments)
    except Exception as error:  # the boundary: a failure becomes a sentence and an exit code
        if debug:
            raise
        print_error(_sentence(error))
        sys.exit(2 if isinstance(error, (UsageError, ConfigurationError)) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _sentence(error: Exception) -> str:
    """Return what to print; only the text of our own errors is known to hold no secret."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("market_data_pipeline"):
        return f"This command needs {error.name}: run `pip install 'market-data-pipeline[all]'`."
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or Path.cwd()
        if error.errno == errno.ENOSPC:
            return f"The disk is full ({where}): free some space and run the command again."
        return f"{where} cannot be used: {error.strerror}."
    if type(getattr(error, "orig", None)).__name__ == "DiskFull":
        return "The database's disk is full: free some space and run the command again."
    # Dagster's storage; our own connections raise errors with a sentence.
    if type(error).__name__ in {"OperationalError", "DagsterPostgresException"}:
        return "The connection to Dagster's storage was lost or could not be made: is PostgreSQL running?"
    if type(getattr(error, "orig", None)).__name__ in {"UndefinedTable", "UndefinedColumn", "UndefinedFunction"}:
        return "The database does not have the schema of this version: run `market-data migrate`."
    return f"The command failed unexpectedly ({type(error).__name__}); run it again with --debug to see where."
