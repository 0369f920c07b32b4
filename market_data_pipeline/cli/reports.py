"""The commands that report on data: the estimate, staleness, gaps and objectives.

Add here: a report on series. Keep out: reports on runs (cli.runs), and the questions themselves (reports).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from market_data_pipeline.cli.console import (
    AsJson,
    HistoryDays,
    Output,
    SymbolList,
    Symbols,
    Timeframes,
    instant,
    names,
    print_json,
    print_table,
    settings,
    symbols_of,
    write_json,
    write_text,
)
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Tier, Timeframe, parse_symbol, parse_timeframe
from market_data_pipeline.reports.objectives import span
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer()

_SHOWN: Final = 50  # rows of a table: as many as people read
ShowAll = Annotated[bool, typer.Option("--all", help="Show every series, however many there are.")]


@app.command(epilog="Example: market-data plan AAPL --days 30")
def plan(
    symbols: Symbols = None,
    symbol_list: SymbolList = "",
    timeframes: Timeframes = "",
    days: HistoryDays = None,
    full: Annotated[bool, typer.Option("--full", help="Estimate as if nothing were held.")] = False,
    show_all: ShowAll = False,
    as_json: AsJson = False,
) -> None:
    """Estimate the calls, pages and time of a backfill; nothing is sent.

    The sum comes first, then the series that take the most calls.

    A page holds 50,000 minutes, whatever the timeframe. A year of a stock
    takes at most 5 calls for 5m (52 sessions of 16 hours each) and one for
    1d; a year of a round-the-clock symbol 11 (34 days each) and one. The
    first load of a stock takes one more, which tells its security; a list
    of splits or dividends that is due is counted once. The last line says whether
    the vendor's flat files would cost less.
    """
    chosen = symbols_of(symbols, symbol_list)
    chosen_timeframes = names(timeframes, parse_timeframe)
    from market_data_pipeline.reports.estimate import estimate_backfill
    from market_data_pipeline.runtime.database import open_universe

    config = settings()
    estimate = estimate_backfill(open_universe(config), config, chosen, chosen_timeframes, days, full=full)
    if as_json:
        print_json(estimate)
        return
    if estimate.market_days:
        console().print(
            f"One call a day fetches the day bars of {', '.join(map(str, estimate.market_days))} for all symbols; "
            "a symbol that the answer does not list needs a call of its own."
        )
    if estimate.reads_splits:
        console().print("The market's list of splits is due to be read and is counted.")
    if estimate.reads_dividends:
        console().print("Dividends are due to be read and are counted.")
    if estimate.calls_at_least < estimate.calls:
        console().print(
            "Pages of 5m bars are counted as if every minute had a trade; thinly traded symbols need fewer. "
            f"At least {estimate.calls_at_least} calls are needed."
        )
    limit = estimate.calls_per_minute
    waiting = f"{span(estimate.seconds)} " if estimate.seconds else ""
    at_most = "At most " if estimate.calls_at_least < estimate.calls else ""
    console().print(
        f"{at_most}{estimate.calls} calls, {estimate.pages} pages, {waiting}on the {estimate.plan} plan "
        f"({f'{limit} calls a minute' if limit else 'no limit of calls'})."
    )
    if estimate.series:
        console().print(estimate.ways_in.why, markup=False)
    _print_most(
        ("symbol", "timeframe", ">sessions", ">calls"),
        [
            (one.symbol, one.timeframe, one.sessions, one.calls)
            for one in sorted(estimate.series, key=lambda one: -one.calls)
        ],
        None if show_all else _SHOWN,
        "take no more calls than these",
    )


@app.command(epilog="Example: market-data staleness --tier critical --timeframes 5m,1d")
def staleness(
    symbols: Symbols = None,
    symbol_list: SymbolList = "",
    timeframes: Timeframes = "",
    tier: Annotated[Tier | None, typer.Option(help="Only this tier.", show_default=False)] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"At most this many series; {_SHOWN} by default, all with --json, which counts them for each state.",
            show_default=False,
        ),
    ] = None,
    show_all: ShowAll = False,
    as_json: AsJson = False,
) -> None:
    """Show how many series are how far behind, and the worst of them."""
    chosen, chosen_timeframes = symbols_of(symbols, symbol_list), names(timeframes, parse_timeframe)
    from market_data_pipeline.reports.freshness import Selection, staleness_report
    from market_data_pipeline.runtime.database import reading_engine
    from market_data_pipeline.store.universe import select_followed

    engine = reading_engine(settings())
    if chosen:
        select_followed(engine, chosen)  # refuses symbols that are not followed
    most = limit if as_json or show_all or limit else _SHOWN
    report = staleness_report(engine, most, Selection(chosen, chosen_timeframes, tier))
    if as_json:
        print_json(report)
        return
    counts = {name: count for name, count in report.summary if name.endswith("_count")}
    said = ", ".join(f"{count} {name.removesuffix('_count')}" for name, count in counts.items())
    console().print(f"{said} at {instant(report.timestamp)}")
    states = report.by_status
    worst_first = [*states.missing, *states.stale, *states.aging, *states.fresh]
    _print_most(
        ("symbol", "timeframe", "tier", "state", ">behind", "within RPO", "last bar", "last error"),
        [
            (
                one.symbol,
                one.timeframe,
                one.tier,
                one.status,
                None if one.staleness_seconds is None else span(one.staleness_seconds),
                "yes" if one.within_rpo else "NO",
                instant(one.last_ts),
                one.last_error,
            )
            for one in worst_first[:most]
        ],
        None,
        "are no further behind than these",
        left=report.summary.total_monitored - len(worst_first[:most]),
    )


def _print_most(
    columns: Sequence[str], rows: Sequence[Sequence[object]], most: int | None, why: str, *, left: int = 0
) -> None:
    """Print the first `most` rows (None: all) and say how many are left out, `left` of them before."""
    print_table(columns, rows[:most])
    if more := left + len(rows) - len(rows[:most]):
        console().print(f"{more} more {why}; --all shows every one.")


@app.command(epilog="Example: market-data gaps AAPL --timeframes 5m")
def gaps(
    symbol: Annotated[str, typer.Argument(help="A followed symbol, as the vendor writes it.", show_default=False)],
    timeframes: Annotated[str, typer.Option(help="Comma-separated: 5m, 1d, the fetched ones; both if omitted.")] = "",
    as_json: AsJson = False,
) -> None:
    """Explain every gap in a symbol's history; nothing is sent."""
    from market_data_pipeline.reports.gaps import gaps_report, table_rows
    from market_data_pipeline.runtime.database import open_universe

    name, fetched, config = parse_symbol(symbol), names(timeframes, _fetched), settings()
    report = gaps_report(open_universe(config), config, name, fetched)
    if as_json:
        print_json(report)
        return
    print_table(("timeframe", "from", "to", ">bars", "reason"), table_rows(name, report.timeframes))
    for one in report.timeframes:
        unlisted = f"; nights and {one.weekends} weekends are not listed" if one.weekends else ""
        console().print(
            f"{symbol} {one.timeframe}: {one.bars_held} bars held and {one.bars_missing} missing "
            f"of {one.sessions} sessions since {instant(one.history_start)}{unlisted}."
        )
        if one.stray_bars:
            console().print(
                f"{symbol} {one.timeframe}: {one.stray_bars} bars that lie in no session were left out; "
                "they are kept in market_data.stray_bars."
            )
        if settled := one.settled_until:
            console().print(
                f"{symbol} {one.timeframe}: bars before {instant(settled)} have settled, later ones may still change."
            )
    console().print(
        f"At {instant(report.timestamp)} on the {report.plan} plan; the table's times are {report.exchange_timezone}."
    )


def _fetched(text: str) -> Timeframe:
    if (timeframe := parse_timeframe(text)).is_base:
        return timeframe
    raise UsageError(f"{timeframe} bars are made of {timeframe.base} ones and have the same gaps; choose 5m or 1d.")


@app.command(epilog="Example: market-data objectives --output objectives.json")
def objectives(
    output: Output = None,
    as_json: AsJson = False,
    markdown_file: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write them with the procedures as a page to FILE; - for standard output.",
        ),
    ] = None,
) -> None:
    """Show the objectives: freshness per tier, and recovery per failure."""
    from market_data_pipeline.reports.objectives import limit, objectives_document, objectives_markdown

    document = objectives_document()
    if as_json:
        print_json(document)
    if output is not None:
        write_json(output, document)
    if markdown_file is not None:
        write_text(markdown_file, objectives_markdown())
    if as_json or output is not None or markdown_file is not None:
        return
    print_table(
        ("tier", "at most behind", "refreshed", "promise"),
        [
            (name, span(tier["rpo_seconds"]), f"{tier['cron']} {tier['cron_timezone']}", tier["description"])
            for name, tier in document["tiers"].items()
        ],
        title="Freshness per tier (RPO)",
    )
    print_table(
        ("state", "up to", "condition", "what the API does"),
        [(name, limit(rule), rule["condition"], rule["action"]) for name, rule in document["freshness"].items()],
        title="States of a series",
    )
    print_table(
        ("failure", "recovered within", "symptom"),
        [(name, span(one["rto_seconds"]), one["symptom"]) for name, one in document["recovery"].items()],
        title="Recovery per failure (RTO)",
    )
    console().print("market-data objectives --markdown - says what to do about each; market-data drill rehearses them.")
