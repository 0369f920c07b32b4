"""What a source of bars offers the server: everything it has, whatever the clock says.

Add here: what every source must answer. Keep out: what may be seen at an instant on a plan (view).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.sandbox.bars import Bars, SplitRow


class Source(Protocol):
    """Raw bars and splits of many tickers; an unknown ticker has no bars."""

    @property
    def description(self) -> str:
        """What it is, for people."""

    def tickers(self) -> tuple[str, ...]:
        """Return the tickers that a whole-market question is about, in order."""

    def intraday(
        self, ticker: str, step_ms: int, start_ms: int, end_ms: int, *, descending: bool = False
    ) -> Iterator[Bars]:
        """Yield bars of `step_ms` made of the minutes in [start_ms, end_ms), in pieces.

        Each piece is ascending; the pieces come in ascending or descending order, made as they are asked for. A bar may
        be cut between two pieces (`bars.join` mends it).
        """

    def days(self, ticker: str, start_ms: int, end_ms: int) -> Bars:
        """Return the day bars that start in [start_ms, end_ms), as they are once the day is over."""

    def splits(self) -> Sequence[SplitRow]:
        """Return all splits by ascending date, future ones included."""
