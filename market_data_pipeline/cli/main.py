"""The `market-data` command: parse, call, print.

Add here: a command that starts, stops or changes something, as one thin function. Keep out: reports (cli_reports and
cli_runs), measurements (cli_measure), the universe (cli_universe), and the work itself (operations). Whatever is slow
to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from market_data_pipeline import __version__
from market_data_pipeline.cli import measure as cli_measure
from market_data_pipeline.cli import reports as cli_reports
from market_data_pipeline.cli import runs as cli_runs
from market_data_pipeline.cli import universe as cli_universe
from market_data_pipeline.cli.console import complain, console, names, settings
from market_data_pipeline.domain.errors import ConfigurationError, PipelineError, UsageError
from market_data_pipeline.domain.series import parse_symbol, parse_timeframe

app = typer.Typer(
    name="market-data",
    help="Market data as Dagster assets: bars, freshness and features for every symbol and timeframe.",
    epilog="Start with: market-data up",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console().print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure; works anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Parse the options that come before a command; `main` has already taken `--debug` out."""


@app.command(epilog="Example: market-data up --once")
def up(
    once: Annotated[
        bool, typer.Option("--once", help="Exit when the backfill is done; 0 only if it is whole.")
    ] = False,
) -> None:
    """Start the database, the sandbox if no key is set, Dagster and the read API, and load the universe."""
    from market_data_pipeline.runtime.env_file import write_env
    from market_data_pipeline.runtime.up import run_up

    write_env(take_over=False)  # before the settings are read: it mends the paths in it after the project was moved
    raise typer.Exit(run_up(settings(), once))


@app.command(epilog="Example: market-data down")
def down() -> None:
    """Stop everything that `up` started, the embedded database included."""
    from market_data_pipeline.runtime.up import run_down

    raise typer.Exit(run_down(settings()))


@app.command(epilog="Example: market-data init")
def init() -> None:
    """Write the .env that plain `dagster` commands need, readable by you alone; your own lines in it stay."""
    from market_data_pipeline.runtime.env_file import write_env

    file = write_env()
    console().print(f"{'Wrote' if file.changed else 'Nothing to change in'} {file.path} ({', '.join(file.written)})")
    if file.kept:
        console().print(f"Left as you set them: {', '.join(file.kept)}")


@app.command(epilog="Example: market-data sandbox --port 8900 --plan basic")
def sandbox(
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port to listen on.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; the loopback when left out.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Serve the recorded bars in this folder.")] = None,
    plan: Annotated[str | None, typer.Option(help="The plan to simulate: basic, starter, developer, advanced.")] = None,
    calls_per_minute: Annotated[int | None, typer.Option(min=0, help="Instead of the plan's; 0 lifts it.")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="Instant at which the clock stands still; MARKET_DATA_AS_OF.")
    ] = None,
    symbols: Annotated[int | None, typer.Option(min=0, help="Load-test tickers in whole-market answers.")] = None,
    latency_ms: Annotated[float | None, typer.Option(min=0, help="Wait before every answer.")] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request.")] = False,
) -> None:
    """Run the Polygon-compatible server for people without a key, until Ctrl-C."""
    from market_data_pipeline.sandbox.main import main as serve

    options = {
        "--port": port,
        "--host": host,
        "--replay": replay,
        "--plan": plan,
        "--calls-per-minute": calls_per_minute,
        "--as-of": as_of or (clock.isoformat() if (clock := settings().as_of) else None),
        "--symbols": symbols,
        "--latency-ms": latency_ms,
    }
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    serve([*given, *(["--access-log"] if access_log else [])])


@app.command(epilog="Example: market-data migrate")
def migrate() -> None:
    """Apply the migrations of sql/ that the database lacks."""
    from market_data_pipeline.runtime.database import migrate_database
    from market_data_pipeline.store.privileges import lacking_privileges

    config = settings()
    applied = migrate_database(config)
    for name in applied:
        console().print(f"applied {name}")
    if not applied:
        console().print("The schema is up to date.")
    if sql := lacking_privileges(config):
        complain(
            "The database does not keep the audit trail from the pipeline yet, everything else works: let its "
            f"administrator run `{sql};` and then run `market-data migrate` again."
        )


@app.command(epilog="Example: market-data backfill --symbols AAPL,MSFT --timeframes 5m,1d --days 30")
def backfill(
    symbols: Annotated[str, typer.Option(help="Comma-separated tracked symbols; all when left out.")] = "",
    timeframes: Annotated[str, typer.Option(help="Comma-separated: 5m, 15m, 1h, 4h, 1d; all when left out.")] = "",
    days: Annotated[int | None, typer.Option(min=1, help="Calendar days of history; MARKET_DATA_HISTORY_DAYS.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Fetch again what is held, and compute it anew.")] = False,
) -> None:
    """Fetch what is missing, through Dagster, with progress bars."""
    wanted_symbols = names(symbols, parse_symbol)
    wanted_timeframes = names(timeframes, parse_timeframe)
    from market_data_pipeline.runtime.database import check_followed
    from market_data_pipeline.runtime.env_file import write_env
    from market_data_pipeline.runtime.up import run_backfill

    write_env(take_over=False)
    config = settings()
    check_followed(config, wanted_symbols)
    raise typer.Exit(run_backfill(config, wanted_symbols, wanted_timeframes, days, full))


cli_reports.register(app)
cli_runs.register(app)
cli_measure.register(app)
app.add_typer(cli_universe.app, name="universe")


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 the work failed, 2 bad usage or settings, 130 interrupted."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except Exception as error:  # the one boundary: a failure leaves as a sentence and an exit code
        if debug:
            raise
        complain(_sentence(error))
        sys.exit(2 if isinstance(error, (UsageError, ConfigurationError)) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _sentence(error: Exception) -> str:
    """Return what to tell the user; only our own failures are known to hold no secret in their text."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or Path.cwd()
        if error.errno == errno.ENOSPC:
            return f"The disk is full ({where}): free some space and run the command again."
        return f"{where} cannot be used: {error.strerror}."
    if type(getattr(error, "orig", None)).__name__ == "DiskFull":
        return "The database's disk is full: free some space and run the command again."
    if type(error).__name__ in {
        "OperationalError",
        "DagsterPostgresException",
    }:  # of Dagster's storage; our own connections say it themselves
        return "The connection to Dagster's storage was lost or cannot be made: is PostgreSQL running?"
    if type(getattr(error, "orig", None)).__name__ in {"UndefinedTable", "UndefinedColumn", "UndefinedFunction"}:
        return "The database does not have the schema of this version: run `market-data migrate`."
    return f"Something unexpected went wrong ({type(error).__name__}); run again with --debug to see where."
