"""What the vendor's answers weigh on the wire, learned from those that came before.

An answer is an envelope and its rows. Small ones are told apart from large ones, because a compressed row weighs the
less the more of them there are; a symbol is told apart from others, because prices and volumes have more digits or
fewer. Keep out: how many rows an answer has (trading_habits).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.series import AssetClass, Timeframe, asset_class_of
from market_data_pipeline.polygon.request_windows import ANSWER_BYTES, BYTES_PER_BAR, PAGE_LIMIT

if TYPE_CHECKING:
    from market_data_pipeline.store.copy import StoreConnection

_LARGE: Final = 1_000  # rows; what stands around them weighs little then
_ROW_DOUBT: Final = 0.03  # of what a row weighs: morning's volumes have fewer digits than noon's
_LOOKED_AT: Final = 20  # answers of each kind: enough for a line through small ones of different length
_MOST_ENVELOPE: Final = 1_000  # bytes; a line that says more was drawn through too little

# Before any answer has been weighed. The sandbox does not compress (sandbox.server), nor has any other server on this
# machine a reason to; measured over a year of the packaged universe, and of two round-the-clock tickers.
_NEAR_BYTES_PER_BAR: Final = {AssetClass.US_EQUITY: 101.4, AssetClass.CRYPTO: 109.8}

# More than any bar weighs: the names of eight fields, a stamp, a count and six numbers of up to twelve digits.
MOST_BYTES_PER_BAR: Final = 160


# A row of JSON that weighs less came compressed: then fewer rows weigh more each, and no line tells how much.
_COMPRESSED: Final = 60


class Weight(NamedTuple):
    """Bytes of an answer around its rows, and of a row; learned from answers of `fewest` to `most` rows."""

    envelope: float
    row: float
    fewest: float = 0
    most: float = math.inf

    def of(self, pages: int, rows: float) -> float:
        """Return what so many rows weigh on so many pages."""
        return pages * self.envelope + rows * self.row

    def is_stretched(self, rows: float) -> bool:
        """Return whether nothing like an answer of so many rows has been weighed, where that matters."""
        return self.row < _COMPRESSED and not self.fewest / 2 <= rows <= 2 * self.most

    def bounds(self, rows: float) -> tuple[float, float]:
        """Return the least and the most that one of so many rows weighs."""
        if self.is_stretched(rows):
            return 0.0, MOST_BYTES_PER_BAR
        return self.row * (1 - _ROW_DOUBT), self.row * (1 + _ROW_DOUBT)


class _Answer(NamedTuple):
    rows: int
    bytes: int
    pages: int


_Kind = tuple[Timeframe, bool]  # and whether it is large


class AnswerWeights:
    """What answers to requests of some symbols weigh.

    Args:
        connection: a connection.
        symbols: all that requests are planned for, and some whose answers tell of the others'.
        near: the vendor is a server on this machine.
    """

    def __init__(self, connection: StoreConnection, symbols: Collection[str], *, near: bool) -> None:
        self._near = near
        found: dict[tuple[str, _Kind], list[_Answer]] = {}
        for row in connection.rows(_ANSWERS, sorted(symbols), _LARGE, _LOOKED_AT):
            kind = Timeframe(row["timeframe"]), row["large"]
            answer = _Answer(row["rows"], row["bytes"], row["pages"])
            for name in (row["symbol"], asset_class_of(row["symbol"])):
                found.setdefault((name, kind), []).append(answer)
        self._minutes = {
            name: min(answer.pages * PAGE_LIMIT / answer.rows for answer in answers)
            for (name, kind), answers in found.items()
            if kind == (Timeframe.M5, True)
        }
        self._learned = {key: _line(answers, large=key[1][1]) for key, answers in found.items()}

    def of(self, symbol: str, timeframe: Timeframe, rows: float) -> Weight:
        """Return what an answer of so many rows weighs: as the symbol's others, or as those of its like."""
        large = rows >= _LARGE
        for name in (symbol, asset_class_of(symbol)):
            for kind in ((timeframe, large), (timeframe, not large), (Timeframe.M5, True), (Timeframe.M5, False)):
                if (weight := self._learned.get((name, kind))) is not None:
                    return weight
        return Weight(ANSWER_BYTES, _NEAR_BYTES_PER_BAR[asset_class_of(symbol)] if self._near else BYTES_PER_BAR)

    def most_minutes(self, symbol: str) -> float:
        """Return how many minutes a 5m bar of the symbol has at the most: its answers would have taken more pages."""
        return self._minutes.get(symbol, math.inf)

    def is_learned(self, symbol: str) -> bool:
        """Return whether any answer tells what the symbol's weigh."""
        return any(name in (symbol, asset_class_of(symbol)) for name, _ in self._learned)


def _line(answers: Sequence[_Answer], *, large: bool) -> Weight:
    """Return the weight that explains answers best; where they do not tell the envelope, with the usual one."""
    import numpy as np

    rows, size, pages = (np.array(column, dtype="float64") for column in zip(*answers, strict=True))
    if not large and len(set(rows.tolist())) > 2:
        row, envelope = np.polyfit(rows, size, 1).tolist()
        if row > 0 and 0 < envelope < _MOST_ENVELOPE:
            return Weight(envelope, row, rows.min(), rows.max())
    around = min(ANSWER_BYTES, size.sum() / pages.sum() / 2)
    return Weight(around, float((size - around * pages).sum() / rows.sum()), rows.min(), rows.max())


# Attempts that failed, and what the first series of a run counts for the whole market, are next to nothing beside a
# large answer; no small one is looked at that cost more requests than its pages. Audits give large ones every night.
_ANSWERS: Final = """
select asked.symbol, kind.timeframe, kind.large, told.rows_fetched as rows, told.bytes, told.pages
from unnest($1::text[]) as asked (symbol)
cross join (values ('5m', true), ('5m', false), ('1d', true), ('1d', false)) as kind (timeframe, large)
cross join lateral (
    select recent.rows_fetched, recent.bytes, recent.pages
    from (
        select l.id, l.rows_fetched, l.bytes, l.requests, l.status, coalesce(l.pages, l.requests) as pages
        from market_data.ingest_log as l
        where l.symbol = asked.symbol and l.timeframe = kind.timeframe
        order by l.id desc
        limit 500
    ) as recent
    where
        recent.bytes > 0 and recent.rows_fetched > 0 and recent.pages > 0 and recent.status <> 'failed'
        and (recent.rows_fetched >= $2::bigint) = kind.large
        and (recent.requests = recent.pages or recent.rows_fetched >= 10 * $2::bigint)
    order by recent.id desc
    limit $3::bigint
) as told
"""
