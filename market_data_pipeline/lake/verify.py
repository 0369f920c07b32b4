"""Whether tables of the lake hold exactly what the database does, row for row.

A series that the database has changed since the last sync is behind, which is no fault; its rows are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.calendar import from_us
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.lake.files import files_of, rows_of, symbol_runs
from market_data_pipeline.lake.location import Lake
from market_data_pipeline.lake.plan import month_bounds, months_of
from market_data_pipeline.lake.snapshot import snapshot
from market_data_pipeline.lake.state import read_state
from market_data_pipeline.lake.tables import TABLES
from market_data_pipeline.store.series_rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import pyarrow as pa

    from market_data_pipeline.lake.snapshot import Snapshot
    from market_data_pipeline.lake.state import TableState
    from market_data_pipeline.lake.tables import LakeTable
    from market_data_pipeline.settings import Settings

_SHOWN: Final = 20
_SYMBOLS: Final = 64  # as many as a sync reads by one statement


class Difference(NamedTuple):
    """A month of a series of which the lake and the database hold different rows."""

    symbol: str
    month: str
    rows_lake: int
    rows_database: int


@dataclass(frozen=True, slots=True)
class VerifiedTable:
    """What a comparison of a table found.

    Attributes:
        name: the table's.
        exists: whether the lake has it.
        series: series that the table holds.
        behind: series that the database has changed since the last sync; they are not compared.
        rows: rows that were compared.
        months: months that were compared.
        different: months of series that differ.
        sample: the first of them.
    """

    name: str
    exists: bool
    series: int = 0
    behind: int = 0
    rows: int = 0
    months: int = 0
    different: int = 0
    sample: tuple[Difference, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is the same."""
        return self.exists and not self.different


def verify(
    settings: Settings,
    *,
    tables: Sequence[LakeTable] = TABLES,
    months: Collection[str] | None = None,
    turn: int | None = None,
    verified: Callable[[VerifiedTable], None] = lambda _: None,
) -> list[VerifiedTable]:
    """Compare tables of the lake with the database, and return what was found.

    Args:
        settings: of the project.
        tables: which.
        months: which months (`2026-11`); None for all.
        turn: besides those one more month; the next number means the next month, and so on in a circle.
        verified: is called with each table when it is compared.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
        ConfigurationError: the lake's place cannot be used.
    """
    lake, found = Lake.of(settings), list[VerifiedTable]()
    with snapshot(settings) as now:
        for table in tables:
            found.append(_verified(lake, table, now, months, turn))
            verified(found[-1])
    return found


def _verified(
    lake: Lake, table: LakeTable, now: Snapshot, months: Collection[str] | None, turn: int | None
) -> VerifiedTable:
    delta = lake.open(table.name)
    state = read_state(delta)
    if delta is None or state is None:
        return VerifiedTable(table.name, exists=False)
    current = _current(table, state, now)
    files = files_of(delta)
    compared = sorted({file.month for file in files} | _months(table, state, now))
    if months is not None:
        in_turn = {compared[turn % len(compared)]} if turn is not None and compared else set()
        compared = [month for month in compared if month in months or month in in_turn]
    rows, different = 0, list[Difference]()
    with lake.translated():
        filesystem = lake.filesystem(delta)
        for month in compared:
            held = [rows_of(filesystem, table, file) for file in files if file.month == month]
            one, some = _compared(table, now, month, held, current, set(state.series) - set(current))
            rows += one
            different += some
    return VerifiedTable(
        table.name,
        exists=True,
        series=len(state.series),
        behind=len(state.series) - len(current),
        rows=rows,
        months=len(compared),
        different=len(different),
        sample=tuple(different[:_SHOWN]),
    )


def _current(table: LakeTable, state: TableState, now: Snapshot) -> dict[str, datetime]:
    """Return until when the table holds each series that has not changed since."""
    stored = now.stored[table.timeframe]
    return {
        symbol: from_us(held.until_us)
        for symbol, held in sorted(state.series.items())
        if symbol in stored and stored[symbol].position == held.position
    }


def _months(table: LakeTable, state: TableState, now: Snapshot) -> set[str]:
    """Return the months in which the database may hold rows of the table."""
    spans = [
        Interval(series.first_ts, series.last_ts + timedelta(microseconds=1))
        for series in now.stored[table.timeframe].values()
        if series.series.symbol in state.series and series.first_ts and series.last_ts
    ]
    return months_of(spans)


def _compared(
    table: LakeTable,
    now: Snapshot,
    month: str,
    held: list[pa.Table],
    current: dict[str, datetime],
    behind: Collection[str],
) -> tuple[int, list[Difference]]:
    """Return how many rows of a month were compared, and the series that differ."""
    ours = {symbol: part for rows in held for symbol, part in _by_symbol(rows)}
    symbols = sorted(current)
    rows, different = 0, list[Difference]()
    for begin in range(0, len(symbols), 64):
        start, end = month_bounds(month)
        some = {symbol: Interval(start, min(end, current[symbol])) for symbol in symbols[begin : begin + _SYMBOLS]}
        theirs = dict(_by_symbol(read_rows(now.connection, table.relation, table.timeframe, some)))
        for symbol in some:
            lake_rows, database_rows = ours.pop(symbol, None), theirs.get(symbol)
            rows += 0 if database_rows is None else len(database_rows)
            if not _equal(lake_rows, database_rows):
                counts = (0 if part is None else len(part) for part in (lake_rows, database_rows))
                different.append(Difference(symbol, month, *counts))
    different += [Difference(symbol, month, len(part), 0) for symbol, part in ours.items() if symbol not in behind]
    return rows, different


def _by_symbol(rows: pa.Table) -> list[tuple[str, pa.Table]]:
    return [(symbol, rows.slice(start, end - start)) for symbol, start, end in symbol_runs(rows)]


def _equal(one: pa.Table | None, other: pa.Table | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(_plain(one).equals(_plain(other)))


def _plain(rows: pa.Table) -> pa.Table:
    """Return the rows with texts as texts: dictionaries may be equal in other orders."""
    import pyarrow as pa

    fields = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in rows.schema]
    return rows.cast(pa.schema(fields))
