"""`market-data universe`: which symbols are followed."""

from __future__ import annotations

import sys
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from market_data_pipeline.cli.console import AsJson, print_json, print_table, settings
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.markets import index_called
from market_data_pipeline.domain.series import AssetClass, Tier, parse_symbol
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.ingest.market_list import MarketList
    from market_data_pipeline.store.universe import UniverseChange

app = typer.Typer(help="List and change the symbols that are followed.", no_args_is_help=True)
_Symbols = Annotated[list[str], typer.Argument(metavar="SYMBOL...", help="Tickers as the vendor writes them.")]


class MarketName(StrEnum):
    """A market, as the vendor calls it."""

    US_EQUITY = "stocks"
    CRYPTO = "crypto"
    FOREX = "fx"
    INDEX = "indices"

    @property
    def asset_class(self) -> AssetClass:
        """The asset class of its symbols."""
        return AssetClass[self.name]


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


@app.command(
    "import",
    epilog="Example: market-data universe import universe.yaml --dry-run, "
    "or: market-data universe import --market stocks --type CS,ETF --exchange XNYS,XNAS",
)
def import_symbols(
    file: Annotated[
        Path | None, typer.Argument(help="YAML: tiers: {critical: [AAPL], standard: [], low_priority: []}.")
    ] = None,
    market: Annotated[
        MarketName | None, typer.Option(help="Instead of a file: all symbols of a market that the vendor lists.")
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option("--type", help="With --market stocks: types of securities, such as CS,ETF; all if not."),
    ] = None,
    exchanges: Annotated[
        str | None, typer.Option("--exchange", help="With --market stocks: primary exchanges, such as XNYS,XNAS.")
    ] = None,
    tier: Annotated[
        Tier | None, typer.Option(help="With --market: how fresh their bars are kept; low_priority if not given.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --market: follow at most so many more, by ticker.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Follow the symbols of a file, or of a market.

    Of a file: exactly its symbols; others are removed, and their stored data are kept. On a terminal, it asks before it
    removes symbols. Of a market: none is removed, and those that are followed keep their tier. What their history
    costs is shown first; on a terminal it asks, elsewhere it only follows them with --yes.
    """
    if market is not None:
        if file is not None:
            raise UsageError("A file and --market do not go together: import one, then the other.")
        wanted = _Wanted(market.asset_class, _codes(kinds), _codes(exchanges), tier or Tier.LOW_PRIORITY, limit)
        _import_market(wanted, ask=not yes, only_show=dry_run, as_json=as_json)
        return
    for option, value in (("--type", kinds), ("--exchange", exchanges), ("--tier", tier), ("--limit", limit)):
        if value is not None:
            raise UsageError(f"{option} goes with --market, for example: market-data universe import --market stocks")
    if file is None:
        raise UsageError("Name a file, or a market, for example: market-data universe import --market stocks --type CS")
    if as_json:
        raise UsageError("--json goes with --market.")
    _import_file(file, dry_run=dry_run, yes=yes)


def _import_file(file: Path, *, dry_run: bool, yes: bool) -> None:
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


class _Wanted(NamedTuple):
    """Which symbols of a market to follow."""

    market: AssetClass
    kinds: tuple[str, ...]
    exchanges: tuple[str, ...]
    tier: Tier
    limit: int | None


def _codes(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip().upper() for part in (text or "").split(",") if part.strip()))


def _import_market(wanted: _Wanted, *, ask: bool, only_show: bool, as_json: bool) -> None:
    from market_data_pipeline.ingest.market_list import listed_symbols
    from market_data_pipeline.ingest.pipeline import build_client
    from market_data_pipeline.reports.estimate import estimate_new
    from market_data_pipeline.runtime.database import open_universe
    from market_data_pipeline.runtime.sandbox import vendor_access
    from market_data_pipeline.store.universe import add_symbols, tracked

    if wanted.market is not AssetClass.US_EQUITY and (wanted.kinds or wanted.exchanges):
        raise UsageError("--type and --exchange go with --market stocks: the vendor has none of other markets.")
    config = settings()
    engine = open_universe(config)
    client = build_client(config, vendor_access(config))
    try:
        found = listed_symbols(client, wanted.market, wanted.kinds, wanted.exchanges)
    finally:
        client.close()
    followed = {each.symbol for each in tracked(engine) if each.active}
    new = [symbol for symbol in found.symbols if symbol not in followed]
    chosen = new[: wanted.limit]
    ways = estimate_new(config, wanted.market, len(chosen)) if chosen else None
    does = bool(chosen) and not only_show
    if not as_json:
        _print_market(wanted, found, len(found.symbols) - len(new), chosen, None if ways is None else ways.why)
        if does and ask and sys.stdin.isatty():
            typer.confirm(f"Follow {len(chosen):,} more {wanted.market.market.plural}?", abort=True)
        elif does and ask:
            console().print("Nothing was changed: follow them with --yes.")
    does = does and not (ask and (as_json or not sys.stdin.isatty()))
    if does:
        add_symbols(engine, wanted.tier, chosen, config.clock())
    if as_json:
        print_json(
            {
                "market": wanted.market.market.vendor_name,
                "tier": wanted.tier,
                "listed": len(found.symbols),
                "followed": len(found.symbols) - len(new),
                "requests": found.requests,
                "added": chosen if does else [],
                "to_add": [] if does else chosen,
                "refused": list(found.refused),
                "ways_in": None if ways is None else ways.model_dump(mode="json"),
            }
        )
    elif does:
        console().print(f"{len(chosen):,} symbols added to {wanted.tier}; the next refresh loads their history.")


_SHOWN: Final = 10


def _print_market(wanted: _Wanted, found: MarketList, followed: int, chosen: Sequence[str], cost: str | None) -> None:
    def some(symbols: Sequence[str]) -> str:
        more = f" and {len(symbols) - _SHOWN:,} more" if len(symbols) > _SHOWN else ""
        return ", ".join(symbols[:_SHOWN]) + more

    of = f" ({', '.join((*wanted.kinds, *wanted.exchanges))})" if wanted.kinds or wanted.exchanges else ""
    plural = wanted.market.market.plural
    console().print(f"The vendor lists {len(found.symbols):,} {plural}{of}; {followed:,} of them are followed.")
    if found.refused:
        console().print(f"{len(found.refused):,} cannot be followed: {some(found.refused)}.")
    if not chosen:
        console().print("Nothing would change." if followed else "There is nothing to follow.")
        return
    console().print(f"To follow in {wanted.tier}: {len(chosen):,} ({some(chosen)}).")
    if cost is not None:
        console().print(f"Their history: {cost}")


def _print_change(change: UniverseChange, would: str = "") -> None:
    """Print one line for each kind of change; `would` comes before its word."""
    if not change:
        console().print("Nothing would change." if would else "Nothing changed.")
    for word, symbols in zip(change._fields, change, strict=True):
        if symbols:
            console().print(f"{would}{word} {', '.join(symbols)}")
