"""`market-data universe`: which symbols are followed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli.console import AsJson, print_json, print_table, settings
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.markets import index_called
from market_data_pipeline.domain.series import Tier, parse_symbol
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from market_data_pipeline.store.universe import UniverseChange

app = typer.Typer(help="List and change the symbols that are followed.", no_args_is_help=True)
_Symbols = Annotated[list[str], typer.Argument(metavar="SYMBOL...", help="Tickers as the vendor writes them.")]


@app.command("list", epilog="Example: market-data universe list --json")
def list_symbols(as_json: AsJson = False) -> None:
    """Show the followed symbols, their tier and their asset class."""
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.store.universe import tracked

    symbols = [each for each in tracked(open_universe(settings())) if each.active]
    if as_json:
        print_json([{"symbol": s.symbol, "tier": s.tier, "asset_class": s.asset_class} for s in symbols])
        return
    print_table(("symbol", "tier", "asset class"), [(s.symbol, s.tier, s.asset_class) for s in symbols])


@app.command(epilog="Example: market-data universe add NFLX X:BTCUSD C:EURUSD I:SPX --tier standard")
def add(
    symbols: _Symbols,
    tier: Annotated[Tier, typer.Option(help="How fresh their bars are kept.")] = Tier.STANDARD,
    force: Annotated[bool, typer.Option("--force", help="Do not ask the vendor whether it knows them.")] = False,
) -> None:
    """Follow symbols; a symbol of another tier moves to this one.

    Up to ten are looked up at the vendor first; when it cannot be reached, they are followed anyway.
    """
    tickers = [parse_symbol(symbol) for symbol in symbols]
    from market_data_pipeline.ingest.life import inquire
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.store.universe import add_symbols

    config = settings()
    engine = open_universe(config)
    if not force:
        answer = inquire(config, tickers)
        if answer.unknown:
            meant = [index for symbol in answer.unknown if (index := index_called(symbol))]
            asked = f" Did you mean {', '.join(meant)}?" if meant else ""
            raise UsageError(
                f"The vendor knows no ticker {', '.join(answer.unknown)}; nothing was added.{asked} Check the "
                "spelling, upper and lower case included, or follow it anyway with --force."
            )
        for one in answer.ended:
            console().print(f"{one}.")
        if answer.failure:
            console().print(f"The vendor could not be asked about them: {answer.failure}")
    _print_change(add_symbols(engine, tier, tickers, config.clock()))


@app.command(epilog="Example: market-data universe remove NFLX")
def remove(symbols: _Symbols) -> None:
    """Stop following symbols; their stored data are kept."""
    tickers = [parse_symbol(symbol) for symbol in symbols]
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.store.universe import remove_symbols

    _print_change(remove_symbols(open_universe(settings()), tickers))


@app.command("import", epilog="Example: market-data universe import universe.yaml --dry-run")
def import_file(
    file: Annotated[Path, typer.Argument(help="YAML: tiers: {critical: [AAPL], standard: [], low_priority: []}.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before symbols are removed.")] = False,
) -> None:
    """Follow exactly the symbols of a file; others are removed, and their stored data are kept.

    On a terminal, it asks before it removes symbols.
    """
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.store.universe import load_universe_file, sync_universe

    universe = load_universe_file(file)
    config = settings()
    engine, now = open_universe(config), config.clock()
    if dry_run:
        _print_change(sync_universe(engine, universe, now, dry_run=True), "would be ")
        return
    if not yes and sys.stdin.isatty():
        planned = sync_universe(engine, universe, now, dry_run=True)
        if planned.removed:
            _print_change(planned, "would be ")
            typer.confirm(f"Stop following {len(planned.removed)} symbols?", abort=True)
    _print_change(sync_universe(engine, universe, now))


def _print_change(change: UniverseChange, would: str = "") -> None:
    """Print one line for each kind of change; `would` comes before its word."""
    if not change:
        console().print("Nothing would change." if would else "Nothing changed.")
    for word, symbols in zip(change._fields, change, strict=True):
        if symbols:
            console().print(f"{would}{word} {', '.join(symbols)}")
