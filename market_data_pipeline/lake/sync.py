"""Bring the lake up to date with the database: what changed since the last sync, each table by one commit.

All tables are brought to one snapshot of the database. A table's files and its state (`lake.state`) become visible in
one commit of Delta, so a sync that ends at any moment has done its work for a table whole or not at all, and the next
one goes on from there. Two syncs at once do no harm: the second to commit finds that the table has moved on, and works
out again what is left to do.

Add here: the order of the steps. Keep out: what changed (store.changes), which months that means (plan), files (files).
"""

from __future__ import annotations

from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.domain.calendar import from_us
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.lake.files import (
    Batch,
    files_of,
    holders,
    kept_rows,
    merged,
    removal,
    rows_added,
    rows_of,
    write_month,
)
from market_data_pipeline.lake.location import Lake, LakeConflictError
from market_data_pipeline.lake.plan import month_bounds, plan
from market_data_pipeline.lake.reference import sync_dividends, sync_series, sync_splits, sync_tickers
from market_data_pipeline.lake.snapshot import snapshot
from market_data_pipeline.lake.state import TableState, read_state
from market_data_pipeline.lake.tables import MONTH, TABLES, SyncedTable
from market_data_pipeline.store.changes import changes_since
from market_data_pipeline.store.series_rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from deltalake import DeltaTable

    from market_data_pipeline.domain.intervals import Interval
    from market_data_pipeline.lake.files import File
    from market_data_pipeline.lake.plan import Work
    from market_data_pipeline.lake.snapshot import Snapshot
    from market_data_pipeline.lake.tables import LakeTable
    from market_data_pipeline.settings import Settings

_ATTEMPTS: Final = 3
# Symbols that one statement reads a month of: 258,000 rows of 5m bars, 60 MB in the server for their features.
_SYMBOLS: Final = 64
# Files that no version needs any more stay for those who have begun to read them; a day is longer than any query.
_CONFIGURATION: Final = {
    "delta.deletedFileRetentionDuration": "interval 1 day",
    "delta.logRetentionDuration": "interval 7 days",
}


def sync(
    settings: Settings,
    *,
    tables: Sequence[LakeTable] = TABLES,
    until_now: bool = False,
    full: bool = False,
    synced: Callable[[SyncedTable], None] = lambda _: None,
) -> list[SyncedTable]:
    """Bring tables of the lake up to date, the small ones with them, and return what was done.

    Args:
        settings: of the project.
        tables: which of those with rows of bars.
        until_now: also bars of days that have not settled; what a table already holds of them is always kept right.
        full: write everything again.
        synced: is called with each table when it is committed.

    Raises:
        DatabaseUnavailableError: the database cannot be reached.
        ConfigurationError: the lake's place cannot be used, or it holds bars of another source.
        LakeConflictError: other syncs were quicker three times.
    """
    lake, done = Lake.of(settings), list[SyncedTable]()
    with snapshot(settings) as now:
        steps: list[Callable[[], SyncedTable]] = [
            lambda: sync_splits(lake, now),
            lambda: sync_dividends(lake, now),
            lambda: sync_tickers(lake, now),
        ]
        steps += [lambda table=table: _sync_table(lake, table, now, until_now, full) for table in tables]  # type: ignore[misc]
        steps += [lambda: sync_series(lake, now)]
        for step in steps:
            done.append(_attempted(step))
            synced(done[-1])
    return done


def _attempted(step: Callable[[], SyncedTable]) -> SyncedTable:
    for _ in range(1, _ATTEMPTS):
        try:
            return step()
        except LakeConflictError:
            continue
    return step()


def _sync_table(lake: Lake, table: LakeTable, now: Snapshot, until_now: bool, full: bool) -> SyncedTable:
    began = perf_counter()
    delta = lake.open(table.name) or _created(lake, table)
    state = read_state(delta)
    _refuse_other_source(lake, state, now)
    files = files_of(delta)
    known = None if full else state
    held = known.series if known else {}
    changes = changes_since(now.connection, table.timeframe, {name: one.position for name, one in held.items()})
    work = plan(
        held, now.stored[table.timeframe], changes, lambda series: now.now if until_now else series.settled_until
    )
    written = 0
    if known is None or work.months or work.replaced or work.held != held:
        usable = files if known else []  # without a state nothing is known of what is there
        actions: list[Any] = [] if known else [removal(file) for file in files]
        with lake.translated():
            for month in sorted({*work.months, *(file.month for file in usable)}):
                actions += _rewritten(lake, delta, table, now, work, month, usable)
            _commit(delta, table, actions, TableState(work.held, now.source, now.now.isoformat()))
            _vacuum(delta, known, now.now)
        written, files = sum(map(rows_added, actions)), files_of(delta)
    return SyncedTable(
        table.name,
        delta.version(),
        work.series,
        written,
        sum(file.rows for file in files),
        len(files),
        sum(file.size for file in files),
        min((from_us(one.until_us) for one in work.held.values()), default=None),
        tuple(sorted(work.months)),
        perf_counter() - began,
    )


def _created(lake: Lake, table: LakeTable) -> DeltaTable:
    from deltalake import DeltaTable

    with lake.translated():
        if lake.local is not None:
            (lake.local / table.name).mkdir(parents=True, exist_ok=True)
        return DeltaTable.create(
            lake.table_url(table.name),
            schema=table.delta_schema(),
            mode="ignore",
            partition_by=[MONTH],
            name=table.name,
            description=table.description,
            configuration=dict(_CONFIGURATION),
            storage_options=dict(lake.options) or None,
        )


def _refuse_other_source(lake: Lake, state: TableState | None, now: Snapshot) -> None:
    if state is not None and state.source and now.source and state.source != now.source:
        raise ConfigurationError(
            f"The lake at {lake.url} holds bars of another source ({state.source}) than the database ({now.source}): "
            "name another place, for example MARKET_DATA_LAKE_URL=/srv/other-lake, or remove the lake."
        )


def _rewritten(
    lake: Lake,
    delta: DeltaTable,
    table: LakeTable,
    now: Snapshot,
    work: Work,
    month: str,
    files: Sequence[File],
) -> list[Any]:
    """Write a month's files again as far as there is work in them; return what adds and removes files."""
    filesystem, actions = lake.filesystem(delta), list[Any]()
    files = [file for file in files if file.month == month]
    spans = work.months.get(month, {})
    whole = {
        symbol: month_bounds(month)
        for symbol in work.replaced
        if any(file.first <= symbol <= file.last for file in files)
    }
    for file, group in holders(files, {*spans, *whole}).items():
        kept = kept_rows(rows_of(filesystem, table, file), {**spans, **whole}) if file else None
        wanted = {symbol: spans[symbol] for symbol in group if symbol in spans}
        actions += write_month(filesystem, table, month, merged(kept, _batches(now, table, wanted)))
        actions += [removal(file)] if file else []
    return actions


def _batches(now: Snapshot, table: LakeTable, spans: Mapping[str, Interval]) -> Iterator[Batch]:
    remaining = iter(spans.items())
    while some := dict(islice(remaining, _SYMBOLS)):
        yield Batch(max(some), read_rows(now.connection, table.relation, table.timeframe, some))


def _commit(delta: DeltaTable, table: LakeTable, actions: list[Any], state: TableState) -> None:
    """Make the files and the state the table's, unless it has moved on since `delta` was opened."""
    from deltalake import CommitProperties

    delta.create_write_transaction(
        actions,
        mode="append",  # that is: exactly these actions
        schema=table.delta_schema(),
        partition_by=[MONTH],
        commit_properties=CommitProperties(custom_metadata=state.document(), max_commit_retries=0),
    )
    delta.update_incremental()


def _vacuum(delta: DeltaTable, known: TableState | None, now: datetime) -> None:
    """Remove files that no version of the last day needs, on the first sync of a day."""
    if known is not None and known.synced_at[:10] != now.isoformat()[:10]:
        delta.vacuum(dry_run=False)
        delta.update_incremental()
