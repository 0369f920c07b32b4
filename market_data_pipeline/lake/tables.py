"""The tables of the lake: their names, their columns, and what of the database each of them holds.

`bars_5m`, `features_5m` and `bar_revisions_5m`, and so for each timeframe, are partitioned by month (`month=2026-11`,
UTC) and sorted by symbol and time in each file. `splits`, `dividends`, `tickers` and `series` are one
small file each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.store.series_rows import BARS, FEATURE_ROWS, REVISIONS, Relation

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

MONTH: Final = "month"
SPLITS: Final = "splits"
DIVIDENDS: Final = "dividends"
TICKERS: Final = "tickers"
SERIES: Final = "series"


DESCRIPTIONS: Final = {
    SPLITS: "Splits as the vendor listed them during [first_seen_at, superseded_at): bars that start before "
    "in_force_from have prices multiplied by factor and volume divided by it, where counts is true.",
    DIVIDENDS: "Cash dividends as the vendor listed them during [first_seen_at, superseded_at): prices of bars that "
    "start before in_force_from are multiplied by 1 - amount / the last close before, the USD of a day together.",
    TICKERS: "Former tickers: the followed symbol whose security had ticker, the last one that had, as known now.",
    SERIES: "What the lake holds of each series: bars that start before held_until, as of the revision.",
}


class Kind(StrEnum):
    """What a table with rows of bars holds."""

    BARS = "bars"
    FEATURES = "features"
    REVISIONS = "bar_revisions"


_RELATIONS: Final = {Kind.BARS: BARS, Kind.FEATURES: FEATURE_ROWS, Kind.REVISIONS: REVISIONS}
_DESCRIPTIONS: Final = {
    Kind.BARS: "Raw {0} bars, never split-adjusted; ts is a bar's start, UTC.",
    Kind.FEATURES: "The features of {0} bars, computed from split-adjusted bars; ts is a bar's start, UTC.",
    Kind.REVISIONS: "The old values of {0} bars that were corrected: they held during [ingested_at, superseded_at).",
}


@dataclass(frozen=True, slots=True)
class LakeTable:
    """A table with rows of bars of one timeframe."""

    kind: Kind
    timeframe: Timeframe

    @property
    def name(self) -> str:
        """The folder's name, which is also that of the asset."""
        return f"{self.kind}_{self.timeframe}"

    @property
    def relation(self) -> Relation:
        """What of the database it holds."""
        return _RELATIONS[self.kind]

    @property
    def description(self) -> str:
        """One line for users."""
        return _DESCRIPTIONS[self.kind].format(self.timeframe)

    def delta_schema(self) -> pa.Schema:
        """Return the columns as Delta has them, `month` last."""
        import pyarrow as pa

        return self.relation.schema(encoded=False).append(pa.field(MONTH, pa.string(), nullable=False))


# In the order in which they are synced: an old value is there before the table of bars lacks it, so that whoever opens
# the bars first finds each value in one of the two.
TABLES: Final = tuple(
    LakeTable(kind, timeframe) for timeframe in Timeframe for kind in (Kind.REVISIONS, Kind.BARS, Kind.FEATURES)
)
NAMES: Final = (*(table.name for table in TABLES), SPLITS, DIVIDENDS, TICKERS, SERIES)


def table_named(name: str) -> LakeTable:
    """Return the table with rows of bars of that name.

    Raises:
        UsageError: there is none.
    """
    found = next((table for table in TABLES if table.name == name), None)
    if found is None:
        raise UsageError(f"The lake has no table {name[:40]!r} of bars; it has {', '.join(t.name for t in TABLES)}.")
    return found


class SyncedTable(NamedTuple):
    """What a sync did to a table.

    Attributes:
        name: the table's.
        version: of the Delta table afterwards.
        series: series that were written.
        rows_written: rows in new files, those that were only moved included.
        rows: rows of the table afterwards.
        files: files of the table afterwards.
        bytes: of those files.
        until: how far the series that reaches least far is held; None for an empty table and for one of another kind.
        months: the months that were written.
        seconds: how long it took.
    """

    name: str
    version: int
    series: int
    rows_written: int
    rows: int
    files: int
    bytes: int
    until: datetime | None
    months: tuple[str, ...]
    seconds: float
