"""`market-data export`: bars and features as files."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from market_data_pipeline.cli.console import SymbolList, Symbols, names, settings, symbols_of
from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Timeframe, parse_timeframe
from market_data_pipeline.reading.export import Format
from market_data_pipeline.runtime.console import console

app = typer.Typer()


class Rows(StrEnum):
    """What is exported."""

    BARS = "bars"
    FEATURES = "features"
    RECORDS = "records"


class From(StrEnum):
    """Where it is read."""

    AUTO = "auto"
    DATABASE = "database"
    LAKE = "lake"


class Hours(StrEnum):
    """Which hours of a session."""

    EXTENDED = "extended"
    REGULAR = "regular"


@app.command(
    epilog="Example: market-data export AAPL MSFT --timeframes 1h,1d --start 2026-01-01 --format csv --output bars.csv"
)
def export(
    output: Annotated[
        Path, typer.Option(metavar="PATH", help="The file, or the folder of a Delta table.", show_default=False)
    ],
    symbols: Symbols = None,
    symbol_list: SymbolList = "",
    timeframes: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(Timeframe)}.")] = "1d",
    rows: Annotated[Rows, typer.Option(help="records are bars, each with its features.")] = Rows.BARS,
    form: Annotated[Format, typer.Option("--format", help="What is written.")] = Format.PARQUET,
    start: Annotated[str, typer.Option(help="First bar start: a date, or an instant with its time zone.")] = "",
    end: Annotated[str, typer.Option(help="Bars that start at or after it are left out.")] = "",
    as_of: Annotated[
        str, typer.Option(help="Bars as they were known at this instant, for example 2026-11-20T21:00Z.")
    ] = "",
    adjustment: Annotated[
        Adjustment, typer.Option(help="Prices as traded, adjusted for splits, or for splits and dividends.")
    ] = Adjustment.SPLITS,
    raw: Annotated[bool, typer.Option("--raw", help="The same as --adjustment raw.")] = False,
    session: Annotated[
        Hours, typer.Option(help="All hours, or the regular ones: 09:30 to 16:00 New York of stocks and indices.")
    ] = Hours.EXTENDED,
    columns: Annotated[str, typer.Option(help="Comma-separated; all if omitted.")] = "",
    source: Annotated[From, typer.Option(help="Where to read: the nearer of both, or one of them.")] = From.AUTO,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write bars or features to a Parquet or CSV file or a Delta table.

    Without symbols, those of all that are followed are written. Bars are
    adjusted for splits unless --adjustment says otherwise; features always are.
    """
    if raw and adjustment is Adjustment.ALL:
        raise UsageError("--raw and --adjustment all contradict each other: leave one of them out.")
    adjustment = Adjustment.RAW if raw else adjustment
    chosen, spans = symbols_of(symbols, symbol_list), names(timeframes, parse_timeframe)
    if rows is not Rows.BARS and as_of:
        raise UsageError("--as-of is for bars: features are those of the bars as known now.")
    if rows is Rows.FEATURES and adjustment is not Adjustment.SPLITS:
        raise UsageError(f"{adjustment} is for bars: features are computed from split-adjusted ones.")
    from market_data_pipeline.reading.export import export as write
    from market_data_pipeline.runtime.database import reading_engine
    from market_data_pipeline.store.universe import tracked

    config = settings()
    if not chosen:
        chosen = tuple(each.symbol for each in tracked(reading_engine(config)) if each.active)
    arguments: dict[str, Any] = {
        "symbol": list(chosen),
        "timeframe": list(spans),
        "start": start or None,
        "end": end or None,
        "session": session.value,
        "columns": names(columns, str) or None,
        "source": source.value,
        "settings": config,
    }
    if rows is Rows.BARS and as_of:
        try:
            arguments["as_of"] = datetime.fromisoformat(as_of)
        except ValueError:
            raise UsageError(f"--as-of {as_of!r} is not an instant such as 2026-11-20T21:00Z.") from None
    if rows is not Rows.FEATURES:
        arguments["adjusted"] = adjustment.value
    count = write(output, form, rows.value, overwrite=overwrite, **arguments)
    console().print(f"Wrote {count:,} rows to {output}")
