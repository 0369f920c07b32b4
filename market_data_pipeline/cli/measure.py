"""The commands that measure in a scratch project, without touching the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from market_data_pipeline.cli.console import (
    AsJson,
    Output,
    Timeframes,
    names,
    print_json,
    print_table,
    settings,
    symbols_of,
    write_json,
)
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.objectives import Outage
from market_data_pipeline.domain.series import parse_timeframe
from market_data_pipeline.runtime.console import console

_CHARTS = (".png", ".svg", ".html")
_Symbols = Annotated[str, typer.Option("--symbols", help="Comma-separated symbols of the universe file.")]
_Chart = Annotated[
    Path, typer.Option("--picture", metavar="FILE", help="Write the chart to FILE: .png, .svg or .html.")
]
app = typer.Typer()


@app.command(epilog="Example: market-data baseline --symbol-count 5 --days 90")
def baseline(
    symbols: _Symbols = "",
    symbol_count: Annotated[
        int | None,
        typer.Option(min=1, help="How many symbols, from the start of the universe file; by default 25, or all."),
    ] = None,
    timeframes: Timeframes = "",
    days: Annotated[int, typer.Option(min=1, help="Calendar days of history.")] = 365,
    output: Output = None,
    as_json: AsJson = False,
    picture: _Chart = Path("baseline.png"),
) -> None:
    """Measure a first backfill into a scratch database: how long it takes, how much it writes, what limits it.

    The document goes to baseline.json unless --output or --json say otherwise.
    """
    chosen, chosen_symbols = names(timeframes, parse_timeframe), symbols_of((), symbols)
    output = output or (None if as_json else Path("baseline.json"))
    _check_files(output, picture, as_json=as_json)
    from market_data_pipeline.measure.baseline import run_baseline
    from market_data_pipeline.measure.views import baseline_chart, draw, print_baseline

    document = run_baseline(settings(), chosen_symbols, symbol_count, chosen, days)
    print_baseline(document, print_table, lambda text: console().print(text, markup=False))
    _write(document, output, as_json=as_json)
    draw(baseline_chart(document), picture)
    console().print(f"Wrote {picture}")
    raise typer.Exit(0 if document["jobs"]["completed"] == document["jobs"]["total"] else 1)


@app.command(epilog="Example: market-data drill SCHEDULER_CRASH --output drill.json")
def drill(
    outages: Annotated[
        list[Outage] | None,
        typer.Argument(metavar="OUTAGE", help="Outages to cause; all by default.", show_default=False),
    ] = None,
    chaos: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            min=0.1,
            help="Kill, end or suspend random processes for this long instead, with cadences 15 times as fast.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Determines which processes --chaos hits.")] = 1,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Cause the outages of the objectives in a scratch project, and compare the recovery time of each with its RTO."""
    if output is not None:
        _check_folder(output)
    if chaos is not None and outages:
        raise UsageError("--chaos chooses what it breaks itself: leave the outages out.")
    _keep_for_json(as_json)
    if chaos is not None:
        from market_data_pipeline.measure.chaos import run_chaos

        document = run_chaos(settings(), chaos, seed)
        verdict = "; ".join(document["problems"]) or "every series within its RPO, every run ended, each outage alerted"
        console().print(f"{'Kept' if document['kept'] else 'NOT kept'}: {verdict}.", markup=False)
        _write(document, output, as_json=as_json)
        raise typer.Exit(0 if document["kept"] else 1)
    from market_data_pipeline.measure.drill import run_drill
    from market_data_pipeline.measure.views import print_drill

    document = run_drill(settings(), outages or ())
    print_drill(document, print_table)
    _write(document, output, as_json=as_json)
    raise typer.Exit(0 if document["kept"] else 1)


@app.command(epilog="Example: market-data loadtest --seconds 5 --scenarios cached_symbol,uncached_mixed")
def loadtest(
    symbols: _Symbols = "",
    symbol_count: Annotated[
        int, typer.Option(min=1, help="How many symbols, from the start of the universe file.")
    ] = 8,
    days: Annotated[int, typer.Option(min=1, help="Calendar days of history to load first.")] = 365,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for which each scenario is measured.")] = 10.0,
    users: Annotated[int, typer.Option(min=1, max=10_000, help="Concurrent users in the largest scenario.")] = 100,
    names_: Annotated[str, typer.Option("--scenarios", help="Comma-separated; all by default.")] = "",
    output: Output = None,
    as_json: AsJson = False,
    picture: _Chart = Path("loadtest.png"),
) -> None:
    """Load-test a scratch read API over synthetic bars, also during a refresh, and rate its response times.

    The document goes to loadtest.json unless --output or --json say otherwise.
    """
    chosen, chosen_symbols = names(names_, str), symbols_of((), symbols)
    output = output or (None if as_json else Path("loadtest.json"))
    _check_files(output, picture, as_json=as_json)
    from market_data_pipeline.measure.loadtest import run_loadtest
    from market_data_pipeline.measure.views import draw, loadtest_chart, print_loadtest

    document = run_loadtest(
        settings(),
        symbols=chosen_symbols,
        symbol_count=symbol_count,
        days=days,
        seconds=seconds,
        users=users,
        names=chosen,
    )
    print_loadtest(document, print_table, lambda text: console().print(text, markup=False))
    _write(document, output, as_json=as_json)
    draw(loadtest_chart(document), picture)
    console().print(f"Wrote {picture}")
    raise typer.Exit(1 if document["verdict"] == "critical" else 0)


def _write(document: dict[str, Any], output: Path | None, *, as_json: bool) -> None:
    if output is not None:
        write_json(output, document)
    if as_json:
        print_json(document)


def _check_files(output: Path | None, picture: Path, *, as_json: bool) -> None:
    """Raise UsageError before anything is measured if the results could not be written."""
    if picture.suffix not in _CHARTS:
        raise UsageError(f"A chart's name ends in {', '.join(_CHARTS[:-1])} or {_CHARTS[-1]}; {picture} does not.")
    for file in filter(None, (output, picture)):
        _check_folder(file)
    _keep_for_json(as_json)


def _check_folder(file: Path) -> None:
    if not file.absolute().parent.is_dir():
        raise UsageError(f"The folder {file.absolute().parent} for {file.name} does not exist.")


def _keep_for_json(as_json: bool) -> None:
    """Print everything else to standard error when the document goes to standard output."""
    if as_json:
        console().stderr = True
