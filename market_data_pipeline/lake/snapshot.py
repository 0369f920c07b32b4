"""The database as a sync or a verification of the lake sees it: one snapshot of all series."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.changes import stored_series

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.changes import StoredSeries
    from market_data_pipeline.store.copy import StoreConnection


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The database at one instant.

    Attributes:
        connection: with the snapshot's transaction.
        now: the pipeline's present, aware UTC.
        source: where the bars come from, in words.
        stored: the series of each timeframe, by symbol.
    """

    connection: StoreConnection
    now: datetime
    source: str
    stored: dict[Timeframe, dict[str, StoredSeries]]


@contextmanager
def snapshot(settings: Settings) -> Iterator[Snapshot]:
    """Yield the database as it is now, until the block ends.

    Raises:
        DatabaseUnavailableError: it cannot be reached.
    """
    from market_data_pipeline.store.connection import Role
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.source import held_source

    source = held_source(settings.database_url).source
    with StoreConnection(settings.database_url, settings.as_of, Role.READER) as connection:
        connection.read_only_snapshots()
        stored: dict[Timeframe, dict[str, StoredSeries]] = {timeframe: {} for timeframe in Timeframe}
        for series, one in stored_series(connection, tuple(Timeframe)).items():
            stored[series.timeframe][series.symbol] = one
        named = "" if source is None else " ".join(filter(None, (source.kind, source.host)))
        yield Snapshot(connection, settings.clock(), named, stored)
