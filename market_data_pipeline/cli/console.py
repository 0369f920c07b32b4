"""What the commands share: options, and how lists, instants, tables and JSON are read and printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from market_data_pipeline.domain.errors import printable
from market_data_pipeline.domain.series import Timeframe, parse_symbol
from market_data_pipeline.runtime.console import console

if TYPE_CHECKING:
    from datetime import datetime

    from market_data_pipeline.settings import Settings

T = TypeVar("T")

Symbols = Annotated[
    list[str] | None,
    typer.Argument(metavar="SYMBOL", help="Followed symbols; all if omitted.", show_default=False),
]
SymbolList = Annotated[str, typer.Option("--symbols", help="The same, as a comma-separated list.")]
Timeframes = Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(Timeframe)}; all if omitted.")]
HistoryDays = Annotated[
    int | None, typer.Option(min=1, help="Calendar days of history; MARKET_DATA_HISTORY_DAYS if omitted.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON to standard output, as the read API answers it where it does.")
]
Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the JSON document to FILE.", show_default=False)
]


def settings() -> Settings:
    """Return the settings of this process, whose network is prepared too.

    Raises:
        ConfigurationError: a value is invalid.
    """
    from market_data_pipeline.settings import load_settings
    from market_data_pipeline.settings.network import prepare_network

    prepare_network()
    return load_settings()


def names(text: str, parse: Callable[[str], T]) -> tuple[T, ...]:
    """Return the comma-separated parts of `text`, each parsed once, in the order given.

    Raises:
        UsageError: from `parse`.
    """
    return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",") if part.strip()))


def symbols_of(arguments: Sequence[str] | None, option: str) -> tuple[str, ...]:
    """Return the symbols that a command names as its arguments or after `--symbols`, each once.

    Raises:
        UsageError: one is not a ticker.
    """
    return names(",".join((*(arguments or ()), option)), parse_symbol)


def instant(value: datetime | None) -> str | None:
    """Return an instant in UTC, to the second."""
    return None if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def print_json(value: object) -> None:
    """Write `value` as JSON to standard output."""
    sys.stdout.write(_json(value))


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON to a file and print its name."""
    write_text(path, _json(value))


def write_text(path: Path, text: str) -> None:
    """Write `text` to a file and print its name; `-` is standard output."""
    if str(path) == "-":
        sys.stdout.write(text)
        return
    path.write_text(text, encoding="utf-8")
    console().print(f"Wrote {path}")


def _json(value: object) -> str:
    import orjson

    options = orjson.OPT_UTC_Z | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, default=lambda answer: answer.model_dump(), option=options).decode()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table unless it has no rows; a column named `>…` is aligned to the right, and None is a dash."""
    if not rows:
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        table.add_row(
            *(
                value if isinstance(value, Text) else Text("-" if value is None else printable(str(value)))
                for value in row
            )
        )
    console().print(table, soft_wrap=False)
