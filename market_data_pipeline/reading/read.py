"""From a reader's arguments to its answer: which source is asked, and in which form the rows are returned.

Add here: a source, in `_pieces`. Keep out: the arguments and their documentation (the package), and how a source reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.reading import lake as from_lake
from market_data_pipeline.reading import progress, tables
from market_data_pipeline.reading.current_settings import current_settings
from market_data_pipeline.reading.database import PIECE_ROWS, Piece, pieces
from market_data_pipeline.reading.selection import Kind, Selection, select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

    from market_data_pipeline.reading.tables import Rows
    from market_data_pipeline.settings import Settings

Source = Literal["auto", "database", "lake"]
_SOURCES: Final = ("auto", "database", "lake")


def read(
    kind: Kind,
    *,
    source: Source,
    settings: Settings | None,
    as_arrow: bool,
    as_polars: bool,
    **arguments: Any,
) -> Any:
    """Return all selected rows in one frame; `arguments` are those of `select`."""
    form = _form(as_arrow, as_polars)
    settings = settings or current_settings()
    selection = _selection(kind, settings, arguments)
    found: list[Rows] = []
    count = 0
    with progress.shown(kind, len(selection.symbols) * len(selection.timeframes)) as show:
        for piece in _pieces(selection, settings, source, None):
            found.append(piece.rows)
            count += len(piece.rows.ts)
            show(piece.series_read, count)
    return form(selection, found)


def iterate(
    kind: Kind,
    *,
    rows: int,
    source: Source,
    settings: Settings | None,
    as_arrow: bool,
    as_polars: bool,
    **arguments: Any,
) -> Iterator[Any]:
    """Return an iterator over the selected rows in frames of at most `rows` rows, none of them empty."""
    form = _form(as_arrow, as_polars)
    if not isinstance(rows, int) or rows < 1:
        raise UsageError(f"rows must be a whole number of at least 1, not {rows!r}.")
    settings = settings or current_settings()
    selection = _selection(kind, settings, arguments)
    return (
        form(selection, [piece.rows.part(first, first + rows)])
        for piece in _pieces(selection, settings, source, min(rows, PIECE_ROWS))
        for first in range(0, len(piece.rows.ts), rows)
    )


def _selection(kind: Kind, settings: Settings, arguments: dict[str, Any]) -> Selection:
    from market_data_pipeline.ingest.own_features import load_own_features

    own = () if kind == "bars" else load_own_features(settings).declarations
    return select(kind, own=own, **arguments)


def _pieces(selection: Selection, settings: Settings, source: Source, rows: int | None) -> Iterator[Piece]:
    """Yield the selected rows, of about `rows` each time; None: as they are read fastest."""
    if source not in _SOURCES:
        raise UsageError(f"source must be one of {', '.join(_SOURCES)}, not {source!r}.")
    lake = None
    if source == "lake":
        lake = from_lake.open_lake(selection, settings)
    elif source == "auto":
        lake = from_lake.nearer_lake(selection, settings)
    if lake is not None:
        return from_lake.pieces(selection, settings, lake, rows)
    return pieces(selection, settings, rows)


def _form(as_arrow: bool, as_polars: bool) -> Callable[[Selection, list[Rows]], Any]:
    if as_arrow and as_polars:
        raise UsageError("as_arrow and as_polars name two forms of the answer: pass one of them.")
    if as_arrow:
        return tables.table
    return _polars if as_polars else tables.frame


def _polars(selection: Selection, parts: list[Rows]) -> pl.DataFrame:
    return tables.to_polars(tables.table(selection, parts))
