"""What a table of the lake holds of each series, kept in the commit that wrote it.

Delta's commits are atomic, so a table never holds rows that its state does not know of, nor the reverse. The state is
the key `marketData` of the commit's information, where `DeltaTable.history` shows it to everyone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.store.changes import NOWHERE, Position

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable

KEY: Final = "marketData"
# How many of the last commits to look at for ours: vacuuming adds two, and another program may have compacted.
_LOOKS: Final = (1, 8, None)


class Held(NamedTuple):
    """What a table holds of one series.

    Attributes:
        position: the last change of the series that the table has.
        until_us: the table has the bars that start before it, microseconds since 1970 UTC.
        revision: of the series' bars.
    """

    position: Position = NOWHERE
    until_us: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class TableState:
    """What a table holds.

    Attributes:
        series: by symbol.
        source: where its bars come from: `vendor api.polygon.io`, `sandbox`; empty before anything was written.
        synced_at: when it was last brought up to date, ISO 8601; empty before the first time.
    """

    series: Mapping[str, Held] = field(default_factory=dict)
    source: str = ""
    synced_at: str = ""

    def document(self) -> dict[str, str]:
        """Return the state as what a commit carries."""
        series = {symbol: [*held.position, held.until_us, held.revision] for symbol, held in self.series.items()}
        state = {"source": self.source, "synced_at": self.synced_at, "series": series}
        return {KEY: json.dumps(state, separators=(",", ":"))}


def read_state(table: DeltaTable | None) -> TableState | None:
    """Return a table's state; None if there is no table, or no commit that tells it."""
    for looks in _LOOKS if table is not None else ():
        assert table is not None  # noqa: S101 - for the type checker
        for commit in table.history(looks):
            if KEY in commit:
                state = json.loads(commit[KEY])
                return TableState(
                    {
                        symbol: Held(Position(log_id, recorded_us), until_us, revision)
                        for symbol, (log_id, recorded_us, until_us, revision) in state["series"].items()
                    },
                    state["source"],
                    state["synced_at"],
                )
    return None
