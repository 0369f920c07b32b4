"""`market-data lake`: the columnar copy for research."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli.console import AsJson, instant, names, print_json, print_table, settings
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from market_data_pipeline.lake.tables import LakeTable, SyncedTable
    from market_data_pipeline.lake.verify import VerifiedTable

app = typer.Typer(
    help="Keep a copy of bars and features as Delta tables, which DuckDB, Polars, Spark and pandas read.",
    no_args_is_help=True,
)


class Until(StrEnum):
    """How far a sync reaches."""

    SETTLED = "settled"
    NOW = "now"


_Tables = Annotated[
    str, typer.Option(help="Comma-separated, for example bars_5m,features_5m; all if omitted.", show_default=False)
]


@app.command(epilog="Example: market-data lake sync --until now --tables bars_5m,features_5m")
def sync(
    until: Annotated[
        Until, typer.Option(help="Up to the last settled day, whose bars no longer change, or up to the present.")
    ] = Until.SETTLED,
    tables: _Tables = "",
    full: Annotated[bool, typer.Option("--full", help="Write everything again, not only what has changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the lake up to date with the database: what changed since the last sync.

    Each table is changed by one commit. Interrupt it whenever you like: the
    next sync goes on from there. What a table already holds of days that have
    not settled is kept right by every later sync.
    """
    chosen = _chosen(tables)
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.sync import sync as run
    from market_data_pipeline.runtime.database import reading_engine

    config = settings()
    reading_engine(config).dispose()  # starts and migrates the embedded server
    done: list[SyncedTable] = []

    def show(one: SyncedTable) -> None:
        done.append(one)
        if not as_json and (one.rows_written or one.series):
            console().print(f"{one.name}: {one.series} series changed, {one.rows_written:,} rows written")

    run(config, tables=chosen, until_now=until is Until.NOW, full=full, synced=show)
    if as_json:
        print_json([one._asdict() for one in done])
        return
    print_table(
        ("table", ">version", ">rows", ">files", ">MB", "holds bars before"),
        [(o.name, o.version, f"{o.rows:,}", o.files, f"{o.bytes / 1e6:.1f}", instant(o.until)) for o in done],
    )
    console().print(f"The lake is {Lake.of(config).url}")


@app.command(epilog="Example: market-data lake verify --tables bars_5m --months 2026-10,2026-11")
def verify(
    tables: _Tables = "",
    months: Annotated[str, typer.Option(help="Comma-separated, YYYY-MM; all if omitted.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Compare the lake with the database, row for row; exit with 1 if they differ.

    Series that the database has changed since the last sync are behind, which
    is no difference; they are not compared.
    """
    chosen, wanted = _chosen(tables), names(months, _month)
    from market_data_pipeline.lake.verify import verify as run
    from market_data_pipeline.runtime.database import reading_engine

    config = settings()
    reading_engine(config).dispose()
    found = run(config, tables=chosen, months=wanted or None)
    if as_json:
        print_json([_document(one) for one in found])
    else:
        print_table(
            ("table", ">series", ">behind", ">months", ">rows compared", ">months that differ"),
            [(o.name, o.series, o.behind, o.months, f"{o.rows:,}", o.different) for o in found if o.exists],
        )
        for one in found:
            if not one.exists:
                console().print(f"{one.name} does not exist yet: `market-data lake sync` writes it.")
            for difference in one.sample:
                console().print(
                    f"{one.name}: {difference.symbol} in {difference.month}: {difference.rows_lake} rows in the lake, "
                    f"{difference.rows_database} in the database"
                )
    if any(one.exists and not one.equal for one in found):
        if not as_json:
            console().print("They differ: `market-data lake sync --full` writes the lake again.")
        raise typer.Exit(1)


def _document(one: VerifiedTable) -> dict[str, object]:
    counts = {name: getattr(one, name) for name in ("name", "exists", "series", "behind", "rows", "months")}
    sample = [difference._asdict() for difference in one.sample]
    return {**counts, "different": one.different, "equal": one.equal, "sample": sample}


@app.command(epilog="Example: duckdb -c \"select count(*) from delta_scan('$(market-data lake path bars_5m)')\"")
def path(
    table: Annotated[str, typer.Argument(help="A table; the whole lake if omitted.", show_default=False)] = "",
) -> None:
    """Print where the lake, or one of its tables, is: a folder or a URL."""
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.tables import NAMES

    if table and table not in NAMES:
        raise UsageError(f"The lake has no table {table[:40]!r}; it has {', '.join(NAMES)}.")
    lake = Lake.of(settings())
    print(lake.table_url(table) if table else lake.url)


def _chosen(text: str) -> tuple[LakeTable, ...]:
    from market_data_pipeline.lake.tables import TABLES, table_named

    return names(text, table_named) or TABLES


def _month(text: str) -> str:
    from datetime import datetime

    try:
        return f"{datetime.strptime(text, '%Y-%m'):%Y-%m}"  # noqa: DTZ007 - only the month is kept
    except ValueError:
        raise UsageError(f"{text[:40]!r} is not a month; write it as 2026-11.") from None
