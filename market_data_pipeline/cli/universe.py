"""`market-data universe`: which symbols are followed."""

from __future__ import annotations

import sys
from datetime import date, datetime
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


@app.command(
    epilog="Example: market-data universe add NFLX X:BTCUSD C:EURUSD I:SPX --tier standard, "
    "or: market-data universe add LEH --delisted"
)
def add(
    symbols: _Symbols,
    tier: Annotated[Tier, typer.Option(help="How fresh their bars are kept.")] = Tier.STANDARD,
    force: Annotated[bool, typer.Option("--force", help="Do not ask the vendor whether it knows them.")] = False,
    delisted: Annotated[
        bool, typer.Option("--delisted", help="Follow stocks that are delisted, from their past.")
    ] = False,
    figi: Annotated[
        str | None, typer.Option(help="With --delisted: the composite FIGI, where a ticker was several companies'.")
    ] = None,
    delisted_on: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="With --delisted: the last day of the one that is meant."),
    ] = None,
) -> None:
    """Follow symbols; a symbol of another tier moves to this one.

    Up to ten are looked up at the vendor first; when it cannot be reached, they are followed anyway. With --delisted,
    the history before the end of each stock is loaded, as many days as that of others.
    """
    tickers = [parse_symbol(symbol) for symbol in symbols]
    if delisted or figi or delisted_on:
        if not delisted:
            raise UsageError("--figi and --delisted-on say which delisted stock is meant: add --delisted.")
        if force:
            raise UsageError("--force does not go with --delisted: only the vendor knows when a stock ended.")
        if len(tickers) > 1 and (figi or delisted_on):
            raise UsageError("--figi and --delisted-on are about one symbol: add the others without them.")
        _add_delisted(tickers, tier, figi, delisted_on and delisted_on.date())
        return
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
        if answer.ended:
            console().print("Its history before that is loaded with: market-data universe add SYMBOL --delisted")
        if answer.failure:
            console().print(f"The vendor could not be asked about them: {answer.failure}")
    _print_change(add_symbols(engine, tier, tickers, config.clock()))


def _add_delisted(tickers: list[str], tier: Tier, figi: str | None, delisted_on: date | None) -> None:
    from market_data_pipeline.ingest.delisted import Choice, check_is_free, look_up, write_ends, write_securities
    from market_data_pipeline.ingest.pipeline import build_client
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.runtime.sandbox import vendor_access
    from market_data_pipeline.store.universe import add_symbols

    config = settings()
    engine = open_universe(config)
    client = build_client(config, vendor_access(config), retries=False)
    try:
        found = look_up(client, config, tickers, Choice(figi, delisted_on))
    finally:
        client.close()
    check_is_free(config, found)
    learned = {symbol: each for symbol, (_, each) in found.items()}
    write_securities(config, learned.values())
    securities = {symbol: each.identity.security for symbol, each in learned.items()}
    change = add_symbols(engine, tier, tickers, config.clock(), securities=securities)
    write_ends(config, learned)
    for symbol, (chosen, each) in found.items():
        console().print(f"{symbol} is {chosen}.")
        if each.doubt:
            console().print(each.doubt)
    _print_change(change)


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
