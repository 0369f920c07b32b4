"""Tables of a lake and the footers of their files, kept from one read to the next of the same process.

A file never changes, so its footer is read once. A table on this machine is opened again when its log has grown, which
takes two looks at the folder to see; one elsewhere is opened at each read. What is kept are values, so it may be used
by several threads and after a fork.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.calendar import to_us
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.lake.files import files_of
from market_data_pipeline.lake.state import read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import pyarrow.parquet as pq
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

    from market_data_pipeline.lake.files import File
    from market_data_pipeline.lake.location import Lake
    from market_data_pipeline.lake.state import TableState
    from market_data_pipeline.lake.tables import LakeTable

# About 50 MB: a footer takes 400 bytes for each column of a group of rows.
_MOST_CHUNKS: Final = 1 << 17


class Group(NamedTuple):
    """A group of rows of a file; `first` and `last` are its first and last symbol, instants are int64 microseconds."""

    number: int
    rows: int
    first: str
    last: str
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of a file says of it."""

    metadata: pq.FileMetaData
    groups: list[Group]
    lasts: list[str] | None  # of the groups; None if they do not ascend, as another program may have written them

    def groups_of(self, symbols: Collection[str]) -> list[Group]:
        """Return the groups that may hold rows of the symbols."""
        if self.lasts is None:
            return [group for group in self.groups if any(group.first <= symbol <= group.last for symbol in symbols)]
        found: dict[int, Group] = {}
        for symbol in symbols:
            place = bisect_left(self.lasts, symbol)
            while place < len(self.groups) and self.groups[place].first <= symbol:
                found[place] = self.groups[place]
                place += 1
        return [found[place] for place in sorted(found)]


@dataclass(frozen=True, slots=True)
class OpenedTable:
    """A table with rows of bars at one version."""

    table: LakeTable
    place: str  # its path or URL
    state: TableState
    files: list[File]
    filesystem: FileSystem
    far: bool  # not on this machine

    def footer(self, file: File) -> Footer:
        """Return a file's footer."""
        key = (self.place, file.path)
        found = _footers.get(key)
        if found is None:
            found = _read_footer(self.filesystem, file)
            while _footers and sum(map(_chunks, list(_footers.values()))) > _MOST_CHUNKS:
                _footers.pop(next(iter(_footers)), None)
            _footers[key] = found
        return found


class _Kept(NamedTuple):
    version: int
    identity: tuple[int, int, int]
    value: Any


_footers: dict[tuple[str, str], Footer] = {}
_tables: dict[str, _Kept] = {}


def opened_table(lake: Lake, table: LakeTable) -> OpenedTable:
    """Return a table as it is now.

    Raises:
        UsageError: it does not exist yet.
        ConfigurationError: the lake's place cannot be used.
    """

    def read(delta: DeltaTable | None) -> OpenedTable:
        state = read_state(delta)
        if delta is None or state is None:
            raise UsageError(f"The lake at {lake.url} has no {table.name} yet: `market-data lake sync` writes it.")
        place, far = lake.table_url(table.name), lake.local is None
        return OpenedTable(table, place, state, files_of(delta), lake.filesystem(delta), far)

    found: OpenedTable = _current(lake, table.name, read)
    return found


def small_table(lake: Lake, name: str) -> Mapping[str, list[dict[str, Any]]]:
    """Return the rows of a table without rows of bars by symbol, as it is now; none if it does not exist.

    Raises:
        ConfigurationError: the lake's place cannot be used.
    """

    def read(delta: DeltaTable | None) -> dict[str, list[dict[str, Any]]]:
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in delta.to_pyarrow_table().to_pylist() if delta is not None else ():
            rows.setdefault(row["symbol"], []).append(row)
        return rows

    found: dict[str, list[dict[str, Any]]] = _current(lake, name, read)
    return found


def _current(lake: Lake, name: str, read: Callable[[DeltaTable | None], Any]) -> Any:
    """Return what `read` makes of a table as it is now, or made of this version before."""
    log = None if lake.local is None else f"{lake.local.absolute()}/{name}/_delta_log"
    kept = None if log is None else _tables.get(log)
    if log is not None and kept is not None and _identity(log, kept.version) == kept.identity:
        return kept.value
    with lake.translated():
        delta = lake.open(name)
        value = read(delta)
        if log is not None and delta is not None and (identity := _identity(log, delta.version())) is not None:
            _tables[log] = _Kept(delta.version(), identity, value)
    return value


def _identity(log: str, version: int) -> tuple[int, int, int] | None:
    """Return what tells a table's last commit from any other; None if there is a later one, or this one is gone."""
    try:
        status = Path(log, f"{version:020d}.json").stat()
    except OSError:
        return None
    if Path(log, f"{version + 1:020d}.json").exists():
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_footer(filesystem: FileSystem, file: File) -> Footer:
    import pyarrow.parquet as pq

    with filesystem.open_input_file(file.path) as source:
        metadata = pq.read_metadata(source)
    names = metadata.schema.names
    symbols, instants = names.index("symbol"), names.index("ts")
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        symbol, ts = group.column(symbols).statistics, group.column(instants).statistics
        first, last, first_us, last_us = file.first, file.last, file.first_us, file.last_us
        if symbol is not None and symbol.has_min_max:
            first, last = symbol.min, symbol.max
        if ts is not None and ts.has_min_max:
            first_us, last_us = to_us(ts.min), to_us(ts.max)
        groups.append(Group(number, group.num_rows, first, last, first_us, last_us))
    firsts, lasts = [group.first for group in groups], [group.last for group in groups]
    return Footer(metadata, groups, lasts if lasts == sorted(lasts) and firsts == sorted(firsts) else None)


def _chunks(footer: Footer) -> int:
    return len(footer.groups) * int(footer.metadata.num_columns)
