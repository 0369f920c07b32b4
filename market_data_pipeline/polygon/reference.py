"""The vendor's two lists of splits, and how they are decoded; any other reference data belongs here too.

The vendor deprecated `/v3/reference/splits` in February 2026 for `/stocks/v1/splits`, and named no day on which it
goes. Both list every ticker; ticker, day and terms have the same names in both.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.polygon.listed_rows import readable_rows
from market_data_pipeline.polygon.rows import in_words
from market_data_pipeline.polygon.wire import Envelope, Page, decode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class SplitRow(NamedTuple):
    """`split_from` old shares become `split_to` new ones at 00:00 New York of `execution_date`.

    `id` is the vendor's, None where it gives none.
    """

    symbol: str
    execution_date: date
    split_from: float
    split_to: float
    id: str | None = None


class SplitsEndpoint(NamedTuple):
    """An address of the list, and the parameters that ask for the longest pages by ascending date."""

    path: str
    parameters: str

    def target(self, since: date) -> str:
        """Return path and query for all splits executed on `since` or later."""
        return f"{self.path}?execution_date.gte={since}&{self.parameters}"


# In the order in which they are tried; a 404 leads to the next.
SPLITS_ENDPOINTS: Final[tuple[SplitsEndpoint, ...]] = (
    SplitsEndpoint("/stocks/v1/splits", "limit=5000&sort=execution_date.asc"),
    SplitsEndpoint("/v3/reference/splits", "limit=1000&order=asc&sort=execution_date"),
)


class _Split(msgspec.Struct):
    ticker: str
    execution_date: date
    split_from: float
    split_to: float
    id: str | int | None = None


class _SplitPage(Envelope):
    results: list[msgspec.Raw] | None = None


_PAGE: Final = msgspec.json.Decoder(_SplitPage)
_ROW: Final = msgspec.json.Decoder(_Split)


def read_splits(
    body: bytes, since: date, followed: Collection[str] | None = None, unreadable: dict[str, str] | None = None
) -> Page[tuple[SplitRow, ...]]:
    """Return the splits of one page that were executed on `since` or later.

    A row that cannot be read is left out with a warning if its ticker is not `followed`: one ticker's bad row must not
    hold up the whole market's list.

    Args:
        body: the unpacked answer.
        since: the first requested date; earlier splits do not affect any stored bar.
        followed: the tickers whose splits matter; None for all.
        unreadable: receives, by ticker, what is wrong with a row of a ticker that matters, or, under `NO_TICKER`, with
            a row without a ticker; None to raise it instead.

    Raises:
        TransientError: the body is not JSON.
        DataError: a row that matters is malformed or has an impossible ratio, and `unreadable` is None.
        RefusedInBodyError: its status is not a success.
    """
    page = decode(_PAGE, body, "splits", "row")
    readable = readable_rows(page.results or (), _read_row, "split", followed, unreadable)
    rows = tuple(row for row in readable if row.execution_date >= since)
    return Page(rows, len(rows), page.next_url)


def _read_row(raw: msgspec.Raw, where: str) -> SplitRow:
    failure: DataError
    try:
        row = _ROW.decode(raw)
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), 'row')}.")
    else:
        if not row.ticker:
            raise DataError(f"{where}, field ticker: it is empty.")
        for name, shares in (("split_from", row.split_from), ("split_to", row.split_to)):
            if not (math.isfinite(shares) and shares > 0):
                raise DataError(f"{where} ({row.ticker}), field {name}: {shares} is not a number of shares.")
        return SplitRow(
            row.ticker, row.execution_date, row.split_from, row.split_to, None if row.id is None else str(row.id)
        )
    raise failure


def each_once(splits: Iterable[SplitRow]) -> tuple[SplitRow, ...]:
    """Return every split once, by day, ticker and terms.

    The vendor lists some splits twice. Two rows are the same split if they agree in ticker, day and ratio, whatever
    their ids: the same split has another id on the other endpoint. Two rows of one day with different ratios are two
    splits; which of them count is decided where prices are known (`domain.contested`).
    """
    kept: dict[tuple[str, date, float], SplitRow] = {}
    for split in splits:
        kept.setdefault((split.symbol, split.execution_date, split.split_from / split.split_to), split)
    return tuple(sorted(kept.values(), key=lambda split: (split.execution_date, *split)))
